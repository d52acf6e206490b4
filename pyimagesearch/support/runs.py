"""A run: whether it is new, continued or an evaluation, and which settings it has."""

import json
import os
import time
from dataclasses import dataclass

import torch

from pyimagesearch import config

from . import devices, files, outputs, processes, settings, weights
from .checkpoints import read_checkpoint
from .errors import UserError
from .images import list_images, list_sizes
from .labels import get_classes


@dataclass
class Run:
    """A training in output/, or an evaluation.

    record: what settings.json holds. overrides: {name: value} of the settings that all processes
    have from rank 0. numDevices: how many devices share a batch. checkpoint: what was saved after
    its last epoch, or None. start: the weights that it begins with, of load_weights(), or None.
    images: {split: list of (path, size)}, transform: the training transform as text, and classes,
    once they are known. folder: where its report goes, if not where config.py says.
    """

    record: dict
    overrides: dict
    numDevices: int
    checkpoint: dict | None = None
    start: tuple | None = None
    images: dict | None = None
    transform: str | None = None
    classes: list | None = None
    folder: str | None = None


def start_run(args):
    """Start a run in output/ or, with args.resume, continue the one that is there; with
    args.evaluate, start an evaluation beside it. Return the Run; config then has its settings.

    args: the parsed command line. All processes take the settings of rank 0. Raises UserError if
    another training is running there, or if a setting is not that of the run to continue.
    """
    if args.evaluate:
        open_run = open_evaluation
    elif args.resume and os.path.exists(config.SETTINGS_PATH):
        open_run = open_earlier
    else:
        open_run = open_new
    run = processes.call_in_rank_0(open_run, args)
    reason = "settings of this run" if args.resume else "overridden by flags"
    settings.override_config(run.overrides, reason)
    dtype = devices.compute_dtype(config.DEVICE, config.PRECISION)
    print(f"[INFO] running on {config.DEVICE}, computing in {dtype}...")
    return run


def open_new(args):
    """Lock output/, move an earlier run aside, and write the settings of a new one."""
    flags = settings.get_flags(args)
    # a wrong flag must not cost the earlier run its place
    settings.read_config(flags)
    # which may be those of the earlier run
    start = weights.load_weights(args.weights) if args.weights else None
    outputs.lock_output()
    if args.resume:
        print(f"[INFO] no {config.SETTINGS_PATH} to resume: a new run begins...")
    record = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "number of devices": devices.count_devices(),
        "flags": flags,
        "config": settings.make_json(settings.read_config()),
    }
    overrides = share_settings(settings.read_config(), flags)
    folder = outputs.set_aside_run()
    if args.weights:
        record["weights"] = os.path.abspath(args.weights)
        record["weights moved to"] = find_moved(args.weights, folder)
    write_record(record, config.SETTINGS_PATH)
    return Run(record, overrides, devices.count_devices(), start=start)


def find_moved(path, folder):
    """Return where the weights at path are now that an earlier run was moved to folder, if any was
    and if they belonged to it; else None."""
    if folder is None or os.path.exists(path):
        return None
    return os.path.join(os.path.abspath(folder), os.path.basename(path))


def open_earlier(args):
    """Lock output/, and write the settings of the run there as it continues now."""
    flags = settings.get_flags(args)
    settings.read_config(flags)
    outputs.lock_output()
    record = continue_record(settings.make_json(settings.read_config()), flags)
    # the flags of the start, and those given now
    overrides = share_settings(settings.read_config(), record["flags"])
    # the total batch and the rate stay, on however many devices
    overrides.update(share_batch(record))
    checkpoint = read_checkpoint(record["started"])
    start = None
    # an absolute path, where the run began with weights of the user's own
    begun = record.get("weights")
    if args.weights and os.path.abspath(args.weights) != begun:
        text = f"the run in output/ began with {begun or 'no weights of your own'}"
        raise UserError(f"{text}; leave out --weights to resume it, or --resume to begin another")
    if begun and checkpoint is None:
        start = weights.load_weights(record["weights moved to"] or begun)
    write_record(record, config.SETTINGS_PATH)
    return Run(record, overrides, devices.count_devices(), checkpoint, start)


def open_evaluation(args):
    """Make a folder for the report on trained weights, and write which weights and images it is
    about."""
    weightsPath = args.weights or config.MODEL_PATH
    weights.check_path(weightsPath)
    sizes = list_sizes(config.TEST, list_images(config.TEST))
    folder = outputs.make_evaluation_folder(weightsPath)
    record = {
        "weights": os.path.abspath(weightsPath),
        "digest of the weights": files.digest_file(weightsPath),
        "images": os.path.abspath(config.TEST),
        "number of images": len(sizes),
        "digest of their names and sizes": processes.digest_items(sizes),
        "flags": settings.get_flags(args),
    }
    write_record(record, os.path.join(folder, os.path.basename(config.SETTINGS_PATH)))
    overrides = share_settings(settings.read_config(), record["flags"])
    return Run(record, overrides, devices.count_devices(), folder=folder)


def write_record(record, path):
    """Write the record of a run to path, a line for each value."""
    files.write_file(path, json.dumps(record, indent=4).encode())


def read_record():
    """Return what settings.json holds of the run in output/."""
    with open(config.SETTINGS_PATH) as file:
        record = json.load(file)
    if not {"started", "number of devices", "flags", "config"} <= record.keys():
        other = f"{config.SETTINGS_PATH} is of another version of this project"
        raise UserError(f"{other}; finish that run with it, or start a new one without --resume")
    return record


def continue_record(now, flags):
    """Return the record of the run in output/, with what config.py and flags now say of settings
    that a run may change. Raises UserError if any other setting is not that of the run.

    now: {name: value} of config.py. flags: those that are given now.
    """
    record = read_record()
    before = record["config"]
    edited = []
    for name in now.keys() | before.keys():
        if not is_same(name, now, before):
            edited.append(name)
    refuse_changes(record, now, flags, edited)
    refuse_lost_checkpoint(before["CHECKPOINT_PATH"])
    for name in edited:
        if may_change(name):
            # None for a path of the user's own that is gone
            before[name] = now.get(name)
            # a new line in config.py counts more than the flag of an earlier start
            record["flags"].pop(name, None)
    record["flags"].update(flags)
    return record


def refuse_changes(record, now, flags, edited):
    """Raise UserError if flags, or settings that were edited in config.py, say something else than
    the run, of a setting that a run may not change."""
    changes = []
    for name in sorted({*flags, *edited}):
        inRun = record["flags"].get(name, record["config"].get(name))
        wanted = flags.get(name, now.get(name))
        if wanted != inRun and not may_change(name):
            changes.append(f"{name} is {inRun} in the run in output/ and {wanted} now")
    if changes:
        advice = "set it back to resume, or start a new run without --resume"
        more = f"--weights {config.MODEL_PATH} begins it with the weights of this one"
        raise UserError(f"{'; '.join(changes)}; {advice} ({more})")


def refuse_lost_checkpoint(before):
    """Raise UserError if the run's checkpoint is at the path that config.py had before, and none is
    where it says now: the run would begin anew."""
    now = config.CHECKPOINT_PATH
    if os.path.exists(before) and not os.path.exists(now):
        advice = f"move it to {now}, or set CHECKPOINT_PATH in config.py back"
        raise UserError(f"the checkpoint of the run in output/ is still {before}; {advice}")


def may_change(name):
    """Return whether a resumed run may have another value of a setting than before: EPOCHS, what
    changes no result, and what only rounds otherwise."""
    names = ("EPOCHS", "NUM_WORKERS", "PRED_BATCH_SIZE", "DEVICE", "PRECISION")
    return name in names or settings.is_path(name)


def is_same(name, now, before):
    """Return whether config.py says the same of a setting now as before."""
    if name == "CLASSES":
        # an ImageFolder names and orders them by itself
        return get_classes(now[name]) == get_classes(before[name])
    if name == "DEVICE":
        # the record keeps the one of the start
        return True
    if name == "LOCAL_BATCH_SIZE" and get_kind(now) != get_kind(before):
        # config.py has another value for each kind of device; the run keeps its own
        return True
    return now.get(name) == before.get(name)


def get_kind(values):
    """Return the kind of the device in settings, as "cuda"."""
    return torch.device(values["DEVICE"]).type


def share_settings(values, flags):
    """Return {name: value} of the settings that all processes take from rank 0: all but the paths
    and the device, which each machine has of its own. values: those of config.py. flags: those that
    override them."""
    shared = {}
    for name, value in values.items():
        if name != "DEVICE" and not settings.is_path(name):
            shared[name] = value
    return shared | flags


def share_batch(record):
    """Return the LOCAL_BATCH_SIZE and LR that give the present devices the total batch and the rate
    with which the run started; its record keeps those of the start. Raises UserError if the total
    batch does not divide by the devices."""
    values = record["config"] | record["flags"]
    numBefore = record["number of devices"]
    numDevices = devices.count_devices()
    if numDevices == numBefore:
        # LR stays as it is: LR * 3 / 3 may differ in its last digit
        return {"LOCAL_BATCH_SIZE": values["LOCAL_BATCH_SIZE"]}
    total = values["LOCAL_BATCH_SIZE"] * numBefore
    if total % numDevices:
        divisors = [str(count) for count in range(1, total + 1) if total % count == 0]
        text = f"a total batch of {total} does not divide by {numDevices} devices"
        raise UserError(f"{text}; resume on one of {', '.join(divisors)}")
    return {"LOCAL_BATCH_SIZE": total // numDevices, "LR": values["LR"] * numBefore / numDevices}
