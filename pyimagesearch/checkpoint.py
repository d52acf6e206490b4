# The state of an unfinished training, from which train_distributed.py --resume goes on.

# import the necessary packages
import os

import torch

from . import config, devices, files
from .errors import UserError


def get_settings(classes):
    """Return what a training must go on with as it began, by name."""
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD")
    settings = {name: getattr(config, name) for name in names}
    # on other devices, the same batch and learning rate on all of them together
    settings["LOCAL_BATCH_SIZE x devices"] = config.LOCAL_BATCH_SIZE * devices.count_devices()
    # rounded, as 0.0001 * 3 is not quite 0.0003
    settings["LR x devices"] = float(f"{config.LR * devices.count_devices():.12g}")
    settings["CLASSES"] = classes
    return settings


def save_checkpoint(parts, epoch, H, classes):
    """Write the state after epoch epochs to CHECKPOINT_PATH.

    Args:
        parts: dict of what has a state: the plain model, optimizer, scheduler and scaler.
        epoch: number of finished epochs.
        H: history, a list with a value per epoch for each of its names.
        classes: class names in the order of their indices.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    state.update(epoch=epoch, epochs=config.EPOCHS, H=H, randomState=torch.get_rng_state())
    state["settings"] = get_settings(classes)
    files.save_state(state, config.CHECKPOINT_PATH)


def load_checkpoint(state, parts, classes):
    """Put parts in the state that save_checkpoint wrote; see there for the arguments.

    Raises UserError if it is another kind of state, or if the run began with other settings.
    """
    try:
        for name, now in get_settings(classes).items():
            if state["settings"][name] != now:
                raise UserError(
                    f"{config.CHECKPOINT_PATH} was written with {name} {state['settings'][name]}, "
                    f"and this run has {now}; take the same, or start again without --resume"
                )
        for name, part in parts.items():
            # empty where there was nothing to keep: a GradScaler that was off
            if state[name]:
                part.load_state_dict(state[name])
        torch.set_rng_state(state["randomState"])
        return state["epoch"], state["H"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{config.CHECKPOINT_PATH}: not a checkpoint of this training; remove it, or start "
            "again without --resume"
        ) from error


def set_aside_checkpoint():
    """Rename a checkpoint that a new training would overwrite, unless its training finished."""
    try:
        state = files.load_state(config.CHECKPOINT_PATH)
        finished = state["epoch"] >= state["epochs"]
    except (UserError, KeyError, TypeError):
        finished = False
    if not finished:
        previousPath = ".previous".join(os.path.splitext(config.CHECKPOINT_PATH))
        os.replace(config.CHECKPOINT_PATH, previousPath)
        print(f"[INFO] the checkpoint of an unfinished training is kept as {previousPath}...")


def find_checkpoint(resume):
    """Return the state to go on from, None to begin; a checkpoint in the way is set aside."""
    found = os.path.exists(config.CHECKPOINT_PATH)
    if resume and found:
        return files.load_state(config.CHECKPOINT_PATH)
    if resume:
        print(f"[INFO] no checkpoint at {config.CHECKPOINT_PATH}, starting from the beginning...")
    elif found:
        set_aside_checkpoint()
    return None


def begin_training(parts, classes, resume):
    """Return the number of finished epochs and the history H to go on from.

    With resume those of the checkpoint, whose state parts then have; else none. See
    save_checkpoint for the arguments and H.
    """
    state = devices.take_from_first(lambda: find_checkpoint(resume))
    if state is None:
        return 0, {"train_loss": [], "train_acc": [], "val_loss": [], "val_acc": []}
    (done, H) = load_checkpoint(state, parts, classes)
    print(f"[INFO] resuming after epoch {done}/{config.EPOCHS}...")
    return done, H
