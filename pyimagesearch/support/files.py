"""Files that are whole or not there, and folders that one process has to itself."""

import errno
import hashlib
import os
import platform
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

# seconds between the tries of retry(), 2 s in all
PAUSES = (0.1, 0.2, 0.3, 0.5, 0.9)

# the locks that this process holds; script.run() releases them at its end, as a notebook lives on
locks = ExitStack()


def name_partial(folder):
    """Return the path of a file in folder that this process alone writes, until it is whole."""
    # short, as the name of the file itself may already be as long as the disk allows
    return os.path.join(folder, f".{platform.node()}-{os.getpid()}.partial")


def retry(function, *paths):
    """Return function(*paths), which is called again for up to two seconds where the system refuses
    it: on Windows a virus scanner or OneDrive holds a new file for a moment. Raises
    PermissionError."""
    for pause in PAUSES:
        try:
            return function(*paths)
        except PermissionError:
            time.sleep(pause)
    return function(*paths)


def replace_file(source, target):
    """Give the file at source the path target, where another file may be. Raises OSError; both are
    then as they were."""
    retry(os.replace, source, target)


def move_file(source, target):
    """Move the file at source to the path target, which may be on another disk. Raises
    PermissionError where another program holds it; it is then where it was."""
    try:
        retry(os.rename, source, target)
    except PermissionError:
        # on Windows a file that is open can be copied, but is then in both places
        raise
    except OSError:
        # another disk, or the half of a file that a killed process copied
        shutil.copy2(source, target)
        try:
            retry(os.remove, source)
        except PermissionError:
            os.remove(target)
            raise


def write_file(path, data):
    """Write data (bytes) to path in one step, making its folder: path never holds a partial file.
    Raises OSError; path is then as it was."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    partialPath = name_partial(folder)
    try:
        with open(partialPath, "wb") as file:
            file.write(data)
            file.flush()
            try:
                # against power cuts, where the file system can do it
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        replace_file(partialPath, path)
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def name_again(path):
    """Return path with -again at the end of its name."""
    (stem, ending) = os.path.splitext(path)
    return f"{stem}-again{ending}"


def list_versions(path):
    """Return the paths of the result at path, if it is there, and of those that write_result()
    wrote beside it."""
    versions = []
    if os.path.exists(path):
        versions.append(path)
    path = name_again(path)
    while os.path.exists(path):
        versions.append(path)
        path = name_again(path)
    return versions


def write_result(path, data):
    """Write data (bytes) to path as write_file() does. Where another program holds the file at
    path, as Excel holds a table on Windows, write it beside that, and print so. Return the path
    that was written. Raises OSError."""
    try:
        write_file(path, data)
    except PermissionError as error:
        # the folder may be what cannot be written
        if not os.path.exists(path):
            raise
        other = write_result(name_again(path), data)
        held = f"{path} is open in another program ({error.strerror})"
        print(f"[INFO] {held}: its new version is {other}...")
        return other
    # what was written beside an earlier one would be out of date
    remove_result(name_again(path))
    return path


def remove_result(path):
    """Remove the result at path, if it is there, and those that write_result() wrote beside it;
    print which of them another program holds."""
    for version in list_versions(path):
        try:
            retry(os.remove, version)
        except PermissionError:
            print(f"[INFO] {version} is out of date, but open in another program...")


def remove_partials(folder):
    """Remove what killed processes left unfinished in folder, which this process has locked."""
    for path in Path(folder).glob(".*.partial"):
        path.unlink()


def digest_file(path):
    """Return the SHA-256 of the file at path, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder):
    """Make folder, if it is not there. Raises UserError if no file can be written in it."""
    try:
        os.makedirs(folder, exist_ok=True)
        # under a name of its own, as another training may write here
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"no file can be written in {folder} ({error.strerror})"
        advice = "change its permissions, or work in another folder"
        raise UserError(f"{text}; {advice}") from error


def lock_folder(folder, holder, isPatient=False, name=".lock"):
    """Make and lock folder for this process until its script ends; return whether that is possible
    there.

    holder: who else may have locked it, for the message. isPatient: whether to wait for it. name:
    of the lock; other locks do not touch it. Raises UserError if it is locked, or if no file can be
    written in it.
    """
    make_folder(folder)
    folder = os.path.abspath(folder)
    # any user of a shared folder may lock it
    options = {"mode": 0o666, "is_singleton": True, "fallback_to_soft": False}
    lock = FileLock(os.path.join(folder, name), **options)
    locks.callback(lock.release)
    try:
        lock.acquire(blocking=isPatient)
    except Timeout as error:
        advice = "wait for its end, or start in another directory"
        raise UserError(f"{holder} is running in {folder}; {advice}") from error
    except OSError as error:
        print(f"[INFO] {folder} cannot be locked ({error}): make sure {holder} is not there...")
    return lock.is_locked


def find_stranger(path):
    """Return what the file at path is instead of a photograph or weights, and what to do about it,
    or None if it is none of the usual strangers."""
    with open(path, "rb") as file:
        head = file.read(100).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself; run git lfs pull"
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not the file itself; download it again"
    return None
