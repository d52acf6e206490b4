import pytest

from pyimagesearch.errors import UserError, run


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no data: run prepare_dataset.py"), "no data: run prepare_dataset.py"),
        (OSError(28, "No space left on device", "output/a.pth"), "output/a.pth: No space left"),
    ],
)
def test_what_the_user_can_put_right_ends_in_one_line(monkeypatch, error, line):
    monkeypatch.setattr("sys.stdout.reconfigure", lambda **options: None, raising=False)
    with pytest.raises(SystemExit) as stop:
        run(lambda: fail(error))
    assert stop.value.code.startswith(f"[ERROR] {line}")


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.stdout.reconfigure", lambda **options: None, raising=False)
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
