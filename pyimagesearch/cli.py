# The flags that override config.py for one run.

# import the necessary packages
import argparse
from functools import partial

from . import config

# the settings that have a flag: type, smallest and largest value, meaning
SETTINGS = {
    "IMAGE_SIZE": (int, 32, 4096, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, 65536, "images in a training batch, per GPU"),
    "PRED_BATCH_SIZE": (int, 1, 65536, "images in an inference batch, per GPU"),
    "EPOCHS": (int, 1, 100000, "passes over the training images"),
    "LR": (float, 1e-9, 10, "learning rate, multiplied by the number of GPUs"),
    "SEED": (int, 0, 2**32 - 1, "fixes random weights, order of images and augmentation"),
    "NUM_WORKERS": (int, 0, 1024, "processes that load images; 0: the script itself loads them"),
    "PRETRAINED": (bool, False, True, "start from the ImageNet weights, not from random ones"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others, and exit with 2."""

    def error(self, message):
        self.exit(2, f"[ERROR] {message} (see {self.prog} --help)\n")


def read_setting(name, text):
    """Return the value of the numeric setting name that text stands for.

    Raises ArgumentTypeError where it is of another type or out of range.
    """
    (kind, low, high, _) = SETTINGS[name]
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        noun = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {noun} from {low} to {high}, not {text!r}")
    return value


def make_parser(description, settings):
    """Return a Parser with a flag for each of settings, names of constants in config.py."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=description, formatter_class=formatter)
    for name in settings:
        (kind, _, _, text) = SETTINGS[name]
        options = {"type": partial(read_setting, name), "metavar": "N"}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = "--" + name.lower().replace("_", "-")
        default = getattr(config, name)
        parser.add_argument(flag, dest=name, default=default, help=text, **options)
    return parser


def parse_args(parser):
    """Return the parsed command line, after writing its settings into config for this run."""
    args = parser.parse_args()
    for name in SETTINGS:
        setattr(config, name, getattr(args, name, getattr(config, name)))
    return args
