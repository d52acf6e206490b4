"""Files on full, broken and simple disks, and the lock of a folder."""

import errno
import fcntl
import os
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout
from helpers import read_tree

from pyimagesearch.support import files
from pyimagesearch.support.errors import UserError


def refuse(name):
    """Return a function that fails as a disk does, with the error of this name."""
    return Mock(side_effect=OSError(getattr(errno, name), name))


def test_a_file_is_the_old_one_until_the_new_one_is_whole(monkeypatch):
    seen = []

    def interrupt(*paths):
        seen.append(read_tree())
        raise KeyboardInterrupt

    files.write_file("output/file.pth", b"old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        files.write_file("output/file.pth", b"new")
    # complete beside it
    assert sorted(seen[0].values()) == [b"new", b"old"]
    assert read_tree() == {"file.pth": b"old"}
    with open("output/file.pth", "rb") as reader:
        files.write_file("output/file.pth", b"new")
        # who has begun to read the old one reads it to its end
        assert reader.read() == b"old"
    assert read_tree() == {"file.pth": b"new"}


def test_a_file_may_have_the_longest_name_that_the_disk_allows():
    name = "a" * 255
    files.write_file(name, b"new")
    assert read_tree(".") == {name: b"new"}


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


def test_a_digest_is_that_of_the_bytes():
    for name, data in (("a", b"1"), ("again", b"1"), ("b", b"2")):
        Path(name).write_bytes(data)
    assert files.digest_file("a") == files.digest_file("again")
    assert files.digest_file("a") != files.digest_file("b")


def test_unfinished_files_are_removed_from_a_folder_and_nothing_else():
    for name in (".a-1.partial", "notes.partial", ".partial.jpg", "below/.a-1.partial"):
        files.write_file(f"output/{name}", b"")
    files.remove_partials("output")
    assert set(read_tree()) == {"notes.partial", ".partial.jpg", "below/.a-1.partial"}


def is_free(folder):
    """Return whether nobody holds the lock of a folder."""
    lock = FileLock(os.path.join(folder, ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    lock.release()
    return True


def test_a_locked_folder_is_refused_with_its_path_until_it_is_free():
    os.mkdir("folder")
    with FileLock("folder/.lock"):
        with pytest.raises(UserError, match=f"another one .* {Path('folder').absolute()}"):
            files.lock_folder("folder", "another one")
    assert files.lock_folder("folder", "another one") is True
    assert not is_free("folder")


def test_all_locks_of_a_script_are_released_together():
    for folder in ("one", "two"):
        files.lock_folder(folder, "another")
    with files.locks:
        assert not is_free("one")
    assert is_free("one")
    assert is_free("two")
    # and can be taken again, as in a notebook
    assert files.lock_folder("one", "another") is True


def test_one_who_is_patient_waits_until_the_folder_is_free():
    os.mkdir("folder")
    first = FileLock("folder/.lock", thread_local=False)
    first.acquire()
    locked = []

    def wait():
        locked.append(files.lock_folder("folder", "another", isPatient=True))

    waiting = Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert locked == []
    first.release()
    waiting.join(10)
    assert locked == [True]


def test_the_next_user_of_a_shared_folder_can_train_in_it():
    before = os.umask(0o077)
    try:
        files.lock_folder("output", "another training")
    finally:
        os.umask(before)
    assert os.stat("output/.lock").st_mode & 0o066 == 0o066


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
@pytest.mark.parametrize("isPatient", [False, True])
def test_a_disk_that_knows_no_locks_is_trained_on_with_a_line_that_says_so(
    name, isPatient, monkeypatch, capsys
):
    monkeypatch.setattr(fcntl, "flock", refuse(name))
    for _ in range(2):
        # also after one that was killed
        assert files.lock_folder("output", "another training", isPatient) is False
        (line,) = capsys.readouterr().out.splitlines()
        assert f"{Path('output').absolute()} cannot be locked" in line
        assert "make sure another training is not there" in line
        files.locks.close()
