"""Files on full, broken and simple disks, and the lock of a folder."""

import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout
from helpers import hold, read_tree

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


def replace(source, target):
    files.write_file(target, b"old")
    files.replace_file(source, target)


@pytest.mark.parametrize("function", [replace, files.move_file])
def test_a_file_that_is_held_for_a_moment_gets_its_place_all_the_same(function, monkeypatch):
    files.write_file("new", b"new")
    hold(monkeypatch, "new", times=len(files.PAUSES))
    function("new", "output")
    assert read_tree(".") == {"output": b"new"}


def test_a_checkpoint_is_written_though_a_scanner_holds_the_last_one_for_a_moment(monkeypatch):
    files.write_file("output/checkpoint.pth", b"old")
    hold(monkeypatch, "checkpoint.pth", times=2)
    files.write_file("output/checkpoint.pth", b"new")
    assert read_tree() == {"checkpoint.pth": b"new"}


@pytest.mark.parametrize("function", [replace, files.move_file])
def test_a_file_that_stays_held_is_said_after_two_seconds_and_is_where_it_was(
    function, monkeypatch
):
    files.write_file("new", b"new")
    hold(monkeypatch, "new")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(PermissionError):
        function("new", "output")
    assert sum(pauses) == pytest.approx(2)
    assert read_tree(".")["new"] == b"new"


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "ENOENT"])
def test_another_error_is_said_at_once(name, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(name))
    with pytest.raises(OSError):
        files.write_file("file.pth", b"new")
    os.replace.assert_called_once()


def test_a_file_moves_to_another_disk_over_the_half_that_a_killed_process_left(monkeypatch):
    files.write_file("file.pth", b"whole")
    files.write_file("disk/file.pth", b"who")
    monkeypatch.setattr(os, "rename", refuse("EXDEV"))
    files.move_file("file.pth", "disk/file.pth")
    assert read_tree(".") == {"disk/file.pth": b"whole"}


def test_a_held_file_is_on_one_of_two_disks(monkeypatch):
    files.write_file("file.pth", b"whole")
    os.mkdir("disk")
    hold(monkeypatch, "file.pth")
    remove = os.remove
    # which can be copied, but not removed
    monkeypatch.setattr(os, "rename", refuse("EXDEV"))
    monkeypatch.setattr(
        os, "remove", lambda path: os.unlink(path) if "disk" in path else remove(path)
    )
    with pytest.raises(PermissionError):
        files.move_file("file.pth", "disk/file.pth")
    assert read_tree(".") == {"file.pth": b"whole"}


def test_a_table_that_is_held_is_written_beside_it_and_said(monkeypatch, capsys):
    files.write_file("output/table.csv", b"old")
    with monkeypatch.context() as patch:
        hold(patch, "table.csv")
        for data in (b"new", b"newer"):
            assert files.write_result("output/table.csv", data) == "output/table-again.csv"
            assert read_tree() == {"table.csv": b"old", "table-again.csv": data}
        (line, _) = capsys.readouterr().out.splitlines()
        assert "output/table.csv is open in another program" in line
        assert "output/table-again.csv" in line
    # what is out of date goes
    assert files.write_result("output/table.csv", b"newest") == "output/table.csv"
    assert read_tree() == {"table.csv": b"newest"}
    assert capsys.readouterr().out == ""


def test_a_table_is_written_also_where_the_one_beside_it_is_held_too(monkeypatch):
    for name in ("table.csv", "table-again.csv"):
        files.write_file(f"output/{name}", b"old")
        hold(monkeypatch, name)
    path = files.write_result("output/table.csv", b"new")
    assert Path(path).read_bytes() == b"new"
    assert files.list_versions("output/table.csv") == [
        "output/table.csv",
        "output/table-again.csv",
        path,
    ]


def test_a_table_that_is_out_of_date_and_held_is_said(monkeypatch, capsys):
    files.write_file("output/table.csv", b"old")
    files.write_file("output/table-old.csv", b"of the user")
    with monkeypatch.context() as patch:
        hold(patch, "table.csv")
        files.remove_result("output/table.csv")
    (line,) = capsys.readouterr().out.splitlines()
    assert "output/table.csv is out of date" in line
    files.write_file("output/table-again.csv", b"new")
    files.remove_result("output/table.csv")
    assert set(read_tree()) == {"table-old.csv"}
    # nor is it an error where none is
    files.remove_result("output/table.csv")
    assert capsys.readouterr().out == ""


def test_a_table_in_a_folder_that_cannot_be_written_is_an_error(monkeypatch):
    monkeypatch.setattr(files, "write_file", refuse("EACCES"))
    with pytest.raises(PermissionError):
        files.write_result("output/table.csv", b"new")


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


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "ENOSPC"])
def test_a_folder_in_which_nothing_can_be_written_is_one_line_at_once(name, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse(name))
    monkeypatch.setattr(time, "sleep", Mock())
    for function in (files.make_folder, lambda folder: files.lock_folder(folder, "another")):
        with pytest.raises(UserError, match=f"no file can be written in .*folder .{name}.; "):
            function("folder")
    time.sleep.assert_not_called()


def test_a_file_in_the_place_of_a_folder_is_one_line():
    files.write_file("output", b"")
    with pytest.raises(UserError, match="no file can be written in output/below"):
        files.make_folder("output/below")


def test_a_folder_is_made_and_left_empty():
    for _ in range(2):
        files.make_folder("output/below")
    assert read_tree() == {}
    assert os.path.isdir("output/below")


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
