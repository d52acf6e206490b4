# The files in output/: written so that no half file is left, read so that none can run code, and
# those of one run kept apart from those of another.

# import the necessary packages
import glob
import hashlib
import io
import os
import platform
import shutil
import time
from contextlib import suppress

import torch
from filelock import FileLock, Timeout

from . import config, devices
from .cli import UserError, lacks_memory
from .create_dataloaders import get_classes, list_images

# the locks that this process holds until it ends
locks = []


def make_folder(path):
    """Make the folder of the file path. Raises UserError if no file can be written there."""
    folder = os.path.dirname(path) or "."
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    raise UserError(f"{folder}: cannot write to this folder; check what it is and its permissions")


def write_file(path, data):
    """Write data (bytes) to path in one step: at no moment path holds half a file.

    Raises UserError if that fails; path is then as it was.
    """
    make_folder(path)
    # unique per process
    partialPath = f"{path}.{os.getpid()}.partial"
    try:
        with open(partialPath, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partialPath, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}), the old file is kept; free disk space "
            "or check the permissions"
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
        if lacks_memory(error):
            raise
        raise UserError(
            f"{path}: corrupt, or not a weights file (no code in it was executed); remove it and "
            "train again"
        ) from error


def get_products():
    """Return the paths of the files that one run leaves in output/."""
    names = ("PLOT", "MODEL", "REPORT", "CONFUSION", "RESULTS", "CHECKPOINT")
    return [*(getattr(config, f"{name}_PATH") for name in names), get_table_path()]


def get_table_path():
    """Return where the history is saved as a table, beside its plot."""
    return os.path.splitext(config.PLOT_PATH)[0] + ".csv"


def lock_output():
    """Keep other trainings out of this directory until this process ends.

    Removes the half files that a killed process left. Raises UserError if a training runs already.
    """
    make_folder(config.CHECKPOINT_PATH)
    folder = os.path.dirname(config.CHECKPOINT_PATH) or "."
    lock = FileLock(os.path.abspath(os.path.join(folder, ".lock")), is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"{folder}: another training is running in this directory; wait until it ends, or "
            "start in another directory"
        ) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be locked ({error}); use another disk") from error
    locks.append(lock)
    for path in get_products():
        for partialPath in glob.glob(f"{glob.escape(path)}.*.partial"):
            os.remove(partialPath)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder of its own there.

    Raises UserError if two of its files have one name.
    """
    products = [path for path in get_products() if os.path.exists(path)]
    if not products:
        return
    if len({os.path.basename(path) for path in products}) < len(products):
        raise UserError(f"two of {', '.join(products)} have one name; rename one in config.py")
    # named after the time of its last file
    newest = max(os.path.getmtime(path) for path in products)
    name = time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(newest))
    folder = os.path.join(os.path.dirname(config.CHECKPOINT_PATH), name)
    while os.path.exists(folder):
        folder += "-again"
    os.makedirs(folder)
    for path in products:
        shutil.move(path, folder)
    print(f"[INFO] the files of an earlier run were moved to {folder}...")


def describe_images(rootDir):
    """Return as text the number of images under rootDir and a digest of their paths and sizes."""
    lines = []
    for path in list_images(rootDir):
        # slashes on Windows too
        name = os.path.relpath(path, rootDir).replace(os.sep, "/")
        lines.append(f"{name} {os.path.getsize(path)}")
    text = "\n".join(sorted(lines)).encode(errors="surrogateescape")
    return f"{len(lines)} images ({hashlib.sha256(text).hexdigest()[:8]})"


def get_splits():
    """Return the folder of each split by the name that messages use; machines may differ in it."""
    return {
        "the training set": config.TRAIN,
        "the validation set": config.VAL,
        "the test set": config.TEST,
    }


def get_record():
    """Return the settings and image digests that all processes of a training must share, by
    name."""
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "EPOCHS", "LR", "LOCAL_BATCH_SIZE")
    record = {name: getattr(config, name) for name in names}
    record.update(MEAN=list(config.MEAN), STD=list(config.STD), CLASSES=get_classes())
    for name, rootDir in get_splits().items():
        record[name] = describe_images(rootDir)
    record["number of devices"] = devices.count_devices()
    return record


def get_resumable(record):
    """Return the settings that must not change on resume; batch size and LR as totals over all
    devices."""
    names = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD", "CLASSES")
    part = {name: record[name] for name in names}
    numDevices = record["number of devices"]
    part["LOCAL_BATCH_SIZE x devices"] = record["LOCAL_BATCH_SIZE"] * numDevices
    # rounded, as 0.0001 * 3 is not quite 0.0003
    part["LR x devices"] = float(f"{record['LR'] * numDevices:.12g}")
    return part


def compare(records, advice):
    """Raise UserError if a value is not the same in all records, with all such values.

    records: {where: record}, where as "on host" or "in file", all with the same names.
    """
    differences = []
    for name in next(iter(records.values())):
        places = {}
        for where, record in records.items():
            places.setdefault(str(record[name]), []).append(where)
        if len(places) > 1:
            parts = [f"{value} {', '.join(found)}" for value, found in places.items()]
            differences.append(f"{name} is {' and '.join(parts)}")
    if differences:
        raise UserError(f"{'; '.join(differences)}; {advice}")


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
    for name in get_splits():
        if before.get(name) != record[name]:
            print(
                f"[INFO] {name} has changed since the checkpoint: {before.get(name)} then, "
                f"{record[name]} now..."
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
        if lacks_memory(error):
            raise
        raise not_a_checkpoint(error) from error
