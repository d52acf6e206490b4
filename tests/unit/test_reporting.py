"""The report on the test images, and whether its pictures can be read."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    assert_picture_is_whole,
    draw_image,
    hold,
    read_pixels,
    read_titles,
    read_tree,
)
from matplotlib.colors import to_rgb

from pyimagesearch import config
from pyimagesearch.support import figures, reporting, tables


def make_dataset(classes, targets, names=None):
    """Draw an image for each of targets; return them as an ImageFolder would."""
    names = names or [f"album/{number}.png" for number in range(len(targets))]
    paths = [os.path.join("test", name) for name in names]
    for path, target in zip(paths, targets, strict=True):
        draw_image(path, target % 11, len(path), size=(8, 8))
    samples = list(zip(paths, targets, strict=True))
    return SimpleNamespace(root="test", classes=classes, targets=targets, samples=samples)


def read_table():
    """Return the rows of predictions.csv, without its first line."""
    with open(config.PREDICTIONS_PATH, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "true class", "predicted class", "probability"]
    return rows[1:]


def test_the_report_has_a_row_per_class_and_says_what_little_it_means(capsys):
    ds = make_dataset(["Bread", "Egg", "Soup"], [0] * 10 + [1] * 9 + [2])
    reporting.save_report(ds, [0] * 11 + [1] * 9, [0.5] * 20)
    report = Path(config.REPORT_PATH).read_text()
    assert report in capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert rows["Bread"] == ["0.91", "1.00", "0.95", "10"]
    assert rows["Soup"] == ["0.00", "0.00", "0.00", "1"]
    assert rows["accuracy"] == ["0.90", "20"]
    assert "baseline (always the largest class): accuracy 0.50\n" in report
    assert "too few test images to judge (under 10): Egg, Soup\n" in report


def test_the_surest_mistakes_come_first_in_the_table_and_as_pictures(saved, capsys):
    ds = make_dataset(["Bread", "Egg"], [0, 0, 0, 1, 1, 1])
    paths = [path for path, _ in ds.samples]
    preds = [0, 1, 1, 1, 0, 1]
    reporting.save_report(ds, preds, [0.9, 0.6, 0.8, 0.99, 0.8, 0.51234])
    assert read_table() == [
        # those that are as sure as each other come in the order of their paths
        [paths[2], "Bread", "Egg", "0.8000"],
        [paths[4], "Egg", "Bread", "0.8000"],
        [paths[1], "Bread", "Egg", "0.6000"],
        [paths[3], "Egg", "Egg", "0.9900"],
        [paths[0], "Bread", "Bread", "0.9000"],
        [paths[5], "Egg", "Egg", "0.5123"],
    ]
    (_, figure) = saved
    for number, true, pred in ((2, "Bread", "Egg"), (4, "Egg", "Bread")):
        (axes,) = [axes for axes in figure.axes if f"\nalbum/{number}.png" in axes.get_title()]
        assert axes.get_title() == f"labelled {true},\npredicted {pred} 0.80\nalbum/{number}.png"
        # each title stands over its own picture
        expected = read_pixels(paths[number])
        assert np.array_equal(np.asarray(axes.images[0].get_array()), expected)
    assert [title[-5] for title in read_titles(figure)] == ["2", "4", "1"]
    assert "mistakes on the test set: 3 of 6" in capsys.readouterr().out
    assert_picture_is_whole(config.MISTAKES_PATH, figure)


def test_where_there_is_no_mistake_a_line_says_so_and_no_picture_is_left(capsys):
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    # one of an earlier report, which would be taken for one of this
    reporting.save_report(ds, [0, 0], [0.7, 0.6])
    assert Path(config.MISTAKES_PATH).exists()
    capsys.readouterr()
    reporting.save_report(ds, [0, 1], [0.7, 0.6])
    assert "mistakes on the test set: 0 of 2" in capsys.readouterr().out
    assert not Path(config.MISTAKES_PATH).exists()


def test_a_report_can_go_into_a_folder_beside_that_of_the_run():
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    reporting.save_report(ds, [0, 0], [0.7, 0.6])
    before = read_tree()
    os.mkdir("elsewhere")
    reporting.save_report(ds, [0, 0], [0.7, 0.6], "elsewhere")
    assert read_tree("elsewhere") == before
    reporting.save_report(ds, [0, 1], [0.7, 0.6], "elsewhere")
    # nor is the picture of the run removed
    assert read_tree() == before


def test_a_mistake_that_is_nearly_sure_is_not_said_to_be_certain(saved):
    ds = make_dataset(["Bread", "Egg"], [0, 1])
    reporting.save_report(ds, [1, 1], [0.99949, 0.5])
    (title,) = read_titles(saved[1])
    assert "predicted Egg 0.99\n" in title


def test_names_of_any_kind_cost_no_report_and_letters_without_a_font_are_named(saved, capsys):
    # the last letter is of no font
    classes = ['egg, "fried" $\\frac{$', "ложка\n", "no text \udcff", "egg \U000f0000"]
    names = ["a, b.png", "$x^$.png", "no text \udcff.png", "d.png"]
    ds = make_dataset(classes, [0, 1, 2, 3], names)
    reporting.save_report(ds, [1, 0, 3, 2], [0.7, 0.6, 0.5, 0.4])
    shown = [*classes[:2], "no text ?", classes[3]]
    rows = read_table()
    assert [row[1:3] for row in rows] == [[shown[i], shown[i ^ 1]] for i in range(4)]
    assert rows[0][0].endswith("a, b.png")
    titles = read_titles(saved[1])
    assert "$\\frac{$" in titles[0]
    assert titles[1].endswith("\n$x^$.png")
    assert "no font for \U000f0000:" in capsys.readouterr().out


def test_the_confusion_matrix_shows_the_share_of_the_true_class_in_legible_numbers(saved):
    classes = ["Bread", "a_class_with_a_very_long_name", "Soup"]
    (targets, preds) = ([0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 2])
    reporting.plot_confusion(config.CONFUSION_PATH, targets, preds, classes)
    (axes,) = saved[0].axes
    rates = [2 / 3, 1 / 3, 0, 0, 1 / 2, 1 / 2, 0, 0, 1]
    image = axes.images[0]
    for text, rate in zip(axes.texts, rates, strict=True):
        assert text.get_text() == f"{rate:.0%}"
        (back, front) = (image.cmap(image.norm(rate))[:3], to_rgb(text.get_color()))
        assert abs(sum(back) - sum(front)) > 1
    # the colour means the same in every matrix
    (low, high) = image.get_clim()
    assert low == 0 and high >= 1
    assert [label.get_text() for label in axes.get_xticklabels()] == classes
    assert_picture_is_whole(config.CONFUSION_PATH, saved[0])


@pytest.mark.parametrize("numClasses", [2, 11, 50, 51, 1000])
def test_numbers_and_names_of_the_confusion_matrix_fit_or_are_left_out(monkeypatch, numClasses):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    (every, classes) = (range(numClasses), [f"class {n:03}" for n in range(numClasses)])
    reporting.plot_confusion(config.CONFUSION_PATH, every, every, classes)
    (axes,) = drawn[0].axes
    # no picture of gigabytes
    assert max(drawn[0].get_size_inches()) < 50
    drawn[0].draw_without_rendering()
    cell = axes.get_window_extent().width / numClasses
    texts = [text for text in axes.texts if text.get_text() == "100%"]
    assert len(texts) == (numClasses if numClasses <= 50 else 0)
    assert all(text.get_window_extent().width < cell for text in texts)
    assert bool(axes.get_yticklabels()) == bool(axes.get_xticklabels()) == (numClasses <= 100)
    assert all(label.get_window_extent().height < cell for label in axes.get_yticklabels())


def test_tables_and_pictures_that_another_program_holds_end_no_report(monkeypatch, capsys):
    rows = [("dataset/evaluation/Egg/0.jpg", "Egg", "Soup", 0.9)]
    tables.write_predictions("predictions.csv", [])
    Path("mistakes.png").write_bytes(b"of an earlier report")
    Path("results.png").write_bytes(b"of an earlier batch")
    for name in ("predictions.csv", "mistakes.png", "results.png"):
        hold(monkeypatch, name)
    tables.write_predictions("predictions.csv", rows)
    assert "Egg,Soup,0.9000" in Path("predictions-again.csv").read_text()
    # no mistakes
    reporting.plot_mistakes("mistakes.png", [], "dataset/evaluation")
    reporting.plot_mistakes("none.png", [], "dataset/evaluation")
    figures.plot_pictures("results.png", [np.zeros((8, 8, 3))], ["title"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == [
        "predictions.csv",
        "mistakes.png",
        "results.png",
    ]
    assert lines[3:] == ["[INFO] saved results-again.png..."]
    read_pixels("results-again.png")
