"""How a script starts and ends: errors, Ctrl-C, notebooks."""

import importlib
import io
import signal
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout

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
