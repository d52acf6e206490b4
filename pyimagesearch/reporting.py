# What a run tells: its progress, and the report and pictures in output/.

# import the necessary packages
import csv
import io
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, classification_report, confusion_matrix
from tqdm import tqdm

from . import config, devices
from .checkpoint import get_table_path, write_file

# pictures that results.png has room for: eight rows of four
MAX_PICTURES = 32
# longer side in pixels of a photograph that results.png shows
PICTURE_SIZE = 512


class Progress(tqdm):
    """A progress bar on a terminal; a log file, and all processes but the first, go without."""

    def __init__(self, *args, **options):
        # None: where there is a terminal
        disable = None if devices.is_main_process() else True
        super().__init__(*args, disable=disable, mininterval=1, **options)


class BatchProgress(Progress):
    """A progress bar over the images of loader, with mean loss and accuracy."""

    def __init__(self, loader, desc):
        total = len(loader.sampler) * devices.get_world_size()
        # short enough for a terminal of 80 columns
        form = "{desc}: {percentage:3.0f}%|{bar}| [{remaining}, {rate_fmt}{postfix}]"
        super().__init__(total=total, desc=desc, unit=" images", bar_format=form, leave=False)

    def show(self, count, totalLoss, correct):
        """Advance by a batch of count images; once a second show mean loss and accuracy.

        Args:
            count: number of images of this process's batch; the bar counts those of all processes.
            totalLoss: 0-dimensional tensor, the sum of the losses of all images so far.
            correct: 0-dimensional tensor, how many images were classified right so far.
        """
        # only when the bar is drawn: calling .item() at every step would stall the GPU
        if self.update(count * devices.get_world_size()):
            seen = self.n / devices.get_world_size()
            (loss, accuracy) = (totalLoss.item() / seen, correct.item() / seen)
            self.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}")


def save_figure(figure, path):
    """Write figure to path as a PNG."""
    # letters that the font lacks show as boxes
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    write_file(path, buffer.getvalue())


def save_history(H):
    """Save history H beside the plot, as CSV with a row per epoch; see plot_history."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["epoch", *H])
    for epoch, values in enumerate(zip(*H.values(), strict=True), start=1):
        writer.writerow([epoch, *values])
    write_file(get_table_path(), table.getvalue().encode())


def plot_history(H):
    """Save the four curves of history H to PLOT_PATH.

    H: dict of train_loss, train_acc, val_loss and val_acc, a list each with a value per epoch.
    """
    epochs = np.arange(1, len(H["train_loss"]) + 1)
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
        save_figure(figure, config.PLOT_PATH)
    plt.close(figure)


def save_report(targets, preds, classes):
    """Print scikit-learn's classification report, and save it to REPORT_PATH.

    Args:
        targets, preds: true and predicted class index of each image.
        classes: the class names, in the order of the indices.
    """
    report = classification_report(
        targets,
        preds,
        labels=range(len(classes)),
        target_names=classes,
        # a class that was never predicted has precision 0, without a warning
        zero_division=0,
    )
    print(report)
    write_file(config.REPORT_PATH, report.encode())


def plot_confusion(targets, preds, classes):
    """Save the confusion matrix to CONFUSION_PATH: of the images of each class, how many were
    taken for which, and their share; see save_report."""
    counts = confusion_matrix(targets, preds, labels=range(len(classes)))
    # a class without images has no shares
    rates = counts / counts.sum(1, keepdims=True).clip(1)
    display = ConfusionMatrixDisplay(rates, display_labels=classes)
    side = 2 + min(0.7 * len(classes), 40)
    (figure, axes) = plt.subplots(figsize=(side, side))
    # of more classes than this, numbers could not be read
    isLegible = len(classes) <= 50
    display.plot(
        include_values=isLegible,
        cmap="Blues",
        im_kw={"vmin": 0, "vmax": 1},
        colorbar=False,
        xticks_rotation=45,
        ax=axes,
    )
    if isLegible:
        for text, count, rate in zip(display.text_.flat, counts.flat, rates.flat, strict=True):
            text.set_text(f"{count}\n{rate:.0%}" if count else "")
            text.set_color("white" if rate > 0.5 else "black")
    accuracy = np.trace(counts) / counts.sum()
    axes.set_title(f"Test accuracy {accuracy:.2f}\nimages, and percent of the true class")
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor", parse_math=False)
    plt.setp(axes.get_yticklabels(), parse_math=False)
    save_figure(figure, config.CONFUSION_PATH)
    plt.close(figure)


def shorten(line):
    """Return line, or its two ends if it is too long to stand over a picture."""
    return line if len(line) <= 32 else f"{line[:15]}…{line[-16:]}"


def mark_hit(axes, hit):
    """Frame the picture in axes in green with a tick if hit is true, else in red with a cross."""
    (mark, colour) = ("✓", "tab:green") if hit else ("✗", "tab:red")
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=5)
    box = {"facecolor": colour, "edgecolor": "none"}
    place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.97, 0.97, mark, color="white", fontsize=16, bbox=box, **place)


def plot_predictions(pictures, titles, hits=None):
    """Save a grid of pictures with their titles to RESULTS_PATH; show it where there is a screen.

    The first MAX_PICTURES are shown.

    Args:
        pictures: arrays (H, W, 3) of floats from 0 to 1, or PIL images; those after MAX_PICTURES
            may be missing.
        titles: a string of two lines for each.
        hits: whether the prediction is right, for each; None where that is not known.
    """
    pictures = pictures[:MAX_PICTURES]
    columns = min(4, math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    (figure, grid) = plt.subplots(
        rows, columns, squeeze=False, figsize=(3.5 * columns, 4 * rows), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, interpolation="bilinear")
        title = "\n".join(shorten(line) for line in title.split("\n"))
        # a file name may hold bytes that are no text
        title = title.encode(errors="replace").decode()
        axes.set_title(title, fontsize=11, parse_math=False)
    for axes, hit in zip(grid.flat, hits or [], strict=False):
        mark_hit(axes, hit)
    save_figure(figure, config.RESULTS_PATH)
    print(f"[INFO] {config.RESULTS_PATH} shows {len(pictures)} of {len(titles)} images...")
    # without a screen matplotlib falls back to the backend agg, which cannot show
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)
