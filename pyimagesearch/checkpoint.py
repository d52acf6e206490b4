"""A run in output/: its weights, its checkpoint and its settings, each whole or not there."""

import hashlib
import io
import json
import os
import platform

import torch

from . import config, devices
from .cli import UserError, in_all_processes, set_config
from .create_dataloaders import get_classes
from .files import lock_output, set_aside_run, write_file

# the settings that make a run what it is, and its images by the names that messages use
SETTINGS = ("IMAGE_SIZE", "SEED", "PRETRAINED", "MEAN", "STD", "EPOCHS", "LR", "LOCAL_BATCH_SIZE")
DATASETS = ("the training set", "the validation set", "the test set")
# how many tasks a batch system or MPI has started, and which this is; a mere allocation has none
TASKS = [("SLURM_NTASKS", "SLURM_PROCID"), ("PMI_SIZE", "PMI_RANK")]
TASKS.append(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))


def save_state(state, path, before=None):
    """Write tensors and plain values in dicts and lists to path, in rank 0 alone."""
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


def start_run(args):
    """Start a run or, with --resume, continue that in output/ if there is one, with its settings;
    return a dict with these settings and, when resuming, all that save_checkpoint() wrote."""
    print(f"[INFO] running on {config.DEVICE}, computing in {devices.compute_dtype()}...")
    run = devices.broadcast(open_output(args))
    if run:
        take_settings(run["settings"], args)
    elif args.resume:
        print(f"[INFO] no {config.CHECKPOINT_PATH} to resume: a new run begins...")
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings.update({"CLASSES": get_classes(), "number of devices": devices.count_devices()})
    compare_processes(settings)
    return {**run, "settings": {**run.get("settings", {}), **settings}}


@in_all_processes
def open_output(args):
    """In rank 0, lock output/ and return the checkpoint to resume, or {}; refuse lone tasks."""
    for numTasks, task in TASKS:
        count = int(os.environ.get(numTasks, 1))
        if count > 1 and task in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
            alone = f"started as {count} tasks without torchrun, each of which would train alone"
            raise UserError(f"{alone}; start one task per machine, and in it torchrun")
    if devices.get_rank() > 0:
        return {}
    lock_output()
    if not args.resume or not os.path.exists(config.CHECKPOINT_PATH):
        return {}
    return torch.load(config.CHECKPOINT_PATH, map_location="cpu", weights_only=True)


@in_all_processes
def take_settings(before, args):
    """Set config to a checkpoint's settings; refuse flags that differ from them."""
    (numBefore, numDevices) = (before["number of devices"], devices.count_devices())
    (perDevice, rest) = divmod(numBefore * before["LOCAL_BATCH_SIZE"], numDevices)
    if rest:
        raise UserError(f"no even batch on {numDevices} devices; resume on {numBefore}, as before")
    flags = {name: value for name, value in vars(args).items() if name in SETTINGS}
    settings = {name: before[name] for name in SETTINGS}
    settings.update(LOCAL_BATCH_SIZE=perDevice, EPOCHS=flags.get("EPOCHS", before["EPOCHS"]))
    saved = {**settings, "CLASSES": before["CLASSES"]}
    given = {**settings, **flags, "CLASSES": get_classes()}
    pairs = ((f"in {config.CHECKPOINT_PATH}", saved), ("in this run", given))
    compare_settings(pairs, "they must match, or start again without --resume")
    set_config("taken from the checkpoint", settings)


def compare_settings(pairs, advice):
    """Raise UserError if settings differ; pairs: (place, dict of settings), place as "on host"."""
    differences = []
    for name in pairs[0][1]:
        places = {}
        for where, settings in pairs:
            # a host once, however many processes it has
            places.setdefault(str(settings[name]), {})[where] = None
        if len(places) > 1:
            values = [f"{value} {', '.join(found)}" for value, found in places.items()]
            differences.append(f"{name} is {' and '.join(values)}")
    if differences:
        raise UserError("; ".join([*differences, advice]))


def compare_processes(settings):
    """Raise UserError in all processes unless all of them have the same settings."""
    compare_settings(devices.all_gather((f"on {platform.node()}", settings)), "they must match")


def restore_run(run, stateful, H, datasets):
    """Put stateful and H in the state of a resumed run; return how many epochs it has completed."""
    images = dict(zip(DATASETS, map(describe_images, datasets), strict=True))
    compare_processes(images)
    before = run["settings"]
    run["settings"] = {**before, **images}
    if "model" not in run:
        return 0
    for name in DATASETS:
        if before[name] != images[name]:
            print(f"[INFO] {name} changed: {before[name]} then, {images[name]} now...")
    for name, item in stateful.items():
        # empty for a GradScaler that is off
        if run[name]:
            item.load_state_dict(run[name])
    # Adam pairs numbers as they lie in memory, and Apple's GPU has them in another order
    for param, values in stateful["opt"].state.items():
        for name, value in values.items():
            if value.shape == param.shape:
                values[name] = torch.empty_like(param).copy_(value)
    H.update(run["H"])
    print(f"[INFO] resuming after epoch {run['epoch']} of {config.EPOCHS}...")
    return run["epoch"]


def describe_images(ds):
    """Return as text the number of images of an ImageFolder and a digest of paths and sizes."""
    paths = [path for path, _ in ds.samples]
    lines = [f"{os.path.relpath(path, ds.root)} {os.path.getsize(path)}\n" for path in paths]
    digest = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{len(lines)} images ({digest})"


def save_checkpoint(run, stateful, epoch, H, classes):
    """Write state, weights and settings after an epoch; the first moves an earlier run aside."""
    state = {name: item.state_dict() for name, item in stateful.items()}
    state.update(epoch=epoch, H=H, settings=run["settings"])
    save_state(state, config.CHECKPOINT_PATH, before=set_aside_run if epoch == 1 else None)
    save_weights(stateful["model"], classes)
    if devices.get_rank() == 0:
        write_file(config.SETTINGS_PATH, json.dumps(run["settings"], indent=4).encode())
