# What the scripts write to output/ and read back from there.

# import the necessary packages
import io
import os
from contextlib import suppress

import torch

from . import devices
from .errors import UserError


def make_folder(path):
    """Make the folder of the file path, in the process that writes files.

    Raises UserError if no file can be written there.
    """
    if devices.get_rank() > 0:
        return
    folder = os.path.dirname(path) or "."
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    raise UserError(f"{folder}: not a folder that can be written to; make it one")


def write_file(path, data):
    """Write data (bytes) to path in one step: at no moment path holds half a file.

    Of several processes the first one writes. Raises UserError if that fails; path is then as it
    was.
    """
    if devices.get_rank() > 0:
        return
    make_folder(path)
    partialPath = path + ".partial"
    try:
        with open(partialPath, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partialPath, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}), what was there is kept; make room or "
            "allow writing, then run again (train_distributed.py with --resume)"
        ) from error
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def save_state(state, path):
    """Write state, tensors and plain values in dicts and lists, to path; see write_file."""
    if devices.get_rank() > 0:
        return
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def load_state(path):
    """Return the state that save_state wrote to path, its tensors on the CPU.

    Nothing but tensors and plain values is read: a file from elsewhere can run no code. Raises
    UserError if the file is missing, damaged, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            data = io.BytesIO(file.read())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; train_distributed.py writes this file"
        ) from error
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    # a damaged file makes torch raise nearly anything
    except Exception as error:
        raise UserError(
            f"{path}: damaged, or not a file of weights (nothing in it was run); remove it and "
            "train again"
        ) from error
