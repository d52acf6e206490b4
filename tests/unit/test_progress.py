"""How far long work is: a bar on a terminal, a line a minute in a log."""

import io
import sys

import pytest
import tqdm.std

from pyimagesearch.support import processes, progress


@pytest.fixture
def clock(monkeypatch):
    """Have a clock that only the test moves; return it, a list of one number of seconds."""
    seconds = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: seconds[0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def work(clock, count, seconds):
    """Do count items of work, each of which takes so many seconds; return what was done."""
    done = []
    for item in progress.progress(range(count), "copying", "images"):
        clock[0] += seconds
        done.append(item)
    return done


def test_a_log_has_a_line_a_minute_that_says_how_far_and_how_long_still(clock, capsys):
    assert work(clock, 13, 25) == list(range(13))
    (out, err) = capsys.readouterr()
    lines = ["3 of 13 images, 04:10 left", "6 of 13 images, 02:55 left"]
    lines += ["9 of 13 images, 01:40 left", "12 of 13 images, 00:25 left"]
    assert out.splitlines() == [f"[INFO] copying: {line}..." for line in lines]
    assert err == ""


def test_work_of_less_than_a_minute_leaves_nothing_in_a_log(clock, capsys):
    work(clock, 50, 1)
    assert capsys.readouterr() == ("", "")


def test_a_resumed_training_counts_all_epochs_and_its_own_lines_are_printed_once(clock, capsys):
    epochs = progress.progress(range(2, 5), "all epochs", "epochs", initial=2, total=5)
    for epoch in epochs:
        clock[0] += 100
        epochs.write(f"EPOCH {epoch + 1}")
    (out, err) = capsys.readouterr()
    lines = ["EPOCH 3", "[INFO] all epochs: 3 of 5 epochs, 03:20 left..."]
    lines += ["EPOCH 4", "[INFO] all epochs: 4 of 5 epochs, 01:40 left..."]
    # the end says itself
    assert out.splitlines() == [*lines, "EPOCH 5"]
    assert err == ""


def test_other_ranks_print_nothing(clock, monkeypatch, capsys):
    monkeypatch.setattr(processes, "get_rank", lambda: 1)
    assert work(clock, 5, 100) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_and_no_lines(clock, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    work(clock, 5, 100)
    assert "copying: 100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_script_without_streams_works_all_the_same(clock, monkeypatch):
    # pythonw on Windows, or a service
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert work(clock, 5, 100) == list(range(5))
