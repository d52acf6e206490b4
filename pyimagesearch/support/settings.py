"""The settings of config.py and the flags that override them."""

import argparse
import json
import os
import re

import torch

from pyimagesearch import config

from .errors import UserError
from .labels import normalize_name
from .outputs import check_output_paths

# the settings that have a flag: type, smallest value, meaning
FLAGS = {
    "IMAGE_SIZE": (int, 1, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, "images in a batch, per device"),
    "PRED_BATCH_SIZE": (int, 1, "test images that are drawn, per device"),
    "EPOCHS": (int, 1, "passes over the training images"),
    "LR": (float, 1e-12, "learning rate, multiplied by the number of devices"),
    "SEED": (int, 0, "seed of the weights, the split, the order of the images, their augmentation"),
    "NUM_WORKERS": (int, 0, "processes that load images; 0: the script loads them itself"),
    "PRETRAINED": (bool, False, "start from the ImageNet weights, not from random ones"),
}

# "auto", and the dtypes that autocast has on any device
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def add_flags(parser, names):
    """Add to an argparse parser a flag for each of the settings named."""
    for name in names:
        (kind, _, text) = FLAGS[name]
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        else:
            options = {"type": kind, "metavar": "N"}
        flag = "--" + name.lower().replace("_", "-")
        text = f"{text} (default: {getattr(config, name)})"
        # a flag that is not given is not in the parsed command line
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **options)


def get_flags(args):
    """Return {name: value} of the settings whose flags were given."""
    return {name: value for name, value in vars(args).items() if name in FLAGS}


def read_flags(parser, names, argv):
    """Return the parsed command line, in which the settings named have a flag that has overridden
    config.py."""
    add_flags(parser, names)
    args = parser.parse_args(argv)
    override_config(get_flags(args))
    return args


def override_config(values, reason="overridden by flags"):
    """Write values, {name: value}, over those of config.py, and convert all of them to plain ones.

    A script does this once, at its start; nothing but script.run(), which reads config.py, writes
    to config besides. Prints what changes, after the reason. Raises UserError for a value that
    would give wrong results without an error.
    """
    settings = read_config(values)
    changes = []
    for name in FLAGS:
        if name in values and settings[name] != getattr(config, name):
            changes.append(f"{name} = {settings[name]}")
    if settings["FREEZE_BATCH_NORM"] is None:
        settings["FREEZE_BATCH_NORM"] = settings["PRETRAINED"]
    for name, value in settings.items():
        setattr(config, name, value)
    if changes:
        print(f"[INFO] {reason}: {', '.join(changes)}...")


def read_config(values=None):
    """Return {name: value} of the settings that config holds, with those in values instead.

    All are plain values: numbers of Python's own where numpy's were given, a torch.device, labels
    without blanks around them. Raises UserError for one that would give wrong results without an
    error.
    """
    settings = {name: getattr(config, name) for name in dir(config) if name.isupper()}
    settings.update(values or {})
    settings["DEVICE"] = torch.device(settings["DEVICE"])
    # as text, of torch.float32 too
    settings["PRECISION"] = str(settings["PRECISION"]).removeprefix("torch.")
    for name, (kind, _, _) in FLAGS.items():
        settings[name] = make_plain(settings[name], kind)
    for name in ("MEAN", "STD"):
        settings[name] = [float(number) for number in settings[name]]
    if isinstance(settings["CLASSES"], str):
        raise UserError(f"CLASSES must be a list of labels, not {settings['CLASSES']!r}")
    settings["CLASSES"] = [strip_label(str(label)) for label in settings["CLASSES"]]
    check_settings(settings)
    return settings


def expand_paths():
    """Write the paths in config as they are without ~, before anything is looked for there."""
    for name in dir(config):
        value = getattr(config, name)
        if is_path(name) and isinstance(value, (str, os.PathLike)):
            setattr(config, name, os.path.expanduser(value))


def is_path(name):
    """Return whether a setting is a path."""
    return name.endswith("_PATH") or name in ("TRAIN", "VAL", "TEST")


def make_plain(value, kind):
    """Return value as kind (int, float or bool), as a checkpoint cannot hold numpy's numbers. A
    value that this would change, and a text, is returned as it is."""
    if isinstance(value, str):
        return value
    plain = kind(value)
    return plain if plain == value else value


def strip_label(label):
    """Return a label without blanks around it and around its slash."""
    return "/".join(part.strip() for part in label.split("/"))


def check_settings(settings):
    """Raise UserError for a setting that would give wrong results without an error."""
    for name, (kind, lowest, _) in FLAGS.items():
        value = settings[name]
        if kind is bool:
            if not isinstance(value, bool):
                raise UserError(f"{name} must be True or False, not {value!r}")
        elif type(value) is not kind or not value >= lowest:
            raise UserError(f"{name} must be {kind.__name__} and at least {lowest}, not {value!r}")
    if settings["FREEZE_BATCH_NORM"] not in (True, False, None):
        text = "FREEZE_BATCH_NORM must be True, False, or None to follow PRETRAINED"
        raise UserError(f"{text}, not {settings['FREEZE_BATCH_NORM']!r}")
    if settings["PRECISION"] not in PRECISIONS:
        text = f"PRECISION must be one of {', '.join(PRECISIONS)}, not {settings['PRECISION']!r}"
        raise UserError(text)
    for name in ("MEAN", "STD"):
        numbers = settings[name]
        if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
            raise UserError(f"{name} must be three numbers from 0 to 1, not {numbers}")
    if 0 in settings["STD"]:
        raise UserError(f"STD must not be 0, as pixels are divided by it, not {settings['STD']}")
    check_labels(settings["CLASSES"])
    check_output_paths()


def check_labels(labels):
    """Raise UserError if labels are not two or more names of folders, or two share a folder."""
    for label in labels:
        for part in label.split("/"):
            if not part.strip("."):
                raise UserError(f"CLASSES: {label!r} is no name of a folder; rename it")
    if len(labels) < 2:
        raise UserError(f"CLASSES must be two or more names of folders, not {labels}")
    firsts = {}
    for label in labels:
        folder = normalize_name(label.split("/")[0])
        if folder in firsts:
            both = f"{firsts[folder]} and {label}"
            raise UserError(f"CLASSES: {both} share a class folder; rename one")
        firsts[folder] = label


def make_json(settings):
    """Return settings as they come back from a JSON file."""

    def describe(value):
        # without the address of an object, which is another one in each process
        return re.sub(" at 0x[0-9a-f]+", "", str(value))

    return json.loads(json.dumps(settings, default=describe))
