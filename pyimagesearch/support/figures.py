"""The figures in output/: curves and photographs."""

import io
import math
import os
import re
import sys
import textwrap
import warnings
from contextlib import contextmanager

from pyimagesearch import config

# a script that a notebook starts has the notebook's backend, which shows nothing in another process
# and may not be installed for it
if "IPython" not in sys.modules and os.environ.get("MPLBACKEND", "").startswith("module://"):
    os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.ticker import MaxNLocator

from . import processes
from .files import write_result
from .images import load_image

# of the history, in the order of the tutorial
CURVES = ("train_loss", "train_acc", "val_loss", "val_acc")
# pictures in one file, eight rows of four
MAX_PICTURES = 32
# the longer side of a photograph in such a file, in pixels
PICTURE_SIZE = 512
# fonts of Linux, Windows and macOS with Chinese, Japanese and Korean letters
FONTS = ("Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Malgun Gothic", "PingFang HK")


@contextmanager
def own_style():
    """Draw in matplotlib's own style, whatever a matplotlibrc or a notebook has set, within the
    block: a dollar in a name begins no formula, and the fonts that are there are used."""
    installed = font_manager.get_font_names()
    fonts = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with plt.rc_context():
        plt.rcdefaults()
        plt.rcParams.update({"text.parse_math": False, "font.family": fonts})
        yield


def save_figure(figure, path):
    """Write figure to path as PNG; print which letters no font has."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True, action="always") as caught:
        # compressed little, as photographs hardly get smaller in four times the time
        figure.savefig(buffer, format="png", bbox_inches="tight", pil_kwargs={"compress_level": 1})
    texts = " ".join(str(warning.message) for warning in caught)
    letters = sorted({chr(int(number)) for number in re.findall(r"Glyph (\d+) ", texts)})
    if letters:
        print(f"[INFO] no font for {''.join(letters)}: install one, such as Noto Sans CJK...")
    saved = write_result(path, buffer.getvalue())
    print(f"[INFO] saved {saved}...")


@own_style()
def plot_history(H):
    """Save the curves of the history H, a list per name with a value per epoch, in rank 0 alone."""
    if processes.get_rank() > 0:
        return
    epochs = range(1, len(H["train_loss"]) + 1)
    # a single epoch is a point, which a line alone would not show
    marker = "o" if len(epochs) == 1 else None
    with plt.style.context("ggplot"):
        (figure, axes) = plt.subplots()
        for name in CURVES:
            axes.plot(epochs, H[name], label=name, marker=marker)
        limit_losses(axes, H)
        axes.set_title("Training Loss and Accuracy on Dataset")
        axes.set_xlabel("Epoch #")
        axes.set_ylabel("Loss/Accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.legend(loc="lower left", bbox_to_anchor=(0, -0.25), ncols=len(CURVES))
        save_figure(figure, config.PLOT_PATH)


def limit_losses(axes, H):
    """Cut off the curves above where most losses are, if one or a few would press all others flat;
    print that they are."""
    # the training loss may be infinite where fp16 overflows in a step
    losses = [loss for loss in H["train_loss"] + H["val_loss"] if math.isfinite(loss)]
    limit = max(1.1, 2 * float(np.percentile(losses, 75)))
    if max(losses) > 2 * limit:
        axes.set_ylim(0, limit)
        print(
            f"[INFO] the plot is cut off at {limit:.2f}: the highest loss is {max(losses):.2f}..."
        )


def load_picture(path):
    """Return the photograph at path as a PIL image of at most PICTURE_SIZE pixels a side."""
    # load_image() keeps three times as many pixels
    picture = load_image(path, PICTURE_SIZE // 3)
    picture.thumbnail([PICTURE_SIZE] * 2)
    return picture


@own_style()
def plot_pictures(path, pictures, titles, hits=None, isShown=False):
    """Save a grid of pictures, PIL images or arrays (H, W, 3), to path.

    titles: a text for each. hits: whether each prediction is right, for a green title, else a red
    one. isShown: whether to open a window too, where a screen is there, until the user closes it.
    """
    columns = min(4, math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    (figure, grid) = plt.subplots(
        rows,
        columns,
        figsize=(3.5 * columns, 4 * rows),
        layout="constrained",
        squeeze=False,
        # ticks, though invisible, would take half of the time
        subplot_kw={"xticks": [], "yticks": []},
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes in grid.flat:
        axes.axis("off")
    # the last places of the grid may stay empty
    for number, (axes, picture) in enumerate(zip(grid.flat, pictures, strict=False)):
        axes.imshow(picture, interpolation="bilinear")
        lines = make_printable(titles[number]).split("\n")
        title = "\n".join(textwrap.fill(line, 32) for line in lines)
        colour = "black"
        if hits:
            colour = "green" if hits[number] else "red"
        axes.set_title(title, fontsize=11, color=colour)
    save_figure(figure, path)
    # without a screen matplotlib falls back to the backend agg, which cannot show
    if isShown and plt.get_backend().lower() != "agg":
        print("[INFO] close the window to end the script...")
        plt.show()


def make_printable(text):
    """Return text with a question mark for each byte of a file name that is no character."""
    return text.encode(errors="replace").decode()
