# The flags that override config.py for one run.

# import the necessary packages
import argparse
import math
import re
from difflib import get_close_matches
from functools import partial

import torch

from . import config
from .errors import UserError

# the settings that have a flag: type, smallest and largest value, meaning
SETTINGS = {
    "IMAGE_SIZE": (int, 32, 4096, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, 65536, "images in a training batch, per GPU"),
    "PRED_BATCH_SIZE": (int, 1, 65536, "images in an inference batch, per GPU"),
    "EPOCHS": (int, 1, 100000, "passes over the training images"),
    "LR": (float, 1e-9, 10, "learning rate, multiplied by the number of GPUs"),
    "SEED": (int, 0, 2**32 - 1, "fixes all that is drawn at random"),
    "NUM_WORKERS": (int, 0, 1024, "processes that load images; 0: the script itself loads them"),
    "PRETRAINED": (bool, False, True, "start from the ImageNet weights, not from random ones"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors with exit status 2."""

    def error(self, message):
        flags = re.findall(r"--[a-z-]+", self.format_usage())
        words = message.split() if message.startswith("unrecognized") else []
        for word in words:
            for flag in get_close_matches(word.partition("=")[0], flags, n=1):
                message += f"; did you mean {flag}?"
        raise UserError(f"{message} (see {self.prog} --help)", status=2)


def read_setting(name, text):
    """Return the value that text stands for as a value of the setting name.

    Raises ArgumentTypeError where it is of another type or out of range.
    """
    (kind, low, high, _) = SETTINGS[name]
    try:
        value = {"True": True, "False": False}[text] if kind is bool else kind(text)
        if low <= value <= high:
            return value
    except (KeyError, ValueError):
        pass
    noun = {int: "a whole number", float: "a number", bool: "a truth value"}[kind]
    raise argparse.ArgumentTypeError(f"must be {noun} from {low} to {high}, not {text!r}")


def is_device(value):
    """Return whether value is a torch.device that this machine has."""
    try:
        return isinstance(value, torch.device) and torch.empty(0, device=value) is not None
    # the backends raise an error each of their own
    except Exception:
        return False


def is_list(value, length, isEntry):
    """Return whether value is a list of at least length entries, each of which passes isEntry."""
    return isinstance(value, (list, tuple)) and len(value) >= length and all(map(isEntry, value))


def is_number(value):
    """Return whether value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_path(value):
    """Return whether value is a string that names a file or folder."""
    return isinstance(value, str) and value.strip("./ ") != ""


def is_label(value):
    """Return whether value is a string that names a folder, or with slashes folders."""
    return isinstance(value, str) and all(map(is_path, value.split("/")))


def check_config():
    """Raise UserError for a constant of config.py of the wrong type or out of range."""
    for name in SETTINGS:
        try:
            setattr(config, name, read_setting(name, str(getattr(config, name))))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name} in config.py {error}") from error
    rules = {
        "DEVICE": (is_device, "a torch.device that this machine has"),
        "CLASSES": (lambda value: is_list(value, 2, is_label), "a list of two labels or more"),
        "MEAN": (lambda value: is_list(value, 3, is_number), "a list of three numbers"),
        "STD": (
            lambda value: is_list(value, 3, is_number) and min(value) > 0,
            "a list of three numbers above 0",
        ),
    }
    rules.update({name: (is_path, "a path") for name in dir(config) if name.endswith("_PATH")})
    for name, (isRight, noun) in rules.items():
        value = getattr(config, name)
        if not isRight(value):
            raise UserError(f"{name} in config.py must be {noun}, not {value!r}")


def make_parser(description, settings, example):
    """Return a Parser with a flag for each of settings, names of constants in config.py.

    Raises UserError if config.py holds what cannot be used.
    """
    check_config()
    parser = Parser(description=description, epilog=f"example: {example}")
    for name in settings:
        (kind, _, _, text) = SETTINGS[name]
        options = {"type": partial(read_setting, name), "metavar": "N"}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = "--" + name.lower().replace("_", "-")
        default = getattr(config, name)
        text += " (default: %(default)s)"
        parser.add_argument(flag, dest=name, default=default, help=text, **options)
    return parser


def parse_args(parser):
    """Return the parsed command line, after writing its settings into config for this run."""
    args = parser.parse_args()
    changes = []
    for name in SETTINGS:
        value = getattr(args, name, getattr(config, name))
        if value != getattr(config, name):
            changes.append(f"{name} = {value}")
        setattr(config, name, value)
    if changes:
        print(f"[INFO] other than in config.py: {', '.join(changes)}...")
    return args
