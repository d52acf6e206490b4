# The files of weights and checkpoints, written so that no half file is left, and read so that none
# can run code.

# import the necessary packages
import io
import os
from contextlib import suppress

import torch

from . import config, devices
from .cli import UserError


def make_folder(path):
    """Make the folder of the file path. Raises UserError if no file can be written there."""
    folder = os.path.dirname(path) or "."
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    raise UserError(f"{folder}: not a folder that can be written to; make it one")


def write_file(path, data):
    """Write data (bytes) to path in one step: at no moment path holds half a file.

    Raises UserError if that fails; path is then as it was.
    """
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
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def load_state(path):
    """Return the state that save_state wrote to path, its tensors on the CPU.

    Nothing but tensors and plain values is read: a file from elsewhere can run no code. Raises
    UserError if the file is missing, corrupt, or holds anything else.
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
    # a corrupt file makes torch raise nearly anything
    except Exception as error:
        raise UserError(
            f"{path}: corrupt, or not a weights file (no code in it was executed); remove it and "
            "train again"
        ) from error


def get_settings(classes):
    """Return by name the settings that a training must be resumed with."""
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD")
    settings = {name: getattr(config, name) for name in names}
    # on other devices, the same batch and learning rate on all of them together
    settings["LOCAL_BATCH_SIZE x devices"] = config.LOCAL_BATCH_SIZE * devices.count_devices()
    # rounded, as 0.0001 * 3 is not quite 0.0003
    settings["LR x devices"] = float(f"{config.LR * devices.count_devices():.12g}")
    settings["CLASSES"] = classes
    return settings


def save_checkpoint(parts, epoch, H, settings):
    """Write the state of a training to CHECKPOINT_PATH.

    Args:
        parts: dict of the plain model, optimizer, scaler and scheduler.
        epoch: number of completed epochs.
        H: history, a list with a value per epoch for each of its names.
        settings: what get_settings returned.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    state.update(epoch=epoch, epochs=config.EPOCHS, H=H, randomState=torch.get_rng_state())
    state["settings"] = settings
    save_state(state, config.CHECKPOINT_PATH)


def not_a_checkpoint(error):
    """Return the UserError for a file that holds another kind of state."""
    return UserError(
        f"{config.CHECKPOINT_PATH}: not a checkpoint of this training ({error}); remove it, or "
        "start again without --resume"
    )


def load_checkpoint(settings):
    """Return the state that save_checkpoint wrote, None if there is none.

    Raises UserError if that is another kind of state, or of a training with other settings.
    """
    if not os.path.exists(config.CHECKPOINT_PATH):
        print(f"[INFO] no checkpoint at {config.CHECKPOINT_PATH}, starting from the beginning...")
        return None
    state = load_state(config.CHECKPOINT_PATH)
    try:
        before = state["settings"]
        changed = [name for name in settings if before[name] != settings[name]]
    except (KeyError, TypeError) as error:
        raise not_a_checkpoint(error) from error
    for name in changed:
        raise UserError(
            f"{config.CHECKPOINT_PATH} was written with {name} {before[name]}, and this run has "
            f"{settings[name]}; use the same, or start again without --resume"
        )
    return state


def restore_checkpoint(state, parts):
    """Put parts in the state that load_checkpoint returned; return its epoch and history H.

    Raises UserError if the state is not one of these parts.
    """
    try:
        for name, part in parts.items():
            # empty for a GradScaler that is off
            if state[name]:
                part.load_state_dict(state[name])
        torch.set_rng_state(state["randomState"])
        return state["epoch"], state["H"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise not_a_checkpoint(error) from error


def set_aside_checkpoint():
    """Rename a checkpoint that a new training would overwrite, unless its training finished."""
    if not os.path.exists(config.CHECKPOINT_PATH):
        return
    try:
        state = load_state(config.CHECKPOINT_PATH)
        finished = state["epoch"] >= state["epochs"]
    except (UserError, KeyError, TypeError):
        finished = False
    if not finished:
        previousPath = ".previous".join(os.path.splitext(config.CHECKPOINT_PATH))
        os.replace(config.CHECKPOINT_PATH, previousPath)
        print(f"[INFO] the checkpoint of an unfinished training is kept as {previousPath}...")
