from pathlib import Path

from pyimagesearch import config, reporting

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture
def saved(monkeypatch):
    """Collect the figures that are saved."""
    figures = []
    savefig = Figure.savefig

    def save_and_keep(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return figures


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_plot_history_shows_four_curves_over_whole_epochs(saved, epochs):
    H = {
        name: [offset + 1 / (e + 1) for e in range(epochs)]
        for offset, name in enumerate(["train_loss", "train_acc", "val_loss", "val_acc"])
    }
    reporting.plot_history(H)
    (axes,) = saved[0].axes
    assert axes.get_title() == "Training Loss and Accuracy on Dataset"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Epoch #", "Loss/Accuracy")
    assert [line.get_label() for line in axes.lines] == list(H)
    for line, values in zip(axes.lines, H.values(), strict=True):
        assert list(line.get_xdata()) == list(range(1, epochs + 1))
        assert list(line.get_ydata()) == values
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert Path(config.PLOT_PATH).read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


@pytest.mark.parametrize("epochs", [1, 100])
def test_nothing_in_the_plot_of_the_history_is_covered_or_clipped(saved, epochs):
    H = {name: [2.5] * epochs for name in ("train_loss", "train_acc", "val_loss", "val_acc")}
    reporting.plot_history(H)
    (axes,) = saved[0].axes
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    assert [text.get_text() for text in axes.get_legend().texts] == list(H)


def test_plot_history_writes_a_row_per_epoch_beside_the_plot():
    H = {
        "train_loss": [1.5, 0.5],
        "train_acc": [0, 0.25],
        "val_loss": [2, 1],
        "val_acc": [0, 1 / 3],
    }
    reporting.plot_history(H)
    table = Path(config.PLOT_PATH).with_suffix(".csv").read_text()
    assert table == (
        "epoch,train_loss,train_acc,val_loss,val_acc\n"
        "1,1.5,0,2,0\n"
        "2,0.5,0.25,1,0.3333333333333333\n"
    )


def test_save_report_prints_and_saves_a_row_per_class(capsys):
    reporting.save_report([0, 0, 1], torch.tensor([0, 0, 0]), ["Bread", "Egg", "Soup"])
    report = Path(config.REPORT_PATH).read_text()
    assert capsys.readouterr().out == report + "\n"
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert rows["Bread"] == ["0.67", "1.00", "0.80", "2"]
    assert rows["Egg"] == ["0.00", "0.00", "0.00", "1"]
    assert rows["Soup"][-1] == "0"
    assert rows["accuracy"] == ["0.67", "3"]


def test_plot_confusion_shows_counts_and_their_share_of_the_true_class(saved):
    reporting.plot_confusion([0, 0, 0, 1], torch.tensor([0, 0, 1, 1]), ["$\\frac{$", "蛋", "Soup"])
    (axes,) = saved[0].axes
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["2\n67%", "1\n33%", "", "", "1\n100%", "", "", "", ""]
    assert axes.get_title().startswith("Test accuracy 0.75\n")
    # legible on the pale blue of 33 %
    assert [axes.texts[i].get_color() for i in (0, 1, 4)] == ["white", "black", "white"]
    assert Path(config.CONFUSION_PATH).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("numClasses", [2, 11])
def test_the_numbers_of_the_confusion_matrix_fit_their_cells(saved, numClasses):
    targets = [index for index in range(numClasses) for _ in range(numClasses)] * 400
    preds = list(range(numClasses)) * numClasses * 400
    reporting.plot_confusion(targets, torch.tensor(preds), ["class"] * numClasses)
    (axes,) = saved[0].axes
    # the colour means the same in every matrix, also where no class is always right
    assert axes.images[0].get_clim() == (0, 1)
    cell = axes.get_window_extent().width / numClasses
    assert len(axes.texts) == numClasses**2
    for text in axes.texts:
        box = text.get_window_extent()
        assert max(box.width, box.height) < cell


def test_plot_confusion_takes_a_thousand_classes(saved):
    reporting.plot_confusion([0, 999], torch.tensor([0, 0]), ["class"] * 1000)
    assert not saved[0].axes[0].texts


def test_plot_predictions_shows_pictures_in_their_own_proportions(saved):
    pictures = [np.random.default_rng(0).random((8, 8, 3)), Image.new("RGB", (40, 10), "red")]
    titles = [f"Ground Truth: Egg,\nPredicted: {n}" for n in range(2)]
    reporting.plot_predictions(pictures, titles)
    assert [axes.get_title() for axes in saved[0].axes[:2]] == titles
    for axes, picture in zip(saved[0].axes, pictures, strict=False):
        assert np.array_equal(axes.images[0].get_array(), np.asarray(picture))
        assert axes.get_aspect() == 1
    assert Path(config.RESULTS_PATH).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 2, 4, 32, 33])
def test_titles_over_predictions_are_legible_and_do_not_overlap(saved, count):
    title = f"{'LUNCH' * 9}.jpg\nPredicted: {'a_class_with_a_very_long_name' * 2} 0.84"
    reporting.plot_predictions(np.zeros((count, 8, 8, 3)), [title] * count, [True] * count)
    axes = [axes for axes in saved[0].axes if axes.images]
    assert len(axes) == min(count, reporting.MAX_PICTURES)
    boxes = [a.title.get_window_extent() for a in axes]
    boxes += [a.get_window_extent() for a in axes]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert all(a.title.get_fontsize() >= 10 for a in axes)
    # narrow enough for a screen
    assert saved[0].get_figwidth() * saved[0].dpi <= 1500


def test_right_and_wrong_predictions_differ_in_frame_and_mark(saved):
    reporting.plot_predictions(np.zeros((3, 8, 8, 3)), list("abc"), [True, False, True])
    marks = [axes.texts[0].get_text() for axes in saved[0].axes[:3]]
    colours = [axes.spines["top"].get_edgecolor() for axes in saved[0].axes[:3]]
    assert marks == ["✓", "✗", "✓"]
    assert colours[0] == colours[2] != colours[1]


def test_any_file_name_can_be_a_title(saved):
    titles = ["Menü $\\frac{$.jpg", "晚餐.jpg", "_[x]\\frac{.jpg", "no text \udcff.jpg"]
    reporting.plot_predictions(np.zeros((4, 8, 8, 3)), titles)
    assert Path(config.RESULTS_PATH).exists()


def test_plot_predictions_shows_where_a_screen_is(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    reporting.plot_predictions(np.zeros((1, 8, 8, 3)), ["title"])
    assert not shown
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    reporting.plot_predictions(np.zeros((1, 8, 8, 3)), ["title"])
    assert shown
