# The files in output/: none is ever partial, none can run code, and runs are kept apart.

import glob
import io
import json
import os
import re
import shutil
import time
from contextlib import suppress

import torch
from filelock import FileLock, Timeout

from . import config, devices
from .cli import UserError, compare, lacks_memory, set_config
from .create_dataloaders import get_classes
from .images import describe_images

# the settings of a run, and its images by the name that messages use
SETTINGS = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD", "EPOCHS", "LR", "LOCAL_BATCH_SIZE")
SPLITS = {"the training set": "TRAIN", "the validation set": "VAL", "the test set": "TEST"}
# the locks that this process holds until it ends
locks = []


def write_file(path, data, before=None):
    """Write data (bytes) to path in one step: path never holds a partial file. before() is called
    when the new file is complete. Raises UserError if writing fails; path is then as it was."""
    # unique per process
    partialPath = f"{path}.{os.getpid()}.partial"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(partialPath, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before:
            before()
        os.replace(partialPath, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}), the old file is kept; free disk space "
            "or check the permissions"
        ) from error
    finally:
        with suppress(OSError):
            os.remove(partialPath)


def save_state(state, path, before=None):
    """Write tensors and plain values in dicts and lists to path, in the main process alone."""
    if devices.get_rank() == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(path, buffer.getvalue(), before)


def save_weights(model, classes):
    """Write the state dict of the plain model, on the CPU, to MODEL_PATH. Its metadata says what
    it was trained on: class names in the order of the logits, IMAGE_SIZE, MEAN and STD."""
    state = model.state_dict()
    # in place, as a new dict would lose the metadata
    state.update({name: tensor.cpu() for name, tensor in state.items()})
    facts = {"imageSize": config.IMAGE_SIZE, "mean": config.MEAN, "std": config.STD}
    state._metadata[""].update(facts, classes=list(classes))
    save_state(state, config.MODEL_PATH)


def load_state(path):
    """Return what save_state wrote to path, its tensors on the CPU; raise UserError if the file is
    missing, corrupt, or holds more than tensors and plain values, which could run code."""
    try:
        with open(path, "rb") as file:
            data = io.BytesIO(file.read())
        return torch.load(data, map_location="cpu", weights_only=True)
    except OSError as error:
        others = glob.glob(os.path.join(os.path.dirname(path), "run-*", os.path.basename(path)))
        advice = "train_distributed.py writes this file"
        if others:
            advice = f"the last one of an earlier run is {max(others, key=os.path.getmtime)}"
        raise UserError(f"{path}: {error.strerror}; {advice}") from error
    # a corrupt file makes torch raise nearly anything
    except Exception as error:
        if lacks_memory(error):
            raise
        reason = "corrupt, or not a weights file (no code in it was executed); use another copy"
        if re.search("Unsupported (global|class)", str(error)):
            reason = (
                "holds more than tensors, such as a whole model, and no code in it was executed; "
                "save the weights alone: torch.save(model.state_dict(), path)"
            )
        raise UserError(f"{path}: {reason}") from error


def get_table_path():
    """Return where the history is saved as a table, beside its plot."""
    return os.path.splitext(config.PLOT_PATH)[0] + ".csv"


def get_products():
    """Return the paths of the files that one run leaves in output/."""
    names = "PLOT MODEL REPORT CONFUSION PREDICTIONS MISTAKES SETTINGS RESULTS CHECKPOINT".split()
    return [*(getattr(config, f"{name}_PATH") for name in names), get_table_path()]


def lock_output():
    """Keep other trainings out of output/ until this process ends, and remove the partial files of
    a killed one. Raises UserError if a training runs already."""
    folder = os.path.dirname(config.CHECKPOINT_PATH) or "."
    lock = FileLock(os.path.abspath(os.path.join(folder, ".lock")), is_singleton=True)
    try:
        os.makedirs(folder, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        advice = "wait until it ends, or start in another directory"
        raise UserError(
            f"{folder}: another training is running in this directory; {advice}"
        ) from error
    except OSError as error:
        advice = "check what it is and its permissions"
        raise UserError(f"{folder}: cannot write to this folder ({error}); {advice}") from error
    locks.append(lock)
    for path in get_products():
        for partialPath in glob.glob(f"{glob.escape(path)}.*.partial"):
            os.remove(partialPath)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder under output/."""
    products = [path for path in get_products() if os.path.exists(path)]
    if products:
        # named after the time of its last file
        newest = time.localtime(max(map(os.path.getmtime, products)))
        folder = os.path.dirname(config.CHECKPOINT_PATH)
        folder = os.path.join(folder, time.strftime("run-%Y-%m-%d-%H%M%S", newest))
        while os.path.exists(folder):
            folder += "-again"
        os.makedirs(folder)
        for path in products:
            shutil.move(path, folder)
        print(f"[INFO] the files of an earlier run were moved to {folder}...")


def start_run(args):
    """Start a run, or load the checkpoint to resume from and take over its settings; return a dict
    with the run's record and, when resuming, all that save_checkpoint() wrote. Raises UserError if
    another training runs, if there is nothing to resume, or if flags or settings differ."""
    run = {}
    if devices.get_rank() == 0:
        lock_output()
        # a launch that starts itself again cannot take the flag away: it may begin without one
        canBegin = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        if args.resume and (os.path.exists(config.CHECKPOINT_PATH) or not canBegin):
            path = config.CHECKPOINT_PATH
            if not os.path.exists(path):
                raise UserError(f"{path}: nothing to resume; leave out --resume")
            run = load_state(path)
            before = run.get("record") if isinstance(run, dict) else None
            if not isinstance(before, dict) or get_record().keys() - before.keys():
                raise UserError(f"{path}: not a checkpoint of this training; leave out --resume")
    run = devices.broadcast(run)
    if run:
        take_settings(run["record"], args)
    record = get_record()
    devices.compare_processes({**record, "--resume": args.resume})
    for name in SPLITS if run else ():
        if run["record"][name] != record[name]:
            print(f"[INFO] {name} changed: {run['record'][name]} then, {record[name]} now...")
    return {**run, "record": record}


def get_record():
    """Return the settings and image digests that all processes must share, by name."""
    record = {name: getattr(config, name) for name in SETTINGS}
    record.update({name: describe_images(getattr(config, key)) for name, key in SPLITS.items()})
    return {**record, "CLASSES": get_classes(), "number of devices": devices.count_devices()}


def take_settings(before, args):
    """Set config to the settings in the record of a checkpoint, batch size and rate the same over
    all devices. Raises UserError if CLASSES or a flag other than --epochs differs."""
    settings = {name: before[name] for name in SETTINGS}
    (numBefore, numDevices) = (before["number of devices"], devices.count_devices())
    (perDevice, rest) = divmod(numBefore * before["LOCAL_BATCH_SIZE"], numDevices)
    if rest:
        where = f"{numDevices} devices, as {config.CHECKPOINT_PATH} has {numBefore}"
        raise UserError(f"the batch cannot be split evenly between {where}; resume on others")
    # rounded, as 0.0001 * 3 is not quite 0.0003
    rate = float(f"{before['LR'] * numBefore / numDevices:.12g}")
    epochs = getattr(args, "EPOCHS", before["EPOCHS"])
    settings.update(LOCAL_BATCH_SIZE=perDevice, LR=rate, EPOCHS=epochs)
    saved = {**settings, "CLASSES": before["CLASSES"]}
    given = {**settings, **vars(args), "CLASSES": get_classes()}
    records = {f"in {config.CHECKPOINT_PATH}": saved, "in this run": given}
    compare(records, "they must match, or start again without --resume")
    set_config("taken from the checkpoint", settings)


def save_checkpoint(parts, epoch, H, record):
    """Write the state of a training and its settings; the first time, move an earlier run aside.
    parts: dict of what has a state. epoch: the number of completed epochs. H: the history."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state.update(epoch=epoch, H=H, record=record)
    save_state(state, config.CHECKPOINT_PATH, before=set_aside_run if epoch == 1 else None)
    if devices.get_rank() == 0:
        write_file(config.SETTINGS_PATH, f"{json.dumps(record, indent=4)}\n".encode())


def restore_checkpoint(run, parts):
    """Put parts in the state that start_run returned; return its epoch and history H."""
    for name, part in parts.items():
        # empty for a GradScaler that is off
        if run[name]:
            part.load_state_dict(run[name])
    print(f"[INFO] resuming after epoch {run['epoch']}...")
    if run["epoch"] >= config.EPOCHS:
        print(f"[INFO] nothing left to train (EPOCHS = {config.EPOCHS})...")
    return run["epoch"], run["H"]
