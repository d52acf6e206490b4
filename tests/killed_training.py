"""Run train_distributed.py with the arguments given, and kill it at the moment KILL_AT names.

The moments, each with the number of times that it is let pass: step, an optimizer step; write, the
middle of writing a file; replace, a complete file not yet in its place; report, the report. With
KILL_ONCE, the folder named so is made, and no process is killed once it is there. START_METHOD: how
workers start. TINY: train a small network.
"""

import builtins
import os
import signal

import train_distributed
from pyimagesearch import checkpoint, create_dataloaders, food_classifier, reporting
from pyimagesearch.cli import run

import torch

if "START_METHOD" in os.environ:
    create_dataloaders.START_METHOD = os.environ["START_METHOD"]
(moment, passes) = os.environ["KILL_AT"].split(":")
remaining = int(passes)


def kill_when_due():
    """Kill this process if the moment has been let pass often enough."""
    global remaining
    if remaining == 0:
        if "KILL_ONCE" in os.environ:
            # of several processes one, and not again when they are started again
            try:
                os.mkdir(os.environ["KILL_ONCE"])
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)
    remaining -= 1


def kill_before(owner, name):
    """Have owner.name kill the process when due, else do what it does."""
    function = getattr(owner, name)

    def kill_or_call(*args, **options):
        kill_when_due()
        return function(*args, **options)

    setattr(owner, name, kill_or_call)


def open_to_die(*args, **options):
    """Open a file whose write() gets halfway when due."""
    file = builtins.open(*args, **options)
    if "wb" not in args:
        return file
    write = file.write

    class Dying:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, data):
            write(data[: len(data) // 2])
            file.flush()
            kill_when_due()
            write(data[len(data) // 2 :])

    return Dying()


class TinyNet(torch.nn.Sequential):
    """A base network that needs no minute on a busy machine."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        self.classifier = torch.nn.Linear(8, 1000)


if __name__ == "__main__":
    if "TINY" in os.environ:
        food_classifier.densenet121 = lambda weights: TinyNet()
    if moment == "step":
        kill_before(torch.optim.Adam, "step")
    elif moment == "write":
        checkpoint.open = open_to_die
    elif moment == "replace":
        kill_before(checkpoint.os, "replace")
    elif moment == "report":
        kill_before(reporting, "save_report")
    run(train_distributed.main)
