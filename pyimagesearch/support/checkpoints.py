"""What a resumed run needs: the state after its last completed epoch."""

import os
import re

import torch

from pyimagesearch import config

from . import tables, weights
from .errors import UserError
from .images import list_sizes

# the images of a run, by the names that messages use
SPLITS = ("training", "validation", "test")


def read_checkpoint(started):
    """Return what the checkpoint of the run that started then holds, or None without one."""
    if not os.path.exists(config.CHECKPOINT_PATH):
        if os.path.exists(config.MODEL_PATH):
            # the first epoch would overwrite them
            text = f"{config.MODEL_PATH} is there, but no {config.CHECKPOINT_PATH} to resume from"
            advice = "move the checkpoint back, or start a new run without --resume"
            raise UserError(f"{text}; {advice}")
        print(f"[INFO] no {config.CHECKPOINT_PATH} yet: the run begins from its start...")
        return None
    checkpoint = torch.load(config.CHECKPOINT_PATH, map_location="cpu", weights_only=True)
    if checkpoint.get("started") != started:
        other = f"{config.CHECKPOINT_PATH} is of another run than {config.SETTINGS_PATH}"
        raise UserError(f"{other}; move one of them away, or start a new run without --resume")
    return checkpoint


def restore_run(run, parts, H, datasets):
    """Put parts and the history H in the state of the run's last checkpoint or, where it has none,
    the model in that of the weights that it begins with, if any. Return how many epochs it has
    completed.

    parts: {name: what has a state_dict()}. datasets: the ImageFolders of the training, validation
    and test images. Prints which of these changed since. Raises UserError for a checkpoint of
    another version, which has another history.
    """
    describe_data(run, datasets)
    if run.checkpoint is None:
        if run.start is not None:
            weights.begin_with(parts["model"], run.start, run.classes, run.record["weights"])
        return 0
    if run.checkpoint["H"].keys() != H.keys():
        other = f"{config.CHECKPOINT_PATH} is of another version of this project"
        raise UserError(f"{other}; finish that run with it, or start a new one without --resume")
    compare_images(run.checkpoint["images"], run.images)
    if run.checkpoint["transform"] != run.transform:
        print(f"[INFO] the training transform changed: {run.checkpoint['transform']} then...")
    load_parts(parts, run.checkpoint)
    H.update(run.checkpoint["H"])
    # a run that was killed after its last checkpoint may lack a row
    tables.write_history(H)
    epoch = run.checkpoint["epoch"]
    print(f"[INFO] resuming after epoch {epoch} of {config.EPOCHS}...")
    print_low_rate(parts["lrScheduler"])
    return epoch


def describe_data(run, datasets):
    """Record in run its classes, transform and images, which each checkpoint stores."""
    run.classes = datasets[0].classes
    run.transform = describe_transform(datasets[0])
    run.images = {}
    for split, ds in zip(SPLITS, datasets, strict=True):
        run.images[split] = list_sizes(ds.root, [path for path, _ in ds.samples])


def load_parts(parts, checkpoint):
    """Put parts, {name: what has a state_dict()}, in the state of a checkpoint."""
    for name, part in parts.items():
        # empty for a GradScaler that is off
        if checkpoint[name]:
            part.load_state_dict(checkpoint[name])
    # lay out Adam's numbers as the weights lie in memory: it pairs them by their places, and
    # Apple's GPU saves them in another order
    for param, values in parts["opt"].state.items():
        for name, value in values.items():
            if value.shape == param.shape:
                values[name] = torch.empty_like(param).copy_(value)


def print_low_rate(lrScheduler):
    """Print what to do if the learning rate is too low to learn anything new."""
    rate = lrScheduler.get_last_lr()[0]
    # a tenth of a tenth is a little more than a hundredth
    if rate < 0.011 * lrScheduler.base_lrs[0]:
        text = f"the learning rate is down to {rate:g}, too low to learn anything new"
        advice = f"begin a new run with --weights {config.MODEL_PATH} for a rate of its own"
        print(f"[INFO] {text}; {advice}...")


def describe_transform(ds):
    """Return the transform of an ImageFolder as a line of text."""
    # without the address of an object, which is another one in each process
    text = re.sub(" at 0x[0-9a-f]+", "", repr(ds.transform))
    return " ".join(text.split())


def compare_images(before, now):
    """Print which images changed, and how many test images are new that the run was trained on.
    before, now: {split: list of (path below the split's folder, size)}."""
    for split in SPLITS:
        gone = set(before[split]) - set(now[split])
        new = set(now[split]) - set(before[split])
        if gone or new:
            counts = f"{len(gone)} are gone, {len(new)} are new, {len(now[split])} in all"
            print(f"[INFO] the {split} images changed: {counts}...")
    # a photograph that was moved is in another folder, but has its name and its size
    trained = {(os.path.basename(path), size) for path, size in before["training"]}
    seen = []
    new = set(now["test"]) - set(before["test"])
    for path, size in sorted(new):
        if (os.path.basename(path), size) in trained:
            seen.append(path)
    if seen:
        text = f"new test images that the run was trained on: {len(seen)}, such as {seen[0]}"
        print(f"[INFO] {text}; the test score will be too high...")


def save_checkpoint(run, parts, H, epoch):
    """Write what a resumed run needs after an epoch, and the history as a table, in rank 0 alone.
    parts: {name: what has a state_dict()}."""
    state = {name: part.state_dict() for name, part in parts.items()}
    weights.describe_state(state["model"], run.classes)
    state.update(
        started=run.record["started"],
        epoch=epoch,
        H=H,
        images=run.images,
        transform=run.transform,
    )
    weights.save_state(state, config.CHECKPOINT_PATH)
    tables.write_history(H)
