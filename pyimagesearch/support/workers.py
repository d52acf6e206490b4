"""The processes that load images for a DataLoader."""

import math
import os
import sys
import tempfile
import warnings
from multiprocessing import parent_process

from pyimagesearch import config

from . import processes

# how workers start: fork is fastest; Windows has only spawn, and fork is unsafe on macOS
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# the sockets through which workers send images have names of at most 107 characters
if START_METHOD == "fork" and len(tempfile.gettempdir()) > 70:
    tempfile.tempdir = "/tmp"
# Python 3.12 and later warn about fork in a process with threads, which torch has always done
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def count_workers(numBatches):
    """Return how many workers load numBatches batches: this process's part of NUM_WORKERS, and no
    more than there are batches."""
    numWorkers = math.ceil(config.NUM_WORKERS / processes.get_local_world_size())
    return min(numWorkers, numBatches)


def start_workers(loader):
    """Start the workers of a DataLoader before its first pass, where they are forked. Forked during
    training, they would share its memory, and it would first have to give back what it keeps.

    loader: has persistent workers, and a list for a sampler.
    """
    # a spawned one shares nothing, and holds half a gigabyte
    if START_METHOD != "fork":
        return
    images = loader.sampler.copy()
    # a pass over no images, so that none is loaded in vain
    loader.sampler.clear()
    iter(loader)
    loader.sampler.extend(images)


def end_without_parent(workerId):
    """End a worker whose script ended while it was started; PyTorch's would wait for ever."""
    if os.getppid() != parent_process().pid:
        os._exit(1)
