"""Files on full, broken and simple disks, the lock of output/, and runs that are set aside."""

import errno
import fcntl
import os
import time
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

from pyimagesearch import checkpoint, config, files
from pyimagesearch.cli import UserError

import pytest
from filelock import FileLock, Timeout
from helpers import DEFAULTS, read_tree


def refuse(name):
    """Return a function that fails as a disk does, with the error of this name."""
    return Mock(side_effect=OSError(getattr(errno, name), name))


def test_a_file_is_the_old_one_until_the_new_one_is_whole():
    seen = []

    def interrupt():
        seen.append(read_tree())
        raise KeyboardInterrupt

    files.write_file("output/file.pth", b"old")
    with pytest.raises(KeyboardInterrupt):
        files.write_file("output/file.pth", b"new", interrupt)
    # complete beside it
    assert sorted(seen[0].values()) == [b"new", b"old"]
    assert read_tree() == {"file.pth": b"old"}
    with open("output/file.pth", "rb") as reader:
        files.write_file("output/file.pth", b"new")
        # who has begun to read the old one reads it to its end
        assert reader.read() == b"old"
    assert read_tree() == {"file.pth": b"new"}


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT"])
def test_a_disk_that_is_full_or_broken_costs_no_file_and_is_said(name, monkeypatch):
    files.write_file("file.pth", b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "fsync", refuse(name))
        files.write_file("file.pth", b"new")
    assert caught.value.errno == getattr(errno, name)
    assert read_tree(".") == {"file.pth": b"old"}


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_a_disk_that_knows_no_fsync_takes_the_file(name, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(name))
    files.write_file("output/file.pth", b"new")
    assert read_tree() == {"file.pth": b"new"}


def test_a_second_training_in_the_same_folder_is_refused_until_the_first_ends(capsys):
    os.mkdir("output")
    first = FileLock("output/.lock")
    first.acquire()
    with pytest.raises(UserError, match=f"{Path('output').absolute()}: another training"):
        checkpoint.start_run(Namespace(resume=True))
    first.release()
    checkpoint.start_run(Namespace(resume=False))
    # its own lock then keeps others out
    with pytest.raises(Timeout):
        FileLock("output/.lock").acquire(blocking=False)
    assert "cannot be locked" not in capsys.readouterr().out


def test_the_next_user_of_a_shared_folder_can_train_in_it():
    before = os.umask(0o077)
    try:
        files.lock_output()
    finally:
        os.umask(before)
    assert os.stat("output/.lock").st_mode & 0o066 == 0o066


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_disk_that_knows_no_locks_is_trained_on_with_a_line_that_says_so(
    name, monkeypatch, capsys
):
    monkeypatch.setattr(fcntl, "flock", refuse(name))
    for _ in range(2):
        # also after one that was killed
        files.lock_output()
        (line,) = capsys.readouterr().out.splitlines()
        assert str(Path("output").absolute()) in line
        assert "cannot be locked" in line


def test_the_litter_of_a_killed_training_goes_and_nothing_else():
    config.MODEL_PATH = "models[1]/weights.pth"
    for path in (config.CHECKPOINT_PATH, config.MODEL_PATH):
        files.write_file(path, b"whole")
        Path(f"{path}.123.partial").touch()
    Path("output/notes.partial").touch()
    files.lock_output()
    assert set(read_tree()) == {"checkpoint.pth", "notes.partial"}
    assert set(read_tree("models[1]")) == {"weights.pth"}


def test_earlier_runs_are_kept_together_even_two_of_one_second(capsys):
    config.MODEL_PATH = "models/weights.pth"
    files.write_file("output/notes.txt", b"")
    files.set_aside_run()
    assert (os.listdir("output"), capsys.readouterr().out) == (["notes.txt"], "")
    # all that config.py names as written
    names = {name for name in DEFAULTS if name.endswith("_PATH")} - {"DATA_PATH", "BASE_PATH"}
    paths = [getattr(config, name) for name in names]
    for text in ("first", "second"):
        for number, path in enumerate(paths):
            files.write_file(path, f"{text} {path}".encode())
            os.utime(path, (1e9 - number,) * 2)
        files.set_aside_run()
        (line,) = capsys.readouterr().out.splitlines()
        (folder,) = [path for path in Path("output").iterdir() if f"{path}..." in line]
        # after the time of its last file
        assert folder.name.startswith(time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(1e9)))
        expected = {os.path.basename(path): f"{text} {path}".encode() for path in paths}
        assert read_tree(folder) == expected
    assert len(os.listdir("output")) == len(["notes.txt", "first", "second"])
