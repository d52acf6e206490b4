"""What prepare_dataset.py copied: which files in TRAIN, VAL and TEST are its own."""

import json
import os
from contextlib import contextmanager

from pyimagesearch import config

from . import files
from .errors import UserError
from .images import list_images


def normalize_path(path):
    """Return path as paths are compared, as some file systems are case-insensitive."""
    return os.path.normpath(path).lower()


def list_copies():
    """Return {path as paths are compared: path} of the images in TRAIN, VAL and TEST."""
    copies = {}
    for destiDir in (config.TRAIN, config.VAL, config.TEST):
        if os.path.exists(destiDir):
            copies |= {normalize_path(path): path for path in list_images(destiDir)}
    return copies


def record_path():
    """Return the path of the file that lists what was copied."""
    return os.path.join(config.BASE_PATH, "copies.json")


def read_record():
    """Return what an earlier run recorded: the SEED by which it held photographs out, or None, and
    {path as paths are compared: digest} of what it copied and, if it was killed, was copying."""
    record = {"SEED": None, "copies": {}, "copying": {}}
    if os.path.exists(record_path()):
        with open(record_path()) as file:
            record |= json.load(file)
    return record


def write_record(seed, copies, copying):
    """Record the SEED by which photographs are held out, or None, and {path as paths are compared:
    digest} of what was copied and of what is being copied."""
    record = {"SEED": seed, "copies": copies, "copying": copying}
    files.write_file(record_path(), json.dumps(record, indent=0).encode())


def is_own(record, place, digest):
    """Return whether prepare has copied the file with a digest that is at a place; record: of
    read_record(). All else in BASE_PATH is the user's, whatever is in it."""
    return digest in (record["copies"].get(place), record["copying"].get(place))


def check_seed(copies, record):
    """Raise UserError if copies, of list_copies(), were held out by another SEED, says record."""
    before = record["SEED"]
    if copies and before not in (None, config.SEED):
        text = f"the copies in {config.BASE_PATH} were split with SEED {before}, not {config.SEED}"
        raise UserError(f"{text}; set SEED back, or set another BASE_PATH in config.py")


@contextmanager
def record_copies(plan):
    """Have BASE_PATH for this process alone within the block, in which the images of plan are
    copied, and record what was copied. Waits for another prepare to end; raises UserError if that
    has held out other photographs."""
    isLocked = files.lock_folder(config.BASE_PATH, "another prepare_dataset.py", isPatient=True)
    record = read_record()
    if plan.seed is not None:
        check_seed(list_copies(), record)
    for destiDir in (config.TRAIN, config.VAL, config.TEST):
        files.make_folder(destiDir)
        if isLocked:
            # of a prepare that was killed
            files.remove_partials(destiDir)
    copies = {}
    copying = {}
    for photo in plan.photographs:
        if not photo.isCopied:
            copying[photo.place] = photo.digest
        elif is_own(record, photo.place, photo.digest):
            copies[photo.place] = photo.digest
    # a run that is killed in the block leaves some copies as they were, and some new ones
    write_record(plan.seed, record["copies"] | copies, copying)
    yield
    write_record(plan.seed, copies | copying, {})
