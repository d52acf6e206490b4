"""Flags, the check of config.py, and how a script ends."""

import argparse
import os
import platform
import signal
import sys
import unicodedata
from functools import wraps

import torch
from torch import distributed

from . import config, devices

# the settings that have a flag: type, smallest value, meaning
FLAGS = {
    "IMAGE_SIZE": (int, 1, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, "images in a training batch, per device"),
    "PRED_BATCH_SIZE": (int, 1, "images in an inference batch, per device"),
    "EPOCHS": (int, 1, "passes over the training images"),
    "LR": (float, 1e-12, "learning rate, multiplied by the number of devices"),
    "SEED": (int, 0, "seed of all random numbers"),
    "NUM_WORKERS": (int, 0, "processes that load images; 0: the script loads them itself"),
    "PRETRAINED": (bool, False, "start from the ImageNet weights, not from random ones"),
}


class UserError(Exception):
    """What is wrong, where, and what to do. All processes raise it together; rank 0 prints it."""


class ImageError(UserError):
    """A UserError about one image, which the process that reads it raises and prints alone."""


def in_all_processes(check):
    """Decorate a check: where it raises UserError in one process, it raises it in all."""

    @wraps(check)
    def check_together(*args, **options):
        (answer, text) = (None, None)
        try:
            answer = check(*args, **options)
        except UserError as error:
            text = f"{error}"
        found = devices.all_gather((text, platform.node()))
        wrong = [pair for pair in found if pair[0]]
        if wrong:
            (text, host) = wrong[0]
            raise UserError(text if len(wrong) == len(found) else f"on {host}: {text}")
        return answer

    return check_together


def make_parser(description, names, example):
    """Return an argument parser with a flag for each of the settings named."""
    parser = argparse.ArgumentParser(description=description, epilog=f"example: {example}")
    for name in names:
        (kind, _, text) = FLAGS[name]
        options = {"type": kind, "metavar": "N"}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = "--" + name.lower().replace("_", "-")
        text += f" (default: {getattr(config, name)})"
        # a flag that is not given is not in the parsed command line
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **options)
    return parser


def parse_args(parser, argv):
    """Return the parsed command line, whose settings are then in config, and check config."""
    args = parser.parse_args(argv)
    given = {name: value for name, value in vars(args).items() if name in FLAGS}
    set_config("overridden for this run", given)
    check_config()
    return args


def set_config(reason, settings):
    """Write settings into config for this run; print the reason and those that change."""
    changes = {name: value for name, value in settings.items() if value != getattr(config, name)}
    for name, value in changes.items():
        setattr(config, name, value)
    if changes:
        print(f"[INFO] {reason}: {', '.join(f'{n} = {value}' for n, value in changes.items())}...")


@in_all_processes
def check_config():
    """Make the values in config plain; raise UserError for one that would be wrong in silence."""
    config.DEVICE = torch.device(config.DEVICE)
    for name in dir(config):
        if name.endswith("_PATH") or name in ("TRAIN", "VAL", "TEST"):
            setattr(config, name, os.path.expanduser(getattr(config, name)))
    for name, (kind, low, _) in FLAGS.items():
        value = getattr(config, name)
        # numpy's numbers too become plain ones, as a checkpoint holds no others
        setattr(config, name, value if isinstance(value, str) else kind(value))
        if getattr(config, name) != value or isinstance(value, str) or not value >= low:
            raise UserError(f"{name} must be {kind.__name__} and at least {low}, not {value!r}")
    (config.MEAN, config.STD) = (list(map(float, config.MEAN)), list(map(float, config.STD)))
    if not all(len(m) == 3 and all(0 <= n <= 1 for n in m) for m in (config.MEAN, config.STD)):
        raise UserError(f"MEAN, STD: three numbers from 0 to 1, not {config.MEAN}, {config.STD}")
    if isinstance(config.CLASSES, str):
        raise UserError(f"CLASSES must be a list of labels, not {config.CLASSES!r}")
    labels = [[part.strip() for part in str(label).split("/")] for label in config.CLASSES]
    config.CLASSES = ["/".join(label) for label in labels]
    if len(labels) < 2 or not all(part.strip(".") for label in labels for part in label):
        raise UserError(f"CLASSES must be two or more names of folders, not {config.CLASSES}")
    outer = [normalize_name(label[0]) for label in labels]
    shared = [c for c, name in zip(config.CLASSES, outer, strict=True) if outer.count(name) > 1]
    if shared:
        raise UserError(f"CLASSES: {' and '.join(shared)} share a class folder; rename one")


def normalize_name(name):
    """Return the name of a label or folder as it is compared: with / as - or _, accents joined."""
    name = unicodedata.normalize("NFC", name).strip().lower()
    return name.translate(str.maketrans("/\\- ", "____"))


def run(main, advice):
    """Call main(). A UserError ends the script in one line and with status 1, Ctrl-C in one that
    gives advice and with status 130; all other errors are Python's."""
    if hasattr(sys.stdout, "reconfigure"):
        # a log file shows each line at once, and any file name can be printed
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    (script, before) = (os.getpid(), signal.getsignal(signal.SIGINT))

    def end(number, frame):
        # nothing has to be tidied up; a forked worker says nothing
        if os.getpid() == script:
            os.write(2, f"\n[INFO] interrupted; {advice}\n".encode())
        os._exit(130)

    # torchrun says that it was interrupted, and & in a shell script has the signal ignored
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL if "TORCHELASTIC_RUN_ID" in os.environ else end)
    try:
        main()
    except UserError as error:
        if devices.get_rank() == 0 or isinstance(error, ImageError):
            # an error from a worker carries the worker's traceback in front of the message
            sys.exit(f"[ERROR] {str(error).rstrip().rpartition('ImageError: ')[2]}")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, before)
    # not after an error, as a process that is lost would not answer
    if distributed.is_initialized():
        distributed.destroy_process_group()
