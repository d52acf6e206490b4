# What the scripts write to output/ and read back from there.

# import the necessary packages
import io
import os

import torch

from . import config


def write_file(path, data):
    """Write data (bytes) to path, in one step: path never holds half a file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partialPath = path + ".partial"
    with open(partialPath, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partialPath, path)


def save_state(state, path):
    """Write state, tensors and plain values in dicts and lists, to path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def load_state(path):
    """Return the state that save_state wrote to path, its tensors on config.DEVICE.

    Nothing but tensors and plain values is read: a file from elsewhere can run no code.
    """
    return torch.load(path, map_location=config.DEVICE, weights_only=True)
