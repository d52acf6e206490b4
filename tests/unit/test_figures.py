"""The curves and the pictures in output/, and whether they can be read."""

import importlib
from pathlib import Path
from unittest.mock import Mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import assert_picture_is_whole, read_pixels, read_titles, run_python
from matplotlib.colors import to_rgb

from pyimagesearch import config
from pyimagesearch.support import figures
from pyimagesearch.support.figures import CURVES


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_the_four_curves_are_seen_over_whole_epochs_with_their_legend(saved, epochs):
    H = {name: [offset + 1 / (e + 1) for e in range(epochs)] for offset, name in enumerate(CURVES)}
    figures.plot_history(H)
    (axes,) = saved[0].axes
    assert axes.get_title() == "Training Loss and Accuracy on Dataset"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Epoch #", "Loss/Accuracy")
    assert [text.get_text() for text in axes.get_legend().texts] == list(CURVES)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert_picture_is_whole(config.PLOT_PATH, saved[0])
    # the legend covers nothing
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    pixels = read_pixels(config.PLOT_PATH)
    # the handles in the legend below, and the curves above it
    parts = np.split(pixels, [len(pixels) - int(legend.height) - 20])
    for line, values in zip(axes.lines, H.values(), strict=True):
        assert list(line.get_xdata()) == list(range(1, epochs + 1))
        assert list(line.get_ydata()) == values
        colour = np.array(to_rgb(line.get_color())) * 255
        for part in parts:
            assert (abs(part - colour).max(2) < 3).sum() > 5


@pytest.mark.parametrize(("first", "isCut"), [(412.0, True), (4.0, False)])
def test_one_huge_loss_does_not_press_all_curves_flat(saved, capsys, first, isCut):
    losses = [first, *(2 - 0.05 * epoch for epoch in range(29))]
    accuracies = [0.02 * epoch for epoch in range(30)]
    H = {"rate": [1e-4] * 30, "train_loss": losses, "train_acc": accuracies}
    H |= {"val_loss": losses, "val_acc": accuracies, "seconds": [3000] * 30}
    figures.plot_history(H)
    (axes,) = saved[0].axes
    assert len(axes.lines) == 4
    (_, top) = axes.get_ylim()
    # all but that one is seen, and fills the picture
    assert 2 < top < 5
    out = capsys.readouterr().out
    assert ("the plot is cut off at" in out) == isCut
    assert ("the highest loss is 412.00..." in out) == isCut


@pytest.mark.parametrize("isShown", [False, True])
def test_a_window_opens_where_it_is_wanted_and_a_line_says_what_the_script_waits_for(
    monkeypatch, capsys, isShown
):
    # a desktop
    monkeypatch.setattr(figures.plt, "get_backend", lambda: "TkAgg")
    show = Mock()
    monkeypatch.setattr(figures.plt, "show", show)
    figures.plot_pictures(config.RESULTS_PATH, [np.zeros((8, 8, 3))], ["Egg"], isShown=isShown)
    assert show.call_count == isShown
    assert ("close the window to end the script" in capsys.readouterr().out) == isShown


def test_a_users_own_style_of_matplotlib_spoils_no_picture():
    H = {name: [0.5, 0.4] for name in CURVES}
    figures.plot_history(H)
    expected = Path(config.PLOT_PATH).read_bytes()
    # as a matplotlibrc does before the package is imported; there is no LaTeX on most machines
    plt.rcParams.update({"text.usetex": True, "figure.figsize": (1, 1), "text.parse_math": True})
    importlib.reload(figures)
    figures.plot_history(H)
    assert Path(config.PLOT_PATH).read_bytes() == expected


NOTEBOOK = """
import os
import sys
from types import ModuleType

notebook = sys.modules["IPython"] = ModuleType("IPython")
(notebook.get_ipython, notebook.version_info) = (lambda: None, (9, 0))

import matplotlib

matplotlib.rcParams.update({"figure.figsize": (1, 1), "font.size": 3, "text.parse_math": False})
before = dict(matplotlib.rcParams)

import train_distributed
from pyimagesearch.support import figures, script

assert dict(matplotlib.rcParams) == before
H = {"train_loss": [1, 2], "train_acc": [1, 2], "val_loss": [1, 2], "val_acc": [1, 2]}
script.run(lambda: figures.plot_history(H), advice="")
assert dict(matplotlib.rcParams) == before
assert matplotlib.get_backend() == "module://own_backend"
assert os.environ["MPLBACKEND"] == "module://own_backend"
"""
BACKEND = """
from matplotlib.backends.backend_agg import FigureCanvas, FigureManagerBase as FigureManager
"""


def test_a_notebooks_matplotlib_is_as_it_was():
    # stands for that of IPython, which shows figures in the notebook
    Path("own_backend.py").write_text(BACKEND)
    env = {"MPLBACKEND": "module://own_backend"}
    run = run_python("-c", NOTEBOOK, env=env)
    assert run.returncode == 0, run.stderr
    assert Path(config.PLOT_PATH).exists()


SCRIPT = """
from pyimagesearch.support import figures, script

import matplotlib

H = {"train_loss": [1, 2], "train_acc": [1, 2], "val_loss": [1, 2], "val_acc": [1, 2]}
script.run(lambda: figures.plot_history(H), advice="")
print(matplotlib.get_backend())
"""


def test_a_script_that_a_notebook_started_draws_without_its_backend():
    # which is not even installed where the script runs
    env = {"MPLBACKEND": "module://backend_of_a_notebook"}
    run = run_python("-c", SCRIPT, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "agg"
    assert Path(config.PLOT_PATH).exists()


def test_a_backend_of_the_users_own_stays():
    run = run_python("-c", SCRIPT, env={"MPLBACKEND": "svg"})
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "svg"


@pytest.mark.parametrize("count", [1, 5, 32])
def test_titles_are_wrapped_apart_from_each_other_and_green_where_right_else_red(saved, count):
    title = f"{'LUNCH' * 9}.jpg\nPredicted: {'a_class_with_a_very_long_name' * 2} 0.84"
    hits = [number % 2 == 0 for number in range(count)]
    figures.plot_pictures("a.png", [np.zeros((8, 8, 3))] * count, [title] * count, hits)
    shown = [axes for axes in saved[0].axes if axes.images]
    assert [axes.title.get_color() == "green" for axes in shown] == hits
    assert {axes.title.get_color() for axes in shown} <= {"green", "red"}
    boxes = [axes.title.get_window_extent() for axes in shown]
    boxes += [axes.get_window_extent() for axes in shown]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
    # whole, legible, and narrow enough for a screen
    assert "".join(read_titles(saved[0])[0].split()) == "".join(title.split())
    assert all(axes.title.get_fontsize() >= 10 for axes in shown)
    assert read_pixels("a.png").shape[1] <= 1500
    assert_picture_is_whole("a.png", saved[0])


def test_without_a_screen_no_window_is_opened(monkeypatch):
    monkeypatch.setattr(plt, "show", Mock(side_effect=AssertionError))
    figures.plot_pictures(config.RESULTS_PATH, [np.zeros((8, 8, 3))], ["title"], isShown=True)
