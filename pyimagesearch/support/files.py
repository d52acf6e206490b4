"""Files that are whole or not there, and folders that one process has to itself."""

import errno
import hashlib
import os
import platform
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

# the locks that this process holds; script.run() releases them at its end, as a notebook lives on
locks = ExitStack()


def name_partial(folder):
    """Return the path of a file in folder that this process alone writes, until it is whole."""
    # short, as the name of the file itself may already be as long as the disk allows
    return os.path.join(folder, f".{platform.node()}-{os.getpid()}.partial")


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
        os.replace(partialPath, path)
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def remove_partials(folder):
    """Remove what killed processes left unfinished in folder, which this process has locked."""
    for path in Path(folder).glob(".*.partial"):
        path.unlink()


def digest_file(path):
    """Return the SHA-256 of the file at path, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_folder(folder, holder, isPatient=False):
    """Lock folder for this process until its script ends; return whether that is possible there.

    holder: who else may have locked it, for the message. isPatient: whether to wait for it. Raises
    UserError if it is locked.
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    # any user of a shared folder may lock it
    options = {"mode": 0o666, "is_singleton": True, "fallback_to_soft": False}
    lock = FileLock(os.path.join(folder, ".lock"), **options)
    locks.callback(lock.release)
    try:
        lock.acquire(blocking=isPatient)
    except Timeout as error:
        advice = "wait for its end, or start in another directory"
        raise UserError(f"{holder} is running in {folder}; {advice}") from error
    except OSError as error:
        if not os.access(folder, os.W_OK):
            raise
        print(f"[INFO] {folder} cannot be locked ({error}): make sure {holder} is not there...")
    return lock.is_locked


def find_stranger(path):
    """Return what the file at path is instead of a photograph or weights, as the end of a sentence
    about it, or None if it is none of the usual strangers."""
    with open(path, "rb") as file:
        head = file.read(100).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; run git lfs pull"
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a web page, not the file itself; download it again"
    if not head:
        return "is empty; copy or download it again"
    return None
