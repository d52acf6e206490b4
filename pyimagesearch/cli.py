# How a script starts and ends: the flags that override config.py, Ctrl-C, errors in one line.

# import the necessary packages
import argparse
import multiprocessing
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial

import torch

from . import config, devices

# the settings that have a flag: type, smallest and largest value, meaning
SETTINGS = {
    "IMAGE_SIZE": (int, 64, 4096, "side in pixels of the square images that the network takes"),
    "LOCAL_BATCH_SIZE": (int, 1, 65536, "images in a training batch, per GPU"),
    "PRED_BATCH_SIZE": (int, 1, 65536, "images in an inference batch, per GPU"),
    "EPOCHS": (int, 1, 100000, "passes over the training images"),
    "LR": (float, 1e-9, 10, "learning rate, multiplied by the number of GPUs"),
    "SEED": (int, 0, 2**32 - 1, "seed of all random numbers"),
    "NUM_WORKERS": (int, 0, 1024, "processes that load images; 0: the script loads them itself"),
    "PRETRAINED": (bool, False, True, "start from the ImageNet weights, not from random ones"),
}

# parts of the messages of PyTorch and the system, and what to tell the user
NO_MEMORY = (
    "signal: Killed|out of memory|an't allocate memory|annot allocate|not enough memory|MemoryError"
)
KNOWN_ERRORS = {
    "Too many open files|ancdata": "too many open files; raise the limit (ulimit -n 4096), or use "
    "a smaller --num-workers",
    "shared memory": "/dev/shm is too small for what the workers load; enlarge it (docker run "
    "--shm-size=2g), or use --num-workers 0",
    "gloo/transport|DistNetworkError|DistStoreError|NCCL": "lost the connection to another "
    "process, whose own message names the cause",
    "invalid device ordinal": "more processes than GPUs; start them with --nproc-per-node=gpu",
}


class UserError(Exception):
    """An error that the user can fix: the message says what is wrong, where, and what to do.

    status is the exit status of the script.
    """

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


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
    """Parse text as the value of the setting name.

    Raises ArgumentTypeError if it is of another type or out of range.
    """
    (kind, low, high, _) = SETTINGS[name]
    try:
        value = {"True": True, "False": False}[text] if kind is bool else kind(text)
        if low <= value <= high:
            return value
    except (KeyError, ValueError):
        pass
    noun = {int: "a whole number", float: "a number", bool: "True or False"}[kind]
    limits = "" if kind is bool else f" from {low} to {high}"
    raise argparse.ArgumentTypeError(f"must be {noun}{limits}, not {text!r}")


def is_device(value):
    """Return whether value is a torch.device that this machine has."""
    # counted, not tried: that would open a context on the GPU, which takes time and memory
    counts = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}
    counts["cuda"] = torch.cuda.device_count()
    return isinstance(value, torch.device) and (value.index or 0) < counts.get(value.type, 0)


def is_label(value):
    """Return whether value names a folder, or with slashes a folder in a folder."""
    return isinstance(value, str) and all(part.strip("./ ") for part in value.split("/"))


def is_list(value, isEntry):
    """Return whether value is a list of entries each of which passes isEntry."""
    return isinstance(value, (list, tuple)) and all(map(isEntry, value))


def is_colour(value):
    """Return whether value is a list of three numbers from 0 to 1, for red, green and blue."""
    numbers = is_list(value, lambda entry: isinstance(entry, (int, float)) and 0 <= entry <= 1)
    return numbers and len(value) == 3


def check_config():
    """Convert config.py's constants where their meaning is plain, such as DEVICE = "cpu"; raise
    UserError where it is not."""
    with suppress(RuntimeError, TypeError):
        config.DEVICE = torch.device(config.DEVICE)
    if is_list(config.CLASSES, lambda label: isinstance(label, str)):
        parts = [map(str.strip, label.split("/")) for label in config.CLASSES]
        config.CLASSES = ["/".join(part) for part in parts]
    for name in dir(config):
        if name.endswith("_PATH") or name in ("TRAIN", "VAL", "TEST"):
            path = getattr(config, name)
            if not isinstance(path, (str, os.PathLike)):
                raise UserError(f"{name} in config.py must be a path, not {path!r}")
            setattr(config, name, os.path.expanduser(path))
    for name in SETTINGS:
        try:
            setattr(config, name, read_setting(name, str(getattr(config, name))))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name} in config.py {error}") from error

    rules = {
        "DEVICE": (is_device, "a device that this machine has"),
        "CLASSES": (
            lambda value: is_list(value, is_label) and len(value) > 1,
            "a list of two labels or more",
        ),
        "MEAN": (is_colour, "a list of three numbers from 0 to 1"),
        "STD": (
            lambda value: is_colour(value) and min(value) > 0,
            "a list of three numbers above 0, up to 1",
        ),
    }
    for name, (isRight, noun) in rules.items():
        value = getattr(config, name)
        if not isRight(value):
            raise UserError(f"{name} in config.py must be {noun}, not {value!r}")


def make_parser(description, settings, example):
    """Return a Parser with a flag for each of settings, names of constants in config.py."""
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
        print(f"[INFO] overridden by flags: {', '.join(changes)}...")
    return args


class Interrupts:
    """Ctrl-C and SIGTERM: the first ends the script in good order, a second one at once."""

    def __init__(self):
        # what to tell the user: what is saved, and how to continue
        self.saved = "nothing is lost"
        self.advice = "run the same command again"
        # the signal that came, None before
        self.signal = None
        # whether it has to wait for the end of a step
        self.wait = False
        self.process = os.getpid()

    def install(self):
        """Handle both signals from now on, unless the script was started to ignore them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)
        # Python writes the number of each signal to this socket
        (self.reader, self.writer) = socket.socketpair()
        self.writer.setblocking(False)
        signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):
            # what a worker receives is not the script's
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self.watch, daemon=True).start()

    def handle(self, number, frame):
        """Raise KeyboardInterrupt, or have it raised after the running step."""
        # not in a worker that is just starting: the script ends its workers
        if self.signal is None and os.getpid() == self.process:
            self.signal = number
            if not self.wait:
                raise KeyboardInterrupt

    def watch(self):
        """End the script at the second signal.

        A thread does it, as the main thread handles no signal while it waits in PyTorch for another
        process; such a script ends ten seconds after the first one.
        """
        numbers = []
        while len(numbers) < 2:
            self.reader.settimeout(10 if numbers and devices.get_world_size() > 1 else None)
            try:
                number = self.reader.recv(1)[0]
            except TimeoutError:
                break
            if number in (signal.SIGINT, signal.SIGTERM):
                numbers.append(number)
        for worker in multiprocessing.active_children():
            worker.kill()
        self.tell()
        os._exit(128 + numbers[-1])

    def tell(self):
        """Say on stderr, once, what is saved; not by print(), which a signal may interrupt."""
        (text, self.saved) = (self.saved, "")
        if text:
            os.write(2, f"\n[INFO] interrupted: {text}; {self.advice}\n".encode())

    def wait_for_steps(self, model):
        """From now on end the script before the next call of model.

        A KeyboardInterrupt while workers start or stop would be lost, or would kill them.
        """
        self.wait = True
        model.register_forward_pre_hook(lambda *args: self.raise_pending())

    @contextmanager
    def hold(self):
        """Let a signal wait until the body has run."""
        (before, self.wait) = (self.wait, True)
        try:
            yield
        finally:
            self.wait = before
        if not before:
            self.raise_pending()

    def end_steps(self):
        """From now on end the script at once again."""
        self.raise_pending()
        self.wait = False

    def raise_pending(self):
        """Raise KeyboardInterrupt if a signal came."""
        if self.signal:
            raise KeyboardInterrupt


interrupts = Interrupts()


def lacks_memory(error):
    """Return whether error says that there is not enough memory."""
    return re.search(NO_MEMORY, f"{type(error).__name__}: {error}") is not None


def stop(line, status=1):
    """End the script with a line on stderr and an exit status."""
    print(f"[ERROR] {line}", file=sys.stderr)
    sys.exit(status)


def run(main):
    """Call main, and end in one line on stderr where the user has to act.

    The exit status is that of a UserError, 1 after an error of the file system or a lack of memory,
    130 after Ctrl-C and 143 after SIGTERM.
    """
    try:
        check_config()
        devices.init_process_group()
        if devices.is_main_process():
            interrupts.install()
        else:
            sys.stdout = open(os.devnull, "w")
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # a log file shows each line at once, not when all is over, and any file name can be printed
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        main()
        devices.destroy_process_group()
    except (KeyboardInterrupt, Exception) as error:
        if hasattr(signal, "SIGCHLD"):
            # PyTorch raises an error for each worker that torchrun ends along with this process
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if isinstance(error, BrokenPipeError) and is_unread(sys.stdout):
            sys.exit(128 + signal.SIGPIPE)
        # an error after a signal: it reached the workers or the other processes first
        if interrupts.signal or isinstance(error, KeyboardInterrupt):
            interrupts.tell()
            sys.exit(128 + (interrupts.signal or signal.SIGINT))
        if isinstance(error, UserError) and not devices.is_local_main_process():
            # if all processes of a machine meet the same error, only the first says so: torchrun
            # ends the others meanwhile
            time.sleep(5)
        stop_with_error(error)


def is_unread(stream):
    """Return whether the reader of stream is gone, as after `| head`; the rest is then dropped."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    isGone = any(event & select.POLLERR for _, event in poll.poll(0))
    if isGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return isGone


def stop_with_error(error):
    """End the script in one line for an error that the user can fix; raise any other."""
    # in the course of a training, what is saved and how to continue
    saved = f"; {interrupts.saved}" if interrupts.wait else ""
    advice = f"{saved}; {interrupts.advice}" if interrupts.wait else ""
    if isinstance(error, UserError):
        # an error from a worker carries the worker's traceback in front of the message
        stop(str(error).rstrip().rpartition("UserError: ")[2] + advice, error.status)
    if lacks_memory(error):
        stop(f"out of memory{saved}; start again with smaller batches or a smaller --image-size")
    for part, line in KNOWN_ERRORS.items():
        if re.search(part, f"{type(error).__name__}: {error}"):
            stop(line + advice)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        stop(f"{where}{error.strerror or error}; fix this and run again{advice}")
    raise error
