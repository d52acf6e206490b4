# The flags that override config.py, the check of its settings, and errors in one line.

import argparse
import os
import re
import sys
import time
import traceback
from argparse import ArgumentTypeError
from contextlib import suppress
from functools import partial

from . import config, isScript

# the settings that have a flag: type, smallest and largest value, meaning
SETTINGS = {
    "IMAGE_SIZE": (int, 64, 4096, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, 65536, "images in a training batch, per device"),
    "PRED_BATCH_SIZE": (int, 1, 65536, "images in an inference batch, per device"),
    "EPOCHS": (int, 1, 100000, "passes over the training images"),
    "LR": (float, 1e-9, 10, "learning rate, multiplied by the number of devices"),
    "SEED": (int, 0, 2**32 - 1, "seed of all random numbers"),
    "NUM_WORKERS": (int, 0, 1024, "processes that load images; 0: the script loads them itself"),
    "PRETRAINED": (bool, False, True, "start from the ImageNet weights, not from random ones"),
}

# parts of the messages of PyTorch and the system, and the message for the user
NO_MEMORY = (
    "signal: Killed|exited unexpectedly|[Oo]ut of memory|an't allocate memory|annot allocate|"
    "not enough memory|MemoryError"
)
KNOWN_ERRORS = {
    "Too many open files|ancdata": "too many open files; raise the limit (ulimit -n 4096), or use "
    "a smaller --num-workers",
    "/dev/shm/nccl": "/dev/shm is too small for NCCL; enlarge it (docker run --ipc=host)",
    "shared memory": "/dev/shm is too small for what the workers load; enlarge it (docker run "
    "--ipc=host), or use --num-workers 0",
    "Connection (closed|reset)|ncclRemoteError": "lost the connection to another process, whose "
    "own message names the cause; --resume continues",
    "Duplicate GPU": "two processes use one GPU; start one for each, with --nproc-per-node=gpu",
    "have NCCL built in": 'this PyTorch has no NCCL; install one for CUDA, or set DEVICE = "cpu"',
    "DistNetworkError|DistStoreError": "another process cannot be reached, or did not start; check "
    "--master-addr, --master-port and the messages on the other machines",
    "DistBackendError": "the processes cannot exchange data",
    NO_MEMORY: "out of memory; start again with smaller batches or a smaller --image-size",
}


class UserError(Exception):
    """An error that the user can fix: the message says what is wrong, where, and what to do."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors with exit status 2."""

    def error(self, message):
        raise UserError(f"{message} (see {self.prog} --help)", status=2)


def read_setting(name, value):
    """Convert value for the setting name; raise ArgumentTypeError if it is wrong."""
    (kind, low, high, _) = SETTINGS[name]
    with suppress(KeyError, ValueError):
        text = str(value)
        number = {"True": True, "False": False}[text] if kind is bool else kind(text)
        if low <= number <= high:
            return number
    noun = {int: "a whole number", float: "a number", bool: "True or False"}[kind]
    limits = "" if kind is bool else f" from {low} to {high}"
    raise ArgumentTypeError(f"must be {noun}{limits}, not {str(value)!r}")


def read_labels(value):
    """Return the labels in value without blanks around them; raise ArgumentTypeError if they do not
    name two or more folders, or if some have the same outer folder, which makes one class."""
    with suppress(AttributeError, TypeError):
        labels = ["/".join(map(str.strip, label.split("/"))) for label in value]
        folders = [simplify(label.split("/")[0]) for label in labels]
        shared = [label for label, f in zip(labels, folders, strict=True) if folders.count(f) > 1]
        areNames = all(part.strip(".") for label in labels for part in label.split("/"))
        if len(labels) > 1 and areNames and not isinstance(value, str):
            if not shared:
                return labels
            both = " and ".join(map(repr, shared))
            raise ArgumentTypeError(f"has {both}, which share a class folder; rename one")
    raise ArgumentTypeError(f"must be a list of two or more labels, not {value!r}")


def simplify(name):
    """Return name as it is compared: Noodles/Pasta is also met as Noodles-Pasta."""
    return name.strip().lower().translate(str.maketrans("/\\- ", "____"))


def read_colour(value, low=0):
    """Return three numbers as floats; raise ArgumentTypeError unless they are from low to 1."""
    with suppress(TypeError, ValueError):
        numbers = [float(number) for number in value]
        if len(numbers) == 3 and all(low <= number <= 1 for number in numbers):
            return numbers
    raise ArgumentTypeError(f"must be a list of three numbers from {low} to 1, not {value!r}")


def check_config():
    """Convert unambiguous values in config.py but DEVICE; raise UserError for others."""
    readers = {name: partial(read_setting, name) for name in SETTINGS}
    readers.update(CLASSES=read_labels, MEAN=read_colour, STD=partial(read_colour, low=1e-99))
    paths = [name for name in dir(config) if name.endswith("_PATH")]
    readers.update(dict.fromkeys([*paths, "TRAIN", "VAL", "TEST"], os.path.expanduser))
    for name, read in readers.items():
        try:
            setattr(config, name, read(getattr(config, name)))
        except (ArgumentTypeError, TypeError) as error:
            raise UserError(f"{name} in config.py {error}") from error


def make_parser(description, settings, example):
    """Return a Parser with a flag for each of settings; raise UserError if config.py is wrong."""
    check_config()
    parser = Parser(description=description, epilog=f"example: {example}")
    for name in settings:
        (kind, _, _, text) = SETTINGS[name]
        options = {"type": partial(read_setting, name), "metavar": "N"}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = "--" + name.lower().replace("_", "-")
        text += f" (default: {getattr(config, name)})"
        # a flag that is not given is not in the parsed command line
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **options)
    return parser


def parse_args(parser):
    """Return the parsed command line, after writing its settings into config for this run."""
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    set_config("overridden by flags", given)
    return args


def set_config(reason, settings):
    """Write settings into config for this run; print the reason and those that change."""
    changes = {name: value for name, value in settings.items() if value != getattr(config, name)}
    for name, value in changes.items():
        setattr(config, name, value)
    if changes:
        texts = [f"{name} = {value}" for name, value in changes.items()]
        print(f"[INFO] {reason}: {', '.join(texts)}...")


def compare(records, advice):
    """Raise UserError, with all values that differ, unless all records have the same values.
    records: {where: record}, where as "on host" or "in file", all with the same names."""
    differences = []
    for name in next(iter(records.values())):
        places = {}
        for where, record in records.items():
            places.setdefault(str(record[name]), []).append(where)
        if len(places) > 1:
            parts = [f"{value} {', '.join(found)}" for value, found in places.items()]
            differences.append(f"{name} is {' and '.join(parts)}")
    if differences:
        raise UserError("; ".join([*differences, advice]))


def lacks_memory(error):
    """Return whether error says that there is not enough memory."""
    return re.search(NO_MEMORY, f"{type(error).__name__}: {error}") is not None


def run(main):
    """Call main; end the process at an error, in one line. A defect keeps its traceback."""
    if hasattr(sys.stdout, "reconfigure"):
        # a log file shows each line at once, and any file name can be printed
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except Exception as error:
        line = describe_error(error)
        if isinstance(error, UserError) and os.environ.get("LOCAL_RANK", "0") != "0":
            # the first process of a machine speaks for all; torchrun ends the others meanwhile
            time.sleep(5)
        text = f"[ERROR] {line}\n" if line else traceback.format_exc()
        print(text, end="", file=sys.stderr, flush=True)
        # at once, as workers and lost processes need no farewell; but a notebook goes on
        (os._exit if isScript else sys.exit)(getattr(error, "status", 1))


def describe_error(error):
    """Return one line about an error that the user can fix, None for any other."""
    if isinstance(error, UserError):
        # an error from a worker carries the worker's traceback in front of the message
        return str(error).rstrip().rpartition("UserError: ")[2]
    for part, line in KNOWN_ERRORS.items():
        if re.search(part, f"{type(error).__name__}: {error}"):
            return f"{line} ({quote(error)})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; fix this and run again"
    return None


def quote(error):
    """Return the line of an error's message that names its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # NCCL's cause follows this line; a worker's stands below its traceback
    if "Last error:" in lines[:-1]:
        return lines[lines.index("Last error:") + 1]
    return lines[-1 if lines[0].startswith("Caught ") else 0] if lines else type(error).__name__
