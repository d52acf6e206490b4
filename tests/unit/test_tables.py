"""The tables in output/: what a spreadsheet and pandas find in them."""

import csv
import os
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from helpers import hold

from pyimagesearch import config
from pyimagesearch.support import files, outputs, processes, tables
from pyimagesearch.support.errors import UserError

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
    path = config.PHOTOGRAPHS_PATH
    expected = []
    for _ in range(2):
        # the next photographs have a table of their own
        with tables.open_photographs(numGuesses) as table:
            (header,) = read_table(path)
            assert header[0] == "path"
            assert header[1:3] == ["class 1", "class 2"]
            assert header[-1] == f"probability {numGuesses}"
            assert len(header) == 1 + 2 * numGuesses
            expected = [header]
            for batch in (["1é.jpg", "2é.jpg"], ["3é.jpg"]):
                best = [("a", 0.91234), ("b", 0.05), ("c", 0.03)][:numGuesses]
                tables.append_photographs(table, batch, [best] * len(batch))
                for name in batch:
                    row = [name, *"abc"[:numGuesses], *["0.9123", "0.0500", "0.0300"][:numGuesses]]
                    expected.append(row)
                assert read_table(path) == expected
    # one mark, at the beginning
    assert Path(path).read_bytes().count(b"\xef\xbb\xbf") == 1


def test_a_table_that_a_training_moves_meanwhile_stays_whole():
    with tables.open_photographs(1) as table:
        tables.append_photographs(table, ["1.jpg"], [[("a", 0.9)]])
        folder = outputs.set_aside_run()
        tables.append_photographs(table, ["2.jpg"], [[("a", 0.8)]])
    assert not os.path.exists(config.PHOTOGRAPHS_PATH)
    rows = read_table(os.path.join(folder, "photographs.csv"))
    assert [row[0] for row in rows] == ["path", "1.jpg", "2.jpg"]


def test_a_second_classification_is_refused_and_a_training_is_not():
    with tables.open_photographs(1):
        with pytest.raises(Timeout):
            FileLock("output/.photographs.lock").acquire(blocking=False)
        outputs.lock_output()
    files.locks.close()
    with FileLock("output/.photographs.lock"):
        with pytest.raises(UserError, match="another classification is running in .*output"):
            with tables.open_photographs(1):
                pass


def test_photographs_go_into_a_table_beside_one_that_excel_holds(monkeypatch, capsys):
    files.write_file(config.PHOTOGRAPHS_PATH, b"of an earlier time")
    hold(monkeypatch, "photographs.csv")
    with tables.open_photographs(1) as table:
        tables.append_photographs(table, ["1.jpg"], [[("a", 0.9)]])
    assert f"its new version is {table.name}" in capsys.readouterr().out
    assert Path(config.PHOTOGRAPHS_PATH).read_bytes() == b"of an earlier time"
    assert [row[0] for row in read_table(table.name)] == ["path", "1.jpg"]
