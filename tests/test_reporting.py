from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from pyimagesearch import config, reporting


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


def test_save_report_prints_and_saves_a_row_per_class(capsys):
    reporting.save_report([0, 0, 1], torch.tensor([0, 0, 0]), ["Bread", "Egg", "Soup"])
    report = Path(config.REPORT_PATH).read_text()
    assert capsys.readouterr().out == report + "\n"
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert rows["Bread"] == ["0.67", "1.00", "0.80", "2"]
    assert rows["Egg"] == ["0.00", "0.00", "0.00", "1"]
    assert rows["Soup"][-1] == "0"
    assert rows["accuracy"] == ["0.67", "3"]


def test_plot_confusion_counts_every_pair(saved):
    reporting.plot_confusion([0, 0, 1, 1], torch.tensor([0, 1, 1, 1]), ["Bread", "Egg", "Soup"])
    assert [int(text.get_text()) for text in saved[0].axes[0].texts] == [1, 1, 0, 0, 2, 0, 0, 0, 0]
    assert Path(config.CONFUSION_PATH).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 3])
def test_plot_predictions_undoes_the_normalization(saved, count):
    pixels = torch.rand(count, 3, 8, 8)
    images = (pixels - torch.tensor(config.MEAN).view(3, 1, 1)) / torch.tensor(config.STD).view(
        3, 1, 1
    )
    titles = [f"Ground Truth: Egg, Predicted: {n}" for n in range(count)]
    reporting.plot_predictions(images, titles)
    assert [axes.get_title() for axes in saved[0].axes] == titles
    for axes, picture in zip(saved[0].axes, pixels, strict=True):
        shown = torch.tensor(axes.images[0].get_array())
        assert torch.allclose(shown.float(), picture.permute(1, 2, 0), atol=1e-5)
    assert Path(config.RESULTS_PATH).read_bytes().startswith(b"\x89PNG")


def test_plot_predictions_shows_where_a_screen_is(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    reporting.plot_predictions(torch.zeros(1, 3, 8, 8), ["title"])
    assert not shown
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    reporting.plot_predictions(torch.zeros(1, 3, 8, 8), ["title"])
    assert shown
