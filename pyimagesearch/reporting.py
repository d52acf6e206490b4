# Progress bars, and the report and pictures in output/.

# import the necessary packages
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
    """A progress bar on a terminal; no bar in log files or on other ranks."""

    def __init__(self, *args, **options):
        # None: where there is a terminal
        disable = None if devices.get_rank() == 0 else True
        super().__init__(*args, disable=disable, mininterval=1, **options)


class BatchProgress(Progress):
    """The batches of a loader, with a progress bar over the images of all processes."""

    def __init__(self, loader, desc):
        (self.loader, self.worldSize) = (loader, devices.get_world_size())
        total = len(loader.sampler) * self.worldSize
        # short enough for a terminal of 80 columns
        form = "{desc}: {percentage:3.0f}%|{bar}| [{remaining}, {rate_fmt}{postfix}]"
        super().__init__(total=total, desc=desc, unit=" images", bar_format=form, leave=False)

    def __iter__(self):
        with self:
            for x, y in self.loader:
                self.count = len(y) * self.worldSize
                yield x, y

    def show(self, totalLoss, correct):
        """Advance by a batch; once a second show the means of these sums, 0-dimensional tensors."""
        # only when the bar is drawn: calling .item() at every step would stall the GPU
        if self.update(self.count):
            seen = self.n / self.worldSize
            (loss, accuracy) = (totalLoss.item() / seen, correct.item() / seen)
            self.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}")


def save_figure(figure, path):
    """Write figure to path as a PNG."""
    # missing glyphs show as boxes
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    write_file(path, buffer.getvalue())


def plot_history(H):
    """Save the four curves of history H to PLOT_PATH, and beside it as CSV with a row per epoch.

    H: dict of train_loss, train_acc, val_loss and val_acc, a list each with a value per epoch.
    """
    epochs = range(1, len(H["train_loss"]) + 1)
    rows = [["epoch", *H], *zip(epochs, *H.values(), strict=True)]
    table = "".join(f"{','.join(map(str, row))}\n" for row in rows)
    write_file(get_table_path(), table.encode())
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
    """Print scikit-learn's classification report, and save it and the confusion matrix.

    targets, preds: true and predicted class index of each image. classes: the names of the classes.
    """
    labels = range(len(classes))
    # a class that was never predicted has precision 0, without a warning
    options = {"labels": labels, "target_names": classes, "zero_division": 0}
    report = classification_report(targets, preds, **options)
    print(report)
    write_file(config.REPORT_PATH, report.encode())
    plot_confusion(targets, preds, classes)


def plot_confusion(targets, preds, classes):
    """Save the confusion matrix, counts and row percentages, to CONFUSION_PATH; see save_report."""
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
    """Save a grid of the first MAX_PICTURES pictures to RESULTS_PATH; show it on a screen.

    pictures: arrays (H, W, 3) of floats from 0 to 1, or PIL images; those after MAX_PICTURES may be
    missing. titles: text for each. hits: whether each prediction is right, None if not known.
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
