# Progress bars, and the report and pictures in output/.

import csv
import io
import math
import os
import warnings
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, classification_report, confusion_matrix
from tqdm import tqdm

from . import config, devices
from .checkpoint import get_table_path, write_file
from .images import load_image

# pictures that results.png has room for: eight rows of four
MAX_PICTURES = 32
# longer side in pixels of a photograph that results.png shows
PICTURE_SIZE = 512


def progress(iterable, **options):
    """Return iterable with a progress bar on a terminal; no bar in log files or on other ranks."""
    # None: where there is a terminal
    disable = None if devices.get_rank() == 0 else True
    return tqdm(iterable, disable=disable, mininterval=1, **options)


def survive(draw):
    """Decorate draw(path, ...) to save the figure that it returns, or to say that it is missing."""

    @wraps(draw)
    def draw_and_save(path, *args, **options):
        try:
            # missing glyphs show as boxes
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            buffer = io.BytesIO()
            draw(path, *args, **options).savefig(buffer, format="png", bbox_inches="tight")
            write_file(path, buffer.getvalue())
            # without a screen matplotlib falls back to the backend agg, which cannot show
            if path == config.RESULTS_PATH and plt.get_backend().lower() != "agg":
                plt.show()
        except Exception as error:
            print(f"[INFO] {path} cannot be drawn ({error})...")
        plt.close("all")

    return draw_and_save


def write_table(path, rows):
    """Write rows, the first of them names, to path as CSV."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_file(path, table.getvalue().encode(errors="replace"))


def save_history(H):
    """Save the history H, a list per name with a value per epoch, as a table and as curves."""
    epochs = range(1, len(H["train_loss"]) + 1)
    write_table(get_table_path(), [["epoch", *H], *zip(epochs, *H.values(), strict=True)])
    plot_history(config.PLOT_PATH, H)


@survive
def plot_history(path, H):
    """Draw the four curves of the history H."""
    epochs = range(1, len(H["train_loss"]) + 1)
    with plt.style.context("ggplot"):
        (figure, axes) = plt.subplots()
        for name, values in H.items():
            # a single epoch is a point, which a line alone would not show
            axes.plot(epochs, values, label=name, marker="o" if len(epochs) == 1 else None)
        axes.set_title("Training Loss and Accuracy on Dataset")
        axes.set_xlabel("Epoch #")
        axes.set_ylabel("Loss/Accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        # under the axes, where it covers no curve
        axes.legend(loc="lower left", bbox_to_anchor=(0, -0.25), ncols=len(H))
    return figure


def save_report(ds, preds, folder=None):
    """Print scikit-learn's classification report; save it, the confusion matrix, a table of all
    predictions, the surest mistakes first, and these mistakes as pictures. ds: an ImageFolder.
    preds: the predicted class index of each of its images, and its probability. folder: where to
    write, instead of the folders in config.py."""
    paths = [getattr(config, f"{n}_PATH") for n in "REPORT PREDICTIONS MISTAKES CONFUSION".split()]
    if folder:
        paths = [os.path.join(folder, os.path.basename(path)) for path in paths]
    (reportPath, tablePath, mistakesPath, confusionPath) = paths
    (classes, labels) = (ds.classes, [label for label, _ in preds])
    # a class that was never predicted has precision 0, without a warning
    options = {"labels": range(len(classes)), "target_names": classes, "zero_division": 0}
    report = classification_report(ds.targets, labels, **options)
    print(report)
    write_file(reportPath, report.encode())
    rows = []
    for (path, target), (label, p) in zip(ds.samples, preds, strict=True):
        # rounded, as several processes compute in other batches
        rows.append((path, classes[target], classes[label], f"{p:.4f}"))
    rows.sort(key=lambda row: (row[1] == row[2], -float(row[3]), row[0]))
    write_table(tablePath, [("path", "true class", "predicted class", "probability"), *rows])
    mistakes = [row for row in rows if row[1] != row[2]]
    titles = []
    for path, true, pred, p in mistakes:
        titles.append(f"{true},\nnot {pred} {float(p):.2f}\n{os.path.basename(path)}")
    if mistakes:
        plot_pictures(mistakesPath, [row[0] for row in mistakes], titles)
    else:
        print(f"[INFO] no mistakes on the test set: no {mistakesPath}...")
    plot_confusion(confusionPath, ds.targets, labels, classes)


@survive
def plot_confusion(path, targets, preds, classes):
    """Draw the confusion matrix of class indices: counts and row percentages."""
    counts = confusion_matrix(targets, preds, labels=range(len(classes)))
    # a class without images has no shares
    rates = counts / counts.sum(1, keepdims=True).clip(1)
    display = ConfusionMatrixDisplay(rates, display_labels=classes)
    side = 2 + min(0.7 * len(classes), 40)
    (figure, axes) = plt.subplots(figsize=(side, side))
    # of more classes than this, numbers could not be read
    isLegible = len(classes) <= 50
    options = {"cmap": "Blues", "im_kw": {"vmin": 0, "vmax": 1}, "xticks_rotation": 45}
    display.plot(include_values=isLegible, colorbar=False, ax=axes, **options)
    if isLegible:
        for text, count, rate in zip(display.text_.flat, counts.flat, rates.flat, strict=True):
            text.set_text(f"{count}\n{rate:.0%}" if count else "")
            text.set_color("white" if rate > 0.5 else "black")
    accuracy = np.trace(counts) / counts.sum()
    axes.set_title(f"Test accuracy {accuracy:.2f}\nimages, and percent of the true class")
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor", parse_math=False)
    plt.setp(axes.get_yticklabels(), parse_math=False)
    if len(classes) > 100:
        # nor could the names be
        axes.set(xticks=[], yticks=[])
    return figure


def mark_hit(axes, hit):
    """Frame the picture in axes in green with a tick if hit is true, else in red with a cross."""
    (mark, colour) = ("✓", "tab:green") if hit else ("✗", "tab:red")
    axes.axis("on")
    axes.spines[:].set(color=colour, linewidth=5)
    box = {"facecolor": colour, "edgecolor": "none"}
    place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.97, 0.97, mark, color="white", fontsize=16, bbox=box, **place)


@survive
def plot_pictures(path, imagePaths, titles, hits=None):
    """Draw a grid of the first MAX_PICTURES images, in their own proportions, and print how many.
    titles: a text for each. hits: whether each prediction is right, None if that is not known."""
    imagePaths = imagePaths[:MAX_PICTURES]
    columns = min(4, math.ceil(math.sqrt(len(imagePaths))))
    rows = math.ceil(len(imagePaths) / columns)
    options = {"figsize": (3.5 * columns, 4 * rows), "layout": "constrained", "squeeze": False}
    # ticks, though invisible, would take half of the time
    options["subplot_kw"] = {"xticks": [], "yticks": []}
    (figure, grid) = plt.subplots(rows, columns, **options)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes in grid.flat:
        axes.axis("off")
    for axes, imagePath, title in zip(grid.flat, imagePaths, titles, strict=False):
        picture = load_image(imagePath, PICTURE_SIZE // 3)
        picture.thumbnail([PICTURE_SIZE] * 2)
        axes.imshow(picture, interpolation="bilinear")
        # a file name may hold undecodable bytes, and be too long to stand over a picture
        lines = title.encode(errors="replace").decode().split("\n")
        lines = [line if len(line) <= 32 else f"{line[:15]}…{line[-16:]}" for line in lines]
        axes.set_title("\n".join(lines), fontsize=11, parse_math=False)
    for axes, hit in zip(grid.flat, hits or [], strict=False):
        mark_hit(axes, hit)
    print(f"[INFO] {path} shows {len(imagePaths)} of {len(titles)} images...")
    return figure
