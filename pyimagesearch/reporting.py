"""Progress bars, and the report and pictures in output/."""

import csv
import io
import math
import os
import re
import textwrap
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, classification_report
from tqdm import tqdm

from . import config, devices
from .files import write_file
from .images import load_image

# pictures in one file, eight rows of four, and the longer side of a photograph in it, in pixels
(MAX_PICTURES, PICTURE_SIZE) = (32, 512)
# pictures do not depend on a matplotlibrc, a dollar in a name begins no formula, and Chinese,
# Japanese and Korean names are drawn in the fonts of Linux, Windows and macOS that are there
plt.rcdefaults()
FONTS = ("Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Malgun Gothic", "PingFang HK")
fonts = [name for name in FONTS if name in font_manager.get_font_names()]
plt.rcParams.update({"text.parse_math": False, "font.family": ["DejaVu Sans", *fonts]})


def progress(iterable, **options):
    """Return iterable with a progress bar on a terminal; no bar in log files or on other ranks."""
    return tqdm(iterable, disable=devices.get_rank() > 0 or None, mininterval=1, **options)


def save_figure(figure, path):
    """Write figure to path as PNG; print which letters no font has."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True, action="always") as caught:
        figure.savefig(buffer, format="png", bbox_inches="tight")
    texts = " ".join(str(warning.message) for warning in caught)
    letters = sorted({chr(int(number)) for number in re.findall(r"Glyph (\d+) ", texts)})
    if letters:
        print(f"[INFO] no font for {''.join(letters)}: install one, such as Noto Sans CJK...")
    write_file(path, buffer.getvalue())
    print(f"[INFO] saved {path}...")


def save_history(H):
    """Save the curves of the history H, a list per name with a value per epoch."""
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
        axes.legend(loc="lower left", bbox_to_anchor=(0, -0.25), ncols=len(H))
        save_figure(figure, config.PLOT_PATH)


def save_report(ds, preds, folder=None):
    """Print scikit-learn's classification report; save it, the confusion matrix, a table of all
    predictions, the surest mistakes first, and these as pictures. ds: an ImageFolder. preds: the
    predicted class index of each image and its probability. folder: instead of config.py's."""

    def place(path):
        return os.path.join(folder, os.path.basename(path)) if folder else path

    (classes, labels) = (list(map(make_printable, ds.classes)), [label for label, _ in preds])
    options = {"labels": range(len(classes)), "target_names": classes, "zero_division": 0}
    report = classification_report(ds.targets, labels, **options)
    counts = np.bincount(ds.targets, minlength=len(classes))
    report += f"\nalways answering the largest class: accuracy {counts.max() / counts.sum():.2f}\n"
    few = [name for name, count in zip(classes, counts, strict=True) if count < 10]
    if few:
        report += f"fewer than 10 test images, which say little: {', '.join(few)}\n"
    print(report)
    write_file(place(config.REPORT_PATH), report.encode())
    rows = []
    for (path, target), (label, p) in zip(ds.samples, preds, strict=True):
        # rounded, as several processes compute in other batches
        rows.append((path, classes[target], classes[label], f"{p:.4f}"))
    rows.sort(key=lambda row: (row[1] == row[2], -float(row[3]), row[0]))
    table = io.StringIO()
    names = ("path", "true class", "predicted class", "probability")
    csv.writer(table, lineterminator="\n").writerows([names, *rows])
    write_file(place(config.PREDICTIONS_PATH), table.getvalue().encode(errors="replace"))
    plot_confusion(place(config.CONFUSION_PATH), ds.targets, labels, classes)
    mistakes = [row for row in rows if row[1] != row[2]]
    print(f"[INFO] mistakes on the test set: {len(mistakes)} of {len(rows)}...")
    (pictures, titles) = ([], [])
    for path, true, pred, p in mistakes[:MAX_PICTURES]:
        pictures.append(load_picture(path))
        name = os.path.relpath(path, ds.root)
        titles.append(f"labelled {true},\npredicted {pred} {p[:4]}\n{name}")
    if mistakes:
        plot_pictures(place(config.MISTAKES_PATH), pictures, titles)


def plot_confusion(path, targets, preds, classes):
    """Draw the confusion matrix of class indices to path, in percent of the true class."""
    side = 2 + min(0.7 * len(classes), 40)
    (figure, axes) = plt.subplots(figsize=(side, side))
    options = {"labels": range(len(classes)), "display_labels": classes, "normalize": "true"}
    options.update(cmap="Blues", im_kw={"vmin": 0, "vmax": 1.5}, text_kw={"color": "black"})
    # of more classes than these, numbers could not be read, nor names
    options.update(include_values=len(classes) <= 50, values_format=".0%", xticks_rotation=45)
    ConfusionMatrixDisplay.from_predictions(targets, preds, ax=axes, colorbar=False, **options)
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    if len(classes) > 100:
        axes.set(xticks=[], yticks=[])
    save_figure(figure, path)


def load_picture(path):
    """Return the photograph at path as a PIL image of at most PICTURE_SIZE pixels a side."""
    picture = load_image(path, PICTURE_SIZE // 3)
    picture.thumbnail([PICTURE_SIZE] * 2)
    return picture


def plot_pictures(path, pictures, titles, hits=None):
    """Save a grid of pictures, PIL images or arrays (H, W, 3); show results.png where a screen is
    there. titles: a text for each, green where hits says that the prediction is right, else red."""
    columns = min(4, math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    options = {"figsize": (3.5 * columns, 4 * rows), "layout": "constrained", "squeeze": False}
    # ticks, though invisible, would take half of the time
    options["subplot_kw"] = {"xticks": [], "yticks": []}
    (figure, grid) = plt.subplots(rows, columns, **options)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes in grid.flat:
        axes.axis("off")
    colours = [("red", "green")[hit] for hit in hits] if hits else ["black"] * len(pictures)
    for axes, picture, title, colour in zip(grid.flat, pictures, titles, colours, strict=False):
        axes.imshow(picture, interpolation="bilinear")
        lines = [textwrap.fill(line, 32) for line in make_printable(title).split("\n")]
        axes.set_title("\n".join(lines), fontsize=11, color=colour)
    save_figure(figure, path)
    # without a screen matplotlib falls back to the backend agg, which cannot show
    if path == config.RESULTS_PATH and plt.get_backend().lower() != "agg":
        plt.show()


def make_printable(text):
    """Return text with a question mark for each byte of a file name that is no character."""
    return text.encode(errors="replace").decode()
