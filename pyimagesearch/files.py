"""Files that are whole or not there, and output/, which holds one run of one training."""

import errno
import glob
import os
import shutil
import time
from contextlib import suppress

from filelock import FileLock, Timeout

from . import config
from .cli import UserError

# the locks that this process holds until it ends
locks = []


def write_file(path, data, before=None):
    """Write data (bytes) to path in one step, making its folder: path never holds a partial file.
    before() is called when the new file is complete. Raises OSError; path is then as it was."""
    partialPath = f"{path}.{os.getpid()}.partial"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
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
        if before:
            before()
        os.replace(partialPath, path)
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def get_products():
    """Return the paths of the files that one run leaves in output/."""
    names = "PLOT MODEL REPORT CONFUSION PREDICTIONS MISTAKES SETTINGS RESULTS CHECKPOINT".split()
    return [getattr(config, f"{name}_PATH") for name in names]


def lock_output():
    """Keep other trainings out of output/, and remove the partial files of a killed one."""
    folder = os.path.abspath(os.path.dirname(config.CHECKPOINT_PATH))
    os.makedirs(folder, exist_ok=True)
    options = {"mode": 0o666, "is_singleton": True, "fallback_to_soft": False}
    locks.append(FileLock(os.path.join(folder, ".lock"), **options))
    try:
        locks[-1].acquire(blocking=False)
    except Timeout as error:
        running = "another training is running there; wait, or start in another directory"
        raise UserError(f"{folder}: {running}") from error
    except OSError as error:
        if not os.access(folder, os.W_OK):
            raise
        print(f"[INFO] {folder} cannot be locked ({error}): start no second training there...")
    for path in get_products():
        for partialPath in glob.glob(f"{glob.escape(path)}.*.partial"):
            os.remove(partialPath)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder under output/."""
    products = [path for path in get_products() if os.path.exists(path)]
    if products:
        newest = time.localtime(max(map(os.path.getmtime, products)))
        folder = os.path.dirname(config.CHECKPOINT_PATH)
        folder = os.path.join(folder, time.strftime("run-%Y-%m-%d-%H%M%S", newest))
        while os.path.exists(folder):
            folder += "-again"
        os.makedirs(folder)
        for path in products:
            shutil.move(path, folder)
        print(f"[INFO] the files of an earlier run were moved to {folder}...")
