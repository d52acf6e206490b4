"""Run train_distributed.py with TinyNet on a CPU, and kill it at the moment that KILL_AT names.

Before the colon: step, an optimizer step; write, the middle of writing a file; replace, a complete
file not yet in its place; rename, a file of an earlier run before it is moved aside; report, the
report. Behind it: how often that is let pass. With KILL_ONCE, the folder so named is made, and no
process is killed once it is there.
"""

import io
import os
import signal

import torch
from helpers import CLASSES, TinyNet

import train_distributed
from pyimagesearch import config, food_classifier
from pyimagesearch.support import files, reporting, script

(moment, passes) = os.environ["KILL_AT"].split(":")
remaining = int(passes)


def kill_when_due():
    """Kill this process if the moment has been let pass often enough."""
    global remaining
    remaining -= 1
    if remaining == -1:
        if "KILL_ONCE" in os.environ:
            # of several processes one, and not again when they are started again
            try:
                os.mkdir(os.environ["KILL_ONCE"])
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def kill_before(owner, name):
    """Have owner.name kill the process when due, else do what it does."""
    function = getattr(owner, name)

    def kill_or_call(*args, **options):
        kill_when_due()
        return function(*args, **options)

    setattr(owner, name, kill_or_call)


class DyingFile(io.FileIO):
    """A file whose write() gets halfway when due."""

    def write(self, data):
        super().write(data[: len(data) // 2])
        kill_when_due()
        super().write(data[len(data) // 2 :])


if __name__ == "__main__":
    food_classifier.densenet121 = lambda weights: TinyNet()
    # the settings below are not read again from config.py
    script.reload = lambda module: None
    (config.DEVICE, config.CLASSES) = ("cpu", CLASSES)
    if moment == "step":
        kill_before(torch.optim.Adam, "step")
    elif moment == "write":
        files.open = DyingFile
    elif moment == "replace":
        kill_before(os, "replace")
    elif moment == "rename":
        kill_before(os, "rename")
    elif moment == "report":
        kill_before(reporting, "save_report")
    script.run(train_distributed.main, advice="")
