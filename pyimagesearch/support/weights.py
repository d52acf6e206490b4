"""The weights file, which knows what it was trained on."""

import io
import os
import zipfile
from contextlib import contextmanager
from http.client import HTTPException
from typing import NamedTuple
from urllib.error import URLError

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pyimagesearch import config

from .errors import UserError
from .files import find_stranger, write_file
from .images import is_disk_error
from .labels import get_classes, normalize_name
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
    """Write the state dict of the plain model to MODEL_PATH: on the CPU, and in the usual layout,
    as other programs and formats know no other. It says what it was trained on.

    classes: as the ImageFolder of the training images names them.
    """
    state = model.state_dict()
    # in place, as a new dict would lose the metadata
    for name, tensor in state.items():
        state[name] = tensor.cpu().contiguous()
    describe_state(state, classes)
    save_state(state, config.MODEL_PATH)


def describe_state(state, classes):
    """Write what a network was trained on into the metadata of its state dict, which a strict
    load_state_dict() does not see."""
    trainedOn = TrainedOn(list(classes), config.IMAGE_SIZE, config.MEAN, config.STD)
    state._metadata[""].update(trainedOn._asdict())


def read_weights(path):
    """Return (state dict, TrainedOn) of the weights file at path, in which no code is run. Under
    torchrun rank 0 reads it for all. A file from the tutorial's own script says nothing of its
    training: what is missing is taken from config.py. Raises UserError if there is no such file, or
    if it holds something else."""
    (state, facts) = call_in_rank_0(load_weights, path)
    default = describe_training()
    if "classes" not in facts:
        print(f"[INFO] {path} has no class names: they are taken from CLASSES in config.py...")
        numClasses = len(state["classifier.weight"])
        if numClasses != len(default.classes):
            text = f"{path} knows {numClasses} classes, CLASSES in config.py {len(default.classes)}"
            raise UserError(f"{text}; list the classes that it was trained on there")
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
    """Return (state dict, metadata of the whole network) of the weights file at path, or of the
    checkpoint there. Raises UserError if it is neither, of this network."""
    check_path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # a damaged file makes torch raise nearly anything
        if is_disk_error(error):
            raise
        raise UserError(describe_failure(path)) from error
    if isinstance(state, dict) and {"model", "opt"} <= state.keys():
        # a checkpoint
        state = state["model"]
    facts = getattr(state, "_metadata", {}).get("", {})
    names = []
    if isinstance(state, dict) and all(isinstance(name, str) for name in state):
        # nn.DataParallel and DistributedDataParallel put it before each name
        consume_prefix_in_state_dict_if_present(state, "module.")
        names = list(state)
    hasBase = any(name.startswith("baseModel.") for name in names)
    if not hasBase or "classifier.weight" not in names:
        text = f"{path} holds no FoodClassifier, whose weights are baseModel.* and classifier.*"
        raise UserError(f"{text}; it begins with {', '.join(names[:2]) or 'something else'}")
    return state, facts


def describe_failure(path):
    """Return why torch cannot read the file at path, and what to do about it."""
    stranger = find_stranger(path)
    if stranger:
        return f"{path} is {stranger}"
    with open(path, "rb") as file:
        isPickle = file.read(1) == b"\x80"
    if isPickle or zipfile.is_zipfile(path):
        text = "is damaged, or holds more than tensors and plain values, such as a whole model"
        advice = "no code in it was run: save the state_dict() of the model instead"
        return f"{path} {text}; {advice}"
    return f"{path} is damaged, or no weights file; copy or download it again"


@contextmanager
def explain_failed_download(url):
    """Raise UserError where PyTorch cannot download the weights at url within the block."""
    try:
        yield
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        text = f"{url} cannot be downloaded ({error})"
        advice = f"download it with a browser into {folder}, or train without it: --no-pretrained"
        raise UserError(f"{text}; {advice}") from error


def begin_with(model, start, classes, path):
    """Load the weights that a new run begins with into model; its classifier stays as it is if they
    were trained on other classes.

    start: of load_weights(). classes: of the training images. path: of the file, for messages.
    """
    (state, facts) = start
    found = [normalize_name(name) for name in facts.get("classes", [])]
    expected = [normalize_name(name) for name in classes]
    own = model.state_dict()
    isSame = found == expected
    if not found:
        # of the tutorial's own script
        isSame = state["classifier.weight"].shape == own["classifier.weight"].shape
    print(f"[INFO] beginning with the weights in {path}...")
    if not isSame:
        print("[INFO] they were trained on other classes: the classifier is new...")
        for name in ("classifier.weight", "classifier.bias"):
            state[name] = own[name]
    model.load_state_dict(state)
