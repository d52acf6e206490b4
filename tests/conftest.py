"""Each test in an empty directory, with config.py as it is; a training of drawn images."""

import gc
import os
import signal

# no test opens a window, and small networks gain nothing from threads
os.environ.update(MPLBACKEND="Agg", OMP_NUM_THREADS="1")
# Ctrl-C reaches the scripts that tests start, even if the tests run where it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

import multiprocessing
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import CLASSES, DEFAULTS, FLAGS, TinyNet, call, draw_class_folders
from matplotlib.figure import Figure

import train_distributed
from pyimagesearch import config, food_classifier
from pyimagesearch.support import files, script

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_start(tmp_path, monkeypatch):
    """Run each test in an empty directory with config.py as it is, and undo what it changes."""
    monkeypatch.chdir(tmp_path)
    for name, value in DEFAULTS.items():
        monkeypatch.setattr(config, name, list(value) if isinstance(value, list) else value)
    config.NUM_WORKERS = 0
    # a script that a test runs has the settings of the test
    monkeypatch.setattr(script, "reload", lambda module: None)
    torch.manual_seed(0)
    # a test may set rcParams as a matplotlibrc would
    with plt.rc_context():
        yield
    files.locks.close()
    # what a script freezes, and turns off
    gc.unfreeze()
    gc.enable()
    sys.stdout.flush()
    plt.close("all")
    for process in multiprocessing.active_children():
        # only after a failure there is one left
        process.kill()
        process.join()


@pytest.fixture
def tinyNet(monkeypatch):
    """Have the scripts train TinyNet."""
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())


@pytest.fixture
def train(tinyNet):
    """Return a function that trains TinyNet here on drawn images, with FLAGS and those given."""
    draw_class_folders()
    config.CLASSES = list(CLASSES)
    return lambda *flags: call(train_distributed.main, *FLAGS, "0", "--epochs", "2", *flags)


@pytest.fixture
def saved(monkeypatch):
    """Collect the figures that are saved."""
    figures = []
    savefig = Figure.savefig

    def save_and_keep(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return figures
