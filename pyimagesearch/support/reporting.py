"""The report on the test images."""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, classification_report

from pyimagesearch import config

from . import figures, processes, tables
from .files import remove_result, write_result

# test images of a class below which its numbers say little
FEW_IMAGES = 10


def save_report(ds, preds, probs, folder=None):
    """Print scikit-learn's classification report, and save it with the confusion matrix, a table of
    all predictions, the surest mistakes first, and these as pictures.

    ds: an ImageFolder. preds, probs: the predicted class index of each of its images and its
    probability. folder: where to save them, if not where config.py says. Other ranks save nothing.
    """
    if processes.get_rank() > 0:
        return
    classes = [figures.make_printable(name) for name in ds.classes]
    report = format_report(ds.targets, preds, classes)
    print(report)
    write_result(place(config.REPORT_PATH, folder), report.encode())
    plot_confusion(place(config.CONFUSION_PATH, folder), ds.targets, preds, classes)
    rows = []
    for (path, target), pred, prob in zip(ds.samples, preds, probs, strict=True):
        # rounded, as several processes compute in other batches
        rows.append((path, classes[target], classes[pred], round(prob, 4)))
    rows.sort(key=rank_prediction)
    tables.write_predictions(place(config.PREDICTIONS_PATH, folder), rows)
    mistakes = [row for row in rows if row[1] != row[2]]
    print(f"[INFO] mistakes on the test set: {len(mistakes)} of {len(rows)}...")
    plot_mistakes(place(config.MISTAKES_PATH, folder), mistakes[: figures.MAX_PICTURES], ds.root)


def rank_prediction(row):
    """Return by what rows of tables.write_predictions() are sorted: mistakes first, the surest
    first, those that are as sure as each other by their paths."""
    (path, true, pred, prob) = row
    return (true == pred, -prob, path)


def place(path, folder):
    """Return where to save what config.py has at path: in folder, if one is given."""
    return os.path.join(folder, os.path.basename(path)) if folder else path


def format_report(targets, preds, classes):
    """Return the text of the report on class indices: the true ones and the predicted ones."""
    labels = range(len(classes))
    report = classification_report(
        targets, preds, labels=labels, target_names=classes, zero_division=0
    )
    counts = np.bincount(targets, minlength=len(classes))
    baseline = counts.max() / counts.sum()
    report += f"\nbaseline (always the largest class): accuracy {baseline:.2f}\n"
    few = [classes[label] for label in labels if counts[label] < FEW_IMAGES]
    if few:
        report += f"too few test images to judge (under {FEW_IMAGES}): {', '.join(few)}\n"
    return report


def plot_mistakes(path, rows, root):
    """Save the photographs of rows, of tables.write_predictions(), as pictures to path; where there
    are none, leave no picture of an earlier report there. root: of their paths in the titles."""
    if not rows:
        remove_result(path)
        return
    pictures = []
    titles = []
    for image, true, pred, prob in rows:
        pictures.append(figures.load_picture(image))
        # two digits, cut off, as 1.00 would look certain
        digits = f"{prob:.4f}"[:4]
        name = os.path.relpath(image, root)
        titles.append(f"labelled {true},\npredicted {pred} {digits}\n{name}")
    figures.plot_pictures(path, pictures, titles)


@figures.own_style()
def plot_confusion(path, targets, preds, classes):
    """Draw the confusion matrix of class indices to path, in percent of the true class."""
    side = 2 + min(0.7 * len(classes), 40)
    (figure, axes) = plt.subplots(figsize=(side, side))
    ConfusionMatrixDisplay.from_predictions(
        targets,
        preds,
        labels=range(len(classes)),
        display_labels=classes,
        normalize="true",
        # with more classes the numbers would be too small to read
        include_values=len(classes) <= 50,
        values_format=".0%",
        xticks_rotation=45,
        cmap="Blues",
        # pale enough for black numbers everywhere
        im_kw={"vmin": 0, "vmax": 1.5},
        text_kw={"color": "black"},
        colorbar=False,
        ax=axes,
    )
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    if len(classes) > 100:
        # and the names
        axes.set(xticks=[], yticks=[])
    figures.save_figure(figure, path)
