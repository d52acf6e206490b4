import csv
import os
from pathlib import Path
from types import SimpleNamespace

from pyimagesearch import config, reporting

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import draw_image
from matplotlib.figure import Figure
from PIL import Image

# reporting.py itself ignores this warning, by a filter that pytest takes away
glyphs = pytest.mark.filterwarnings("ignore:Glyph .* missing from")


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


def make_dataset(classes, targets, names=None):
    """Draw an image for each of targets; return them as an ImageFolder would."""
    names = names or [f"{number}.png" for number in range(len(targets))]
    paths = [os.path.join("test", name) for name in names]
    for path, target in zip(paths, targets, strict=True):
        draw_image(Path(path), target % 11, len(path), size=(8, 8))
    samples = list(zip(paths, targets, strict=True))
    return SimpleNamespace(classes=classes, targets=targets, samples=samples)


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_plot_history_shows_four_curves_over_whole_epochs(saved, epochs):
    H = {
        name: [offset + 1 / (e + 1) for e in range(epochs)]
        for offset, name in enumerate(["train_loss", "train_acc", "val_loss", "val_acc"])
    }
    reporting.plot_history(config.PLOT_PATH, H)
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
    reporting.plot_history(config.PLOT_PATH, H)
    (axes,) = saved[0].axes
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    assert [text.get_text() for text in axes.get_legend().texts] == list(H)


def test_save_history_writes_a_row_per_epoch_beside_the_plot():
    H = {
        "train_loss": [1.5, 0.5],
        "train_acc": [0, 0.25],
        "val_loss": [2, 1],
        "val_acc": [0, 1 / 3],
    }
    reporting.save_history(H)
    assert Path(config.PLOT_PATH).exists()
    table = Path(config.PLOT_PATH).with_suffix(".csv").read_text()
    assert table == (
        "epoch,train_loss,train_acc,val_loss,val_acc\n"
        "1,1.5,0,2,0\n"
        "2,0.5,0.25,1,0.3333333333333333\n"
    )


def test_save_report_prints_and_saves_a_row_per_class(capsys):
    ds = make_dataset(["Bread", "Egg", "Soup"], [0, 0, 1])
    reporting.save_report(ds, [(0, 0.5)] * 3)
    report = Path(config.REPORT_PATH).read_text()
    assert capsys.readouterr().out.startswith(report + "\n")
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert rows["Bread"] == ["0.67", "1.00", "0.80", "2"]
    assert rows["Egg"] == ["0.00", "0.00", "0.00", "1"]
    assert rows["Soup"][-1] == "0"
    assert rows["accuracy"] == ["0.67", "3"]


@glyphs
def test_plot_confusion_shows_counts_and_their_share_of_the_true_class(saved):
    reporting.plot_confusion(
        config.CONFUSION_PATH, [0, 0, 0, 1], [0, 0, 1, 1], ["$\\frac{$", "蛋", "Soup"]
    )
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
    reporting.plot_confusion(config.CONFUSION_PATH, targets, preds, ["class"] * numClasses)
    (axes,) = saved[0].axes
    # the colour means the same in every matrix, also where no class is always right
    assert axes.images[0].get_clim() == (0, 1)
    cell = axes.get_window_extent().width / numClasses
    assert len(axes.texts) == numClasses**2
    for text in axes.texts:
        box = text.get_window_extent()
        assert max(box.width, box.height) < cell


def test_a_report_takes_a_thousand_classes(saved):
    classes = [f"class {n:03}" for n in range(1000)]
    reporting.save_report(make_dataset(classes, [0, 999]), [(0, 0.9), (0, 0.8)])
    assert read_table()[0][1:] == ["class 999", "class 000", "0.8000"]
    # the first figure is that of the mistakes
    saved.pop(0)
    assert not saved[0].axes[0].texts


def test_plot_pictures_shows_pictures_in_their_own_proportions(saved):
    draw_image(Path("small.png"), 0, size=(8, 8))
    draw_image(Path("wide.png"), 3, size=(1200, 300))
    titles = [f"Ground Truth: Egg,\nPredicted: {n}" for n in range(2)]
    reporting.plot_pictures(config.RESULTS_PATH, ["small.png", "wide.png"], titles)
    assert [axes.get_title() for axes in saved[0].axes[:2]] == titles
    (small, wide) = (np.asarray(axes.images[0].get_array()) for axes in saved[0].axes[:2])
    assert np.array_equal(small, np.asarray(Image.open("small.png")))
    # large ones are made smaller, their own proportions kept
    assert wide.shape == (128, 512, 3)
    assert all(axes.get_aspect() == 1 for axes in saved[0].axes[:2])
    assert Path(config.RESULTS_PATH).read_bytes().startswith(b"\x89PNG")


def assert_nothing_overlaps(figure, count):
    """Assert that count pictures and their titles are there, legible, and apart."""
    axes = [axes for axes in figure.axes if axes.images]
    assert len(axes) == count
    boxes = [a.title.get_window_extent() for a in axes]
    boxes += [a.get_window_extent() for a in axes]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert all(a.title.get_fontsize() >= 10 for a in axes)
    # narrow enough for a screen
    assert figure.get_figwidth() * figure.dpi <= 1500


@pytest.mark.parametrize("count", [1, 2, 4, 32, 33])
def test_titles_over_pictures_are_legible_and_do_not_overlap(saved, capsys, count):
    title = f"{'LUNCH' * 9}.jpg\nPredicted: {'a_class_with_a_very_long_name' * 2} 0.84"
    draw_image(Path("a.png"), 0, size=(8, 8))
    path = config.RESULTS_PATH
    reporting.plot_pictures(path, ["a.png"] * count, [title] * count, [True] * count)
    assert_nothing_overlaps(saved[0], min(count, reporting.MAX_PICTURES))
    line = f"[INFO] {path} shows {min(count, 32)} of {count} images...\n"
    assert capsys.readouterr().out == line


def test_right_and_wrong_predictions_differ_in_frame_and_mark(saved):
    draw_image(Path("a.png"), 0, size=(8, 8))
    hits = [True, False, True]
    reporting.plot_pictures(config.RESULTS_PATH, ["a.png"] * 3, list("abc"), hits)
    marks = [axes.texts[0].get_text() for axes in saved[0].axes[:3]]
    colours = [axes.spines["top"].get_edgecolor() for axes in saved[0].axes[:3]]
    assert marks == ["✓", "✗", "✓"]
    assert colours[0] == colours[2] != colours[1]


@glyphs
def test_any_file_name_can_be_a_title(saved):
    titles = ["Menü $\\frac{$.jpg", "晚餐.jpg", "_[x]\\frac{.jpg", "no text \udcff.jpg"]
    draw_image(Path("a.png"), 0, size=(8, 8))
    reporting.plot_pictures(config.RESULTS_PATH, ["a.png"] * 4, titles)
    assert Path(config.RESULTS_PATH).exists()


def test_only_the_results_are_shown_where_a_screen_is(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    draw_image(Path("a.png"), 0, size=(8, 8))
    reporting.plot_pictures(config.RESULTS_PATH, ["a.png"], ["title"])
    assert not shown
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    # a training does not stop for somebody to close a window
    reporting.plot_pictures(config.MISTAKES_PATH, ["a.png"], ["title"])
    assert not shown
    reporting.plot_pictures(config.RESULTS_PATH, ["a.png"], ["title"])
    assert shown


def read_table(path=None):
    """Return the rows of predictions.csv, without its first line."""
    with open(path or config.PREDICTIONS_PATH, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "true class", "predicted class", "probability"]
    return rows[1:]


def test_predictions_are_a_table_with_the_surest_mistakes_first(saved):
    ds = make_dataset(["Bread", "Egg"], [0, 0, 0, 1, 1, 1])
    paths = [path for path, _ in ds.samples]
    reporting.save_report(ds, [(0, 0.9), (1, 0.6), (1, 0.8), (1, 0.99), (0, 0.8), (1, 0.51234)])
    assert read_table() == [
        # those that are as sure as each other come in the order of their paths
        [paths[2], "Bread", "Egg", "0.8000"],
        [paths[4], "Egg", "Bread", "0.8000"],
        [paths[1], "Bread", "Egg", "0.6000"],
        [paths[3], "Egg", "Egg", "0.9900"],
        [paths[0], "Bread", "Bread", "0.9000"],
        [paths[5], "Egg", "Egg", "0.5123"],
    ]
    titles = [axes.get_title() for axes in saved[0].axes if axes.images]
    assert titles == [
        "Bread,\nnot Egg 0.80\n2.png",
        "Egg,\nnot Bread 0.80\n4.png",
        "Bread,\nnot Egg 0.60\n1.png",
    ]
    # each title stands over its own picture
    for axes, number in zip(saved[0].axes, (2, 4, 1), strict=False):
        expected = np.asarray(Image.open(paths[number]))
        assert np.array_equal(np.asarray(axes.images[0].get_array()), expected)
    assert Path(config.MISTAKES_PATH).read_bytes().startswith(b"\x89PNG")


@glyphs
def test_a_table_holds_any_name(saved):
    names = ['egg, "fried"', "ложка\n"]
    ds = make_dataset(names, [0, 1], ["a, b.png", "no text \udcff.png"])
    reporting.save_report(ds, [(1, 0.7), (0, 0.6)])
    rows = read_table()
    assert [row[1:] for row in rows] == [[*names, "0.7000"], [*names[::-1], "0.6000"]]
    assert rows[0][0].endswith("a, b.png")
    assert Path(config.MISTAKES_PATH).exists()


def test_no_mistake_makes_no_picture_and_is_said(capsys):
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    reporting.save_report(ds, [(0, 0.7), (1, 0.6)])
    line = f"[INFO] no mistakes on the test set: no {config.MISTAKES_PATH}...\n"
    assert line in capsys.readouterr().out
    assert not Path(config.MISTAKES_PATH).exists()
    assert len(read_table()) == 2


@pytest.mark.parametrize("count", [1, 40])
def test_nothing_in_the_picture_of_the_mistakes_overlaps(saved, monkeypatch, count):
    monkeypatch.setattr(reporting, "plot_confusion", lambda *args: None)
    classes = [f"a_class_with_a_long_name_{n:04}" for n in range(2)]
    names = [f"{'IMG' * 9}{n:03}.png" for n in range(count)]
    ds = make_dataset(classes, [0] * count, names)
    reporting.save_report(ds, [(1, 0.5 + n / 100) for n in range(count)])
    assert_nothing_overlaps(saved[0], min(count, 32))
    # the surest come first
    for axes, number in zip(saved[0].axes, reversed(range(count)), strict=False):
        assert f"{0.5 + number / 100:.2f}" in axes.get_title()


@pytest.mark.parametrize(
    ("true", "pred"),
    [
        ("Bread", "Dairy_product"),
        ("Vegetable", "Dairy_product_very_old"),
        # of Food-101
        ("strawberry_shortcake", "chocolate_mousse"),
    ],
)
def test_the_title_of_a_mistake_has_both_class_names_whole(saved, monkeypatch, true, pred):
    monkeypatch.setattr(reporting, "plot_confusion", lambda *args: None)
    reporting.save_report(make_dataset([true, pred], [0]), [(1, 0.875)])
    title = saved[0].axes[0].get_title()
    for part in (true, pred, "0.8", "0.png"):
        assert part in title


def report_and_plot():
    """Save all that a training saves after its weights."""
    reporting.save_report(make_dataset(["Bread", "Egg"], [0, 1]), [(0, 0.7), (0, 0.6)])
    reporting.save_history({"train_loss": [1], "train_acc": [0], "val_loss": [2], "val_acc": [0]})


PICTURES = ("confusion_matrix.png", "mistakes.png", "model_training.png")
TEXTS = {"classification_report.txt", "predictions.csv", "model_training.csv"}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_written_is_a_line_and_costs_nothing_else(capsys, name):
    # a folder is in its way
    path = Path("output", name)
    path.mkdir(parents=True)
    report_and_plot()
    lines = [line for line in capsys.readouterr().out.splitlines() if " cannot be drawn (" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"[INFO] {path} cannot be drawn (")
    written = {path.name for path in Path("output").iterdir() if path.is_file()}
    assert written == TEXTS | set(PICTURES) - {name}
    assert not plt.get_fignums()


def test_where_no_picture_can_be_drawn_report_and_tables_are_written(monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fail)
    report_and_plot()
    out = capsys.readouterr().out
    for path in (config.CONFUSION_PATH, config.MISTAKES_PATH, config.PLOT_PATH):
        assert f"[INFO] {path} cannot be drawn (no font)...\n" in out
    assert {path.name for path in Path("output").iterdir()} == TEXTS
    assert not plt.get_fignums()


def test_a_mistake_whose_file_is_gone_costs_one_picture_alone(capsys):
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    os.remove(ds.samples[1][0])
    reporting.save_report(ds, [(0, 0.7), (0, 0.6)])
    assert f"[INFO] {config.MISTAKES_PATH} cannot be drawn (" in capsys.readouterr().out
    assert len(read_table()) == 2
    assert Path(config.CONFUSION_PATH).exists()


def test_a_report_goes_into_a_folder_of_its_own():
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    folder = os.path.join("output", "evaluation")
    reporting.save_report(ds, [(0, 0.7), (0, 0.6)], folder)
    assert os.listdir("output") == ["evaluation"]
    assert sorted(os.listdir(folder)) == [
        "classification_report.txt",
        "confusion_matrix.png",
        "mistakes.png",
        "predictions.csv",
    ]
