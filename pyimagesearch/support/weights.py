"""The weights file, which knows what it was trained on."""

import io
import os
from typing import NamedTuple

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pyimagesearch import config

from .errors import UserError
from .files import write_file
from .labels import get_classes
from .processes import call_in_rank_0, get_rank


class TrainedOn(NamedTuple):
    """What a network was trained on: class names in the order of its logits, side of its input in
    pixels, mean and standard deviation that normalize it, per RGB channel from 0 to 1."""

    classes: list
    imageSize: int
    mean: list
    std: list


def describe_training():
    """Return the TrainedOn of what is trained now, with the settings of config.py."""
    return TrainedOn(get_classes(), config.IMAGE_SIZE, config.MEAN, config.STD)


def save_state(state, path):
    """Write tensors and plain values in dicts and lists to path, in rank 0 alone."""
    if get_rank() == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(path, buffer.getvalue())


def save_weights(model, classes):
    """Write the state dict of the plain model, on the CPU, to MODEL_PATH. Its metadata, which a
    strict load_state_dict() does not see, says what it was trained on.

    classes: as the ImageFolder of the training images names them.
    """
    state = model.state_dict()
    # in place, as a new dict would lose the metadata
    for name, tensor in state.items():
        state[name] = tensor.cpu()
    trainedOn = TrainedOn(list(classes), config.IMAGE_SIZE, config.MEAN, config.STD)
    state._metadata[""].update(trainedOn._asdict())
    save_state(state, config.MODEL_PATH)


def read_weights(path):
    """Return (state dict, TrainedOn) of the weights file at path, in which no code is run. Under
    torchrun rank 0 reads it for all. A file from the tutorial's own script says nothing of its
    training: what is missing is taken from config.py. Raises UserError if there is no such file."""
    (state, facts) = call_in_rank_0(load_weights, path)
    if "classes" not in facts:
        print(f"[INFO] {path} has no class names: they are taken from CLASSES in config.py...")
    default = describe_training()
    trainedOn = TrainedOn(
        classes=facts.get("classes", default.classes),
        imageSize=facts.get("imageSize", default.imageSize),
        mean=facts.get("mean", default.mean),
        std=facts.get("std", default.std),
    )
    return state, trainedOn


def check_path(path):
    """Raise UserError if there is no weights file at path."""
    if not os.path.exists(path):
        advice = "run train_distributed.py first, or name another file with --weights"
        raise UserError(f"no weights at {os.path.abspath(path)}; {advice}")


def load_weights(path):
    """Return (state dict, metadata of the whole network) of the weights file at path."""
    check_path(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    facts = getattr(state, "_metadata", {}).get("", {})
    # nn.DataParallel and DistributedDataParallel put it before each name
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state, facts
