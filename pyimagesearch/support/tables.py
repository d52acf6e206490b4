"""The tables in output/, as a spreadsheet and pandas read them."""

import codecs
import csv
import io
import shutil

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


def append_rows(path, rows):
    """Write more rows into the table at path, which is whole again then, or into a copy beside it
    where another program holds the table. Return the path that was written."""

    def append(path):
        # unbuffered: all of it at once
        with open(path, "ab", buffering=0) as file:
            file.write(format_rows(rows))

    try:
        files.retry(append, path)
        return path
    except PermissionError:
        other = files.name_again(path)
        shutil.copyfile(path, other)
        print(f"[INFO] {path} is open in another program: its new version is {other}...")
        append(other)
        return other


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


def begin_photographs(numGuesses):
    """Write the names of the columns of the table of photographs, with so many classes each; return
    the path of the table."""
    numbers = range(1, numGuesses + 1)
    names = [f"class {number}" for number in numbers]
    probs = [f"probability {number}" for number in numbers]
    return write_table(config.PHOTOGRAPHS_PATH, [["path", *names, *probs]])
