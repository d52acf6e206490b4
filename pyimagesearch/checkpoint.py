# The files in output/: written so that no half file is left, read so that none can run code, and
# those of one run kept apart from those of another.

# import the necessary packages
import glob
import hashlib
import io
import os
import platform
import time
from contextlib import suppress

import torch
from filelock import FileLock, Timeout
from torchvision.datasets.folder import is_image_file

from . import config, devices
from .cli import UserError
from .create_dataloaders import get_classes

# the locks that this process holds until it ends
locks = []


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
    # a name of its own for each writer
    partialPath = f"{path}.{os.getpid()}.partial"
    try:
        with open(partialPath, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partialPath, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}), what was there is kept; make room or "
            "allow writing"
        ) from error
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def save_state(state, path):
    """Write state, tensors and plain values in dicts and lists, to path; see write_file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def save_weights(model):
    """Write the state dict of the plain model, all of it on the CPU, to MODEL_PATH."""
    state = model.state_dict()
    for name, tensor in state.items():
        # in place, as a new dict would lose the metadata
        state[name] = tensor.cpu()
    save_state(state, config.MODEL_PATH)


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


def get_products():
    """Return the paths of the files that one run leaves in output/."""
    products = [getattr(config, name) for name in dir(config) if name.endswith("_PATH")]
    products = [path for path in products if path not in (config.DATA_PATH, config.BASE_PATH)]
    return [*products, get_table_path()]


def get_table_path():
    """Return where the history is saved as a table, beside its plot."""
    return os.path.splitext(config.PLOT_PATH)[0] + ".csv"


def lock_output():
    """Keep other trainings out of this directory until this process ends.

    Raises UserError if one runs already.
    """
    make_folder(config.CHECKPOINT_PATH)
    folder = os.path.dirname(config.CHECKPOINT_PATH)
    lock = FileLock(os.path.abspath(os.path.join(folder, ".lock")), is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"{folder or '.'}: another training is running in this directory; wait until it ends, "
            "or start in another directory"
        ) from error
    locks.append(lock)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder of its own there."""
    products = [path for path in get_products() if os.path.exists(path)]
    for path in get_products():
        for partialPath in glob.glob(f"{glob.escape(path)}.*.partial"):
            os.remove(partialPath)
    if not products:
        return
    # named after the time of its last file
    newest = max(os.path.getmtime(path) for path in products)
    name = time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(newest))
    folder = os.path.join(os.path.dirname(config.CHECKPOINT_PATH), name)
    while os.path.exists(folder):
        folder += "-again"
    os.makedirs(folder)
    for path in products:
        os.replace(path, os.path.join(folder, os.path.basename(path)))
    print(f"[INFO] the files of an earlier run were moved to {folder}...")


def describe_images(rootDir):
    """Return the number of images under rootDir and a digest of their paths and sizes, to be
    read."""
    lines = []
    for folder, _, names in os.walk(rootDir, followlinks=True):
        for path in (os.path.join(folder, name) for name in names if is_image_file(name)):
            # slashes on Windows too
            name = os.path.relpath(path, rootDir).replace(os.sep, "/")
            lines.append(f"{name} {os.path.getsize(path)}")
    text = "\n".join(sorted(lines)).encode(errors="surrogateescape")
    return f"{len(lines)} images ({hashlib.sha256(text).hexdigest()[:8]})"


def get_record():
    """Return by name what all processes of a training have to agree on: settings and images."""
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "EPOCHS", "LR", "LOCAL_BATCH_SIZE")
    record = {name: getattr(config, name) for name in names}
    record.update(MEAN=list(config.MEAN), STD=list(config.STD), CLASSES=get_classes())
    for rootDir in (config.TRAIN, config.VAL, config.TEST):
        record[rootDir] = describe_images(rootDir)
    record["number of devices"] = devices.count_devices()
    return record


def get_resumable(record):
    """Return the part of record that a training has to be resumed with.

    On another number of devices these are the same batch and learning rate of all together.
    """
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD", "CLASSES")
    part = {name: record[name] for name in names}
    numDevices = record["number of devices"]
    part["LOCAL_BATCH_SIZE x devices"] = record["LOCAL_BATCH_SIZE"] * numDevices
    # rounded, as 0.0001 * 3 is not quite 0.0003
    part["LR x devices"] = float(f"{record['LR'] * numDevices:.12g}")
    return part


def compare(records, advice):
    """Raise UserError for the first name whose value is not the same in all records.

    records: {where: record}, where as "on host" or "in file", all with the same names.
    """
    for name in next(iter(records.values())):
        places = {}
        for where, record in records.items():
            places.setdefault(str(record.get(name)), []).append(where)
        if len(places) > 1:
            parts = [f"{value} {' and '.join(found)}" for value, found in places.items()]
            raise UserError(f"{name} is {' and '.join(parts)}; {advice}")


def compare_processes(record):
    """Raise UserError in all processes unless all of them have the same record."""
    pairs = devices.all_gather((platform.node(), record))
    records = {}
    for rank, (host, other) in enumerate(pairs):
        # processes of one machine differ when it plays several
        isUnique = all(other == another for name, another in pairs if name == host)
        records[f"on {host}" if isUnique else f"on {host} (rank {rank})"] = other
    compare(records, "make them the same")


def save_checkpoint(parts, epoch, H, record):
    """Write the state of a training to CHECKPOINT_PATH.

    Args:
        parts: dict of the plain model, optimizer, scaler and scheduler.
        epoch: number of completed epochs.
        H: history, a list with a value per epoch for each of its names.
        record: what get_record returned.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    state.update(epoch=epoch, H=H, randomState=torch.get_rng_state(), record=record)
    save_state(state, config.CHECKPOINT_PATH)


def not_a_checkpoint(error):
    """Return the UserError for a file that holds another kind of state."""
    return UserError(
        f"{config.CHECKPOINT_PATH}: not a checkpoint of this training ({error}); remove it, or "
        "start again without --resume"
    )


def load_checkpoint(record):
    """Return the state that save_checkpoint wrote, None if there is none.

    Raises UserError if that is another kind of state, or of a training with other settings.
    """
    if not os.path.exists(config.CHECKPOINT_PATH):
        print(f"[INFO] no checkpoint at {config.CHECKPOINT_PATH}, starting from the beginning...")
        return None
    state = load_state(config.CHECKPOINT_PATH)
    try:
        before = state["record"]
        records = {f"in {config.CHECKPOINT_PATH}": get_resumable(before)}
    except (KeyError, TypeError) as error:
        raise not_a_checkpoint(error) from error
    records["in this run"] = get_resumable(record)
    compare(records, "make them the same, or start again without --resume")
    for rootDir in (config.TRAIN, config.VAL, config.TEST):
        if before.get(rootDir) != record[rootDir]:
            print(
                f"[INFO] {rootDir} has changed since the checkpoint: {before.get(rootDir)} then, "
                f"{record[rootDir]} now..."
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
