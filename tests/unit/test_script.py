"""How a script starts and ends: errors, Ctrl-C, notebooks."""

import gc
import importlib
import io
import logging
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout
from helpers import PROJECT, run_python
from tqdm import tqdm

from pyimagesearch import config
from pyimagesearch.support import files, processes, script
from pyimagesearch.support.errors import ImageError, UserError
from pyimagesearch.support.script import get_message, run


@pytest.fixture
def notebook(monkeypatch):
    """Have the test run in a notebook."""
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))


def read_end(error):
    """End a script with an error; return its line, for which Python's own status is 1."""
    with pytest.raises(SystemExit) as stop:
        run(Mock(side_effect=error), advice="")
    return stop.value.code


def test_a_user_error_is_one_line_of_one_process_and_other_errors_keep_their_traceback(monkeypatch):
    assert read_end(UserError("no data; prepare it")) == "[ERROR] no data; prepare it"
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, advice="")
    monkeypatch.setattr(processes, "get_rank", lambda: 1)
    monkeypatch.setattr(script, "distributed", group := Mock())
    assert read_end(UserError("no data; prepare it")) == 1
    assert read_end(ImageError("a.jpg: broken")) == "[ERROR] a.jpg: broken"
    # a lost process would not answer
    group.destroy_process_group.assert_not_called()
    run(Mock(), advice="")
    group.destroy_process_group.assert_called_once()


def test_an_image_error_of_a_worker_is_one_line_without_the_workers_traceback():
    text = "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    text += "pyimagesearch.support.errors.ImageError: a.jpg: cannot be read\n"
    assert read_end(ImageError(text)) == "[ERROR] a.jpg: cannot be read"


def test_a_message_is_that_of_the_error_without_the_traceback_before_it():
    assert get_message(UserError("no data; prepare it")) == "no data; prepare it"
    text = "Caught\nsupport.errors.ImageError: first\nsupport.errors.ImageError: a.jpg: broken\n"
    assert get_message(ImageError(text)) == "a.jpg: broken"


def get_handler():
    """Return the handler of Ctrl-C that a script has while it runs."""
    handlers = []
    run(lambda: handlers.append(signal.getsignal(signal.SIGINT)), advice="")
    return handlers[0]


def test_ctrl_c_is_left_to_torchrun_the_shell_and_the_notebook(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        # its processes and workers end at once, as a Python handler waits for its turn
        assert get_handler() == signal.SIG_DFL
    with monkeypatch.context() as patch:
        # as Kubeflow starts it
        patch.setenv("RANK", "0")
        assert get_handler() == signal.SIG_DFL
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert get_handler() == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    # a script that has ended leaves the handler that was there
    read_end(UserError("no data"))
    assert signal.getsignal(signal.SIGINT) == before


def test_in_a_notebook_ctrl_c_stays_keyboard_interrupt(notebook):
    before = signal.getsignal(signal.SIGINT)
    assert get_handler() is before
    with pytest.raises(KeyboardInterrupt):
        run(lambda: signal.raise_signal(signal.SIGINT), advice="")


def test_scripts_run_in_a_notebook_any_number_of_times(train, monkeypatch):
    for _ in range(2):
        # without reconfigure(), as in Jupyter
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        run(lambda: train("--epochs", "1"), advice="")
        # the lock of the first run does not stop the second in the same process
        assert config.MODEL_PATH in sys.stdout.getvalue()


def test_python_looks_through_no_import_at_the_end_of_a_script_but_a_notebook_goes_on(notebook):
    counts = []
    run(lambda: counts.append(gc.get_freeze_count()), advice="")
    del sys.modules["IPython"]
    run(lambda: counts.append(gc.get_freeze_count()), advice="")
    assert counts[0] == 0 < counts[1]


IMPORTING = """
import builtins, gc, runpy, sys
from pyimagesearch.support import script

found = []
original = builtins.__import__


def note_import(name, globals=None, *rest):
    # the first import of each script
    if name == "argparse" and globals["__name__"] in ("elsewhere", "__main__"):
        found.append(gc.isenabled())
    return original(name, globals, *rest)


builtins.__import__ = note_import
script.run = lambda main, advice: None
(name,) = sys.argv[1:]
runpy.run_path(name, run_name="elsewhere")
runpy.run_path(name, run_name="__main__")
print(*found)
"""


@pytest.mark.parametrize(
    "name", ["prepare_dataset.py", "train_distributed.py", "distributed_inference.py"]
)
def test_a_script_searches_for_no_garbage_while_it_imports(name):
    # one that is imported, as by a test, leaves Python as it is
    assert run_python("-c", IMPORTING, PROJECT / name).stdout.split() == ["True", "False"]


def test_python_searches_for_garbage_once_main_runs(notebook):
    found = []
    gc.disable()
    run(lambda: found.append(gc.isenabled()), advice="")
    gc.disable()
    del sys.modules["IPython"]
    run(lambda: found.append(gc.isenabled()), advice="")
    assert found == [True, True]


@pytest.mark.parametrize("error", [None, UserError("no data"), ZeroDivisionError()])
def test_what_a_script_locked_is_free_for_others_at_its_end_also_after_an_error(error):
    def main():
        files.lock_folder("output", "another training")
        with pytest.raises(Timeout):
            FileLock("output/.lock").acquire(blocking=False)
        if error:
            raise error

    if error:
        with pytest.raises((SystemExit, ZeroDivisionError)):
            run(main, advice="")
    else:
        run(main, advice="")
    with FileLock("output/.lock", blocking=False) as lock:
        assert lock.is_locked


def test_a_script_that_runs_again_has_config_py_as_it_is_and_no_flags_of_the_last_time(monkeypatch):
    monkeypatch.setattr(script, "reload", importlib.reload)
    seen = []
    for _ in range(2):
        run(lambda: seen.append(config.EPOCHS), advice="")
        config.EPOCHS = 7
    assert seen == [20, 20]


def test_any_file_name_can_be_printed_and_each_line_is_in_the_log_at_once(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    run(lambda: print("pâté \udcff.jpg"), advice="")
    assert stdout.buffer.getvalue().strip() == rb"p\xe2t\xe9 \udcff.jpg"


def open_pipe():
    """Return (reader, writer) of a pipe, whose reader may go as that of | head."""
    return os.pipe()


def open_terminal():
    """Return (reader, writer) of a terminal, whose window may be closed."""
    return pty.openpty()


def open_full_disk():
    """Return (reader, writer) of a log file whose disk is full."""
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


def print_all(reader):
    """Print in every way there is, after reader is closed."""
    print("a line")
    os.close(reader)
    print("a" * 100000)
    print("without an end", end="")
    logging.warning("of a library")
    warnings.warn("of another", stacklevel=1)
    bar = tqdm(range(3), mininterval=0)
    for _ in bar:
        bar.write("a line")
    # forked, as the workers are
    worker = multiprocessing.get_context("fork").Process(target=print, args=("of a worker",))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    Path("trained").touch()


def print_to(reader, writer):
    """Run print_all() as a script whose stdout and stderr are writer."""
    for number in (1, 2):
        os.dup2(writer, number)
    os.close(writer)
    (sys.stdout, sys.stderr) = (open(1, "w", closefd=False), open(2, "w", closefd=False))
    warnings.simplefilter("always")
    run(lambda: print_all(reader), advice="")


@pytest.mark.parametrize("open_output", [open_pipe, open_terminal, open_full_disk])
def test_output_that_cannot_be_written_is_dropped(open_output):
    (reader, writer) = open_output()
    script = multiprocessing.get_context("fork").Process(target=print_to, args=(reader, writer))
    script.start()
    os.close(reader)
    os.close(writer)
    script.join(60)
    assert script.exitcode == 0
    assert Path("trained").exists()


FAILING = """
import sys
from pyimagesearch.support import script
from pyimagesearch.support.errors import UserError

def main():
    print("a line")
    print("without an end", end="", file=sys.stderr)
    raise UserError("no data")

script.run(main, advice="")
"""


def test_output_that_cannot_be_written_changes_no_status():
    command = [sys.executable, "-c", FAILING]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with open("/dev/full", "w") as full:
        # Python itself ends with 120 where it cannot write
        assert subprocess.call(command, stdout=full, stderr=full, env=env) == 1


def test_where_output_is_closed_a_script_prints_to_nothing(monkeypatch):
    def main():
        print("a line")
        tqdm.write("a line")
        for _ in tqdm(range(2)):
            pass

    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, None)
        run(main, advice="")
        for stream in (sys.stdout, sys.stderr):
            stream.close()


class SlowRaw(io.RawIOBase):
    """Takes a byte a time, and at first none, as a terminal that is non-blocking."""

    def __init__(self):
        super().__init__()
        self.answers = [None]
        self.taken = b""

    def writable(self):
        return True

    def write(self, data):
        if self.answers:
            return self.answers.pop()
        self.taken += bytes(data[:1])
        return 1


def test_output_that_is_slow_is_whole_and_a_full_terminal_drops_a_line(monkeypatch):
    raw = SlowRaw()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))

    def main():
        for number in range(3):
            print(f"line {number}")

    run(main, advice="")
    assert raw.taken.decode().split() == ["line", "1", "line", "2"]


def test_what_config_py_prints_comes_before_what_the_script_prints(monkeypatch):
    buffer = io.BytesIO()
    stdout = io.TextIOWrapper(io.BufferedWriter(buffer))
    monkeypatch.setattr(sys, "stdout", stdout)
    print("at the import")
    run(lambda: print("by the script"), advice="")
    assert buffer.getvalue().split(os.linesep.encode())[:2] == [b"at the import", b"by the script"]


def test_a_script_that_runs_twice_keeps_its_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    seen = []
    for _ in range(2):
        run(lambda: seen.append(sys.stdout), advice="")
    assert seen[0] is seen[1]


def test_ctrl_c_ends_a_script_whose_terminal_is_gone(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(os, "write", Mock(side_effect=OSError))
    get_handler()(signal.SIGINT, None)
    assert ended == [130]
