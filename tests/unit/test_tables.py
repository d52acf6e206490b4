"""The tables in output/: what a spreadsheet and pandas find in them."""

import csv
import errno
import os
from pathlib import Path

import pytest

from pyimagesearch import config
from pyimagesearch.support import files, processes, tables

H = {"rate": [0.0001, 1e-05], "train_loss": [1.5, 0.25], "val_acc": [0.5, 1.0], "seconds": [9, 8.5]}


def read_table(path):
    """Return the rows of a table as a program reads it that knows the mark at its beginning."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def test_the_history_has_a_row_for_each_epoch():
    tables.write_history(H)
    (header, *rows) = read_table(config.HISTORY_PATH)
    assert header == ["epoch", *H]
    assert rows[0] == ["1", "0.0001", "1.5", "0.5", "9"]
    assert [float(text) for text in rows[1]] == [2, 1e-05, 0.25, 1, 8.5]
    assert len(rows) == 2


def test_a_run_that_has_no_epoch_yet_has_a_header():
    tables.write_history({name: [] for name in H})
    assert read_table(config.HISTORY_PATH) == [["epoch", *H]]


def test_other_ranks_write_no_history(monkeypatch):
    monkeypatch.setattr(processes, "get_rank", lambda: 1)
    tables.write_history(H)
    assert not os.path.exists(config.HISTORY_PATH)


def test_names_of_any_kind_come_back_and_excel_sees_that_they_are_unicode():
    names = ['Crème "brûlée", 2.jpg', "寿司.jpg", "a,b;c.jpg"]
    tables.write_table("table.csv", [["path"], *([name] for name in names)])
    assert Path("table.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_table("table.csv") == [["path"], *([name] for name in names)]
    # a name that is no text
    tables.write_table("table.csv", [[os.fsdecode(b"caf\xe9.jpg")]])
    assert read_table("table.csv") == [["caf?.jpg"]]


@pytest.mark.parametrize("numGuesses", [2, 3])
def test_the_table_of_photographs_is_whole_after_each_batch(numGuesses):
    path = tables.begin_photographs(numGuesses)
    assert path == config.PHOTOGRAPHS_PATH
    (header,) = read_table(path)
    assert header[0] == "path"
    assert header[1:3] == ["class 1", "class 2"]
    assert header[-1] == f"probability {numGuesses}"
    assert len(header) == 1 + 2 * numGuesses
    rows = [[f"{number}é.jpg", *"abcdef"[: 2 * numGuesses]] for number in range(3)]
    tables.append_rows(path, rows[:2])
    assert read_table(path) == [header, *rows[:2]]
    tables.append_rows(path, rows[2:])
    assert read_table(path) == [header, *rows]
    # one mark, at the beginning
    assert Path(path).read_bytes().count(b"\xef\xbb\xbf") == 1
    # the next photographs have a table of their own
    tables.begin_photographs(numGuesses)
    assert read_table(path) == [header]


def test_rows_for_a_table_that_excel_holds_go_into_a_copy_beside_it(monkeypatch, capsys):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    path = tables.begin_photographs(2)
    tables.append_rows(path, [["1.jpg", "a", "b", "0.9", "0.1"]])
    before = Path(path).read_bytes()

    def open_or_refuse(name, mode, **options):
        if name == path and mode == "ab":
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return open(name, mode, **options)

    monkeypatch.setattr(tables, "open", open_or_refuse, raising=False)
    rows = [["2.jpg", "b", "a", "0.8", "0.2"], ["3.jpg", "b", "a", "0.7", "0.3"]]
    other = tables.append_rows(path, rows[:1])
    assert f"{path} is open in another program: its new version is {other}..." in (
        capsys.readouterr().out
    )
    assert tables.append_rows(other, rows[1:]) == other
    assert [row[0] for row in read_table(other)] == ["path", "1.jpg", "2.jpg", "3.jpg"]
    assert Path(path).read_bytes() == before
