"""The tables in output/, as a spreadsheet and pandas read them."""

import codecs
import csv
import io
import os
from contextlib import contextmanager

from pyimagesearch import config

from . import files, processes


def format_rows(rows):
    """Return rows of plain values as the bytes of a table."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    # a file name may hold bytes that are no character
    return table.getvalue().encode(errors="replace")


def write_table(path, rows):
    """Write rows, the names of the columns first, to path, or beside it where another program holds
    the table there. Return the path that was written."""
    # without this mark Excel takes accents for other letters
    return files.write_result(path, codecs.BOM_UTF8 + format_rows(rows))


def write_history(H):
    """Write a row for each epoch of the history H, a list per name with a value per epoch, in rank
    0 alone."""
    if processes.get_rank() > 0:
        return
    rows = [["epoch", *H]]
    for epoch, values in enumerate(zip(*H.values(), strict=True), start=1):
        rows.append([epoch, *values])
    write_table(config.HISTORY_PATH, rows)


def write_predictions(path, rows):
    """Write rows of (path, true class, predicted class, probability) to path."""
    table = [["path", "true class", "predicted class", "probability"]]
    for image, true, pred, prob in rows:
        table.append([image, true, pred, f"{prob:.4f}"])
    write_table(path, table)


@contextmanager
def open_photographs(numGuesses):
    """Begin the table of photographs, with so many classes for each, and yield it as a file. Raises
    UserError if another classification writes it."""
    folder = os.path.dirname(config.PHOTOGRAPHS_PATH) or "."
    files.lock_folder(folder, "another classification", name=".photographs.lock")
    numbers = range(1, numGuesses + 1)
    names = [f"class {number}" for number in numbers]
    probs = [f"probability {number}" for number in numbers]
    path = write_table(config.PHOTOGRAPHS_PATH, [["path", *names, *probs]])
    # kept open, as a training that starts meanwhile moves it; unbuffered, so that all rows are
    # there when the script is killed
    with open(path, "ab", buffering=0) as table:
        yield table


def append_photographs(table, imagePaths, guesses):
    """Write a row for each photograph into the table of open_photographs().

    guesses: a list of (class, probability) for each of imagePaths.
    """
    rows = []
    for imagePath, best in zip(imagePaths, guesses, strict=True):
        names = [name for name, _ in best]
        probs = [f"{prob:.4f}" for _, prob in best]
        rows.append([imagePath, *names, *probs])
    table.write(format_rows(rows))
