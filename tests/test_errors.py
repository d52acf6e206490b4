import pytest
import torch

from pyimagesearch.errors import UserError, run


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no data: prepare it"), 1, "[ERROR] no data: prepare it"),
        (UserError("Caught\nTraceback\nerrors.UserError: a.jpg\n"), 1, "[ERROR] a.jpg"),
        (OSError(28, "No space left", "a.pth"), 1, "[ERROR] a.pth: No space left; "),
        (OSError("disk on fire"), 1, "[ERROR] disk on fire; "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "[ERROR] CUDA out of memory; "),
        (KeyboardInterrupt(), 130, "[INFO] interrupted: again"),
    ],
)
def test_what_the_user_can_put_right_ends_in_one_line(capsys, error, status, line):
    with pytest.raises(SystemExit) as stop:
        run(lambda: fail(error), goOn="again")
    assert stop.value.code == status
    stderr = capsys.readouterr().err.strip("\n")
    assert stderr.startswith(line)
    assert "\n" not in stderr


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, goOn="")
