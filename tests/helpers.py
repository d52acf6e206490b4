"""What the tests draw, train and start."""

import colorsys
import errno
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pyimagesearch import config, food_classifier
from pyimagesearch.support import files, script, weights, workers

PROJECT = Path(__file__).parent.parent
SPLITS = ("training", "validation", "evaluation")
# the classes of draw_class_folders()
CLASSES = ["Bread", "Egg", "Soup"]
# 15 training images of draw_class_folders(): 3 steps an epoch
FLAGS = "--image-size 64 --local-batch-size 5 --no-pretrained --lr 0.001 --num-workers".split()
# config.py as it is
DEFAULTS = {name: value for name, value in vars(config).items() if name.isupper()}


class TinyNet(torch.nn.Module):
    """A base network like DenseNet121 in what FoodClassifier needs, but quick."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.classifier = torch.nn.Linear(8, 1000)

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).relu().mean((2, 3)))


class Evil:
    """Makes a folder where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("trap",))


def draw_image(path, classIndex, seed=0, size=(40, 32)):
    """Save a noisy picture in a colour of its class."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array(colorsys.hsv_to_rgb(classIndex / 11, 1, 0.8)) * 255
    noise = np.random.default_rng(seed).normal(0, 20, (*size[::-1], 3))
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)


def draw_food11(root, counts=(3, 2, 2), numClasses=11):
    """Draw a data set in Food-11's layout; counts: images per class in each split."""
    for seed, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        for classIndex in range(numClasses):
            for number in range(count):
                path = Path(root, split, f"{classIndex}_{number}.jpg")
                draw_image(path, classIndex, 100 * seed + number)


def draw_class_folders(root="dataset", classes=CLASSES, counts=(5, 3, 3)):
    """Draw a prepared data set; counts: images per class in training, validation, evaluation."""
    for split, count in zip(SPLITS, counts, strict=True):
        for classIndex, name in enumerate(classes):
            for number in range(count):
                draw_image(Path(root, split, name, f"{number}.jpg"), classIndex * 3, number)


def save_weights(classes, bias=None):
    """Save the weights of a network of 48 px and a normalization of its own at MODEL_PATH; config
    is then as it was. bias: the logits that it gives for all images. Return the network."""
    (config.IMAGE_SIZE, config.MEAN, config.STD) = (48, [0.5] * 3, [0.25] * 3)
    model = food_classifier.FoodClassifier(TinyNet(), len(classes))
    if bias:
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data.copy_(torch.tensor(bias))
    weights.save_weights(model, classes)
    for name in ("IMAGE_SIZE", "MEAN", "STD"):
        setattr(config, name, DEFAULTS[name])
    return model.eval()


def call(main, *flags):
    """Call the main() of a script, after which config is as it was and nothing is locked, as if it
    had been a process of its own."""
    before = {name: getattr(config, name) for name in DEFAULTS}
    try:
        main(list(flags))
    finally:
        files.locks.close()
        for name, value in before.items():
            setattr(config, name, value)


def read_titles(figure):
    """Return the titles of the pictures in a figure."""
    return [axes.get_title() for axes in figure.axes if axes.images]


def read_pixels(path):
    """Return the pixels of an image file, integers (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def assert_picture_is_whole(path, figure):
    """Assert that all that is drawn is in the file, and not at its edge."""
    pixels = read_pixels(path)
    box = figure.get_tightbbox()
    assert pixels.shape[0] >= box.height * figure.dpi
    assert pixels.shape[1] >= box.width * figure.dpi
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == pixels[0, 0]).all()


def load(path):
    """Return the state in a file, its tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def read_tree(root="output"):
    """Return the bytes of the files under root by their paths in it, but locks and the record of
    what prepare copied."""
    tree = {}
    for path in Path(root).rglob("*"):
        if path.is_file() and path.name not in (".lock", "copies.json"):
            tree[path.relative_to(root).as_posix()] = path.read_bytes()
    return tree


def assert_same(one, other):
    """Compare two states, dicts and lists of tensors and plain values, bit for bit."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(one, other):
    """Compare what two trainings left in their output folders, states and all else bit for bit."""
    (found, expected) = (read_tree(one), read_tree(other))
    assert sorted(found) == sorted(expected)
    for name, data in expected.items():
        if name.endswith("history.csv"):
            assert without_seconds(found[name]) == without_seconds(data)
        elif name.endswith(".pth"):
            assert_same(without_time(load(Path(one, name))), without_time(load(Path(other, name))))
        elif name.endswith("settings.json"):
            assert without_time(json.loads(found[name])) == without_time(json.loads(data))
        else:
            assert found[name] == data, name


def without_time(state):
    """Return a state without the time at which its run started and those that its epochs took."""
    found = {name: value for name, value in state.items() if name != "started"}
    if "H" in found:
        found["H"] = {name: values for name, values in found["H"].items() if name != "seconds"}
    return found


def without_seconds(table):
    """Return the rows of history.csv without the times that the epochs took."""
    return [line.rpartition(",")[0] for line in table.decode().splitlines()]


def hold(monkeypatch, name, times=1000):
    """Have the system refuse to replace, move or remove the file of this name, so many times, as
    Windows does while another program holds it; no time passes between two tries."""
    left = [times]

    def refuse(function, *paths):
        held = [path for path in paths if os.path.basename(path) == name and os.path.exists(path)]
        if held and left[0] > 0:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "Permission denied", held[0])
        return function(*paths)

    for operation in ("replace", "rename", "remove"):
        monkeypatch.setattr(os, operation, partial(refuse, getattr(os, operation)))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def run_python(*arguments, env=None, cwd=".", timeout=300):
    """Run Python in cwd with these arguments, as a user would; return the CompletedProcess."""
    env = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}", **(env or {})}
    options = {"cwd": cwd, "env": env, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run([sys.executable, *arguments], **options)


class Process(multiprocessing.get_context("fork").Process):
    """A script with TinyNet on a CPU, forked from the tests, which have imported all that it needs.

    settings: values for config; CLASSES are those of draw_class_folders(). before: a function that
    the process calls first."""

    def __init__(self, name, *flags, cwd=".", env=None, settings=None, before=None):
        super().__init__()
        (self.script, self.flags, self.env, self.before) = (name, flags, env or {}, before)
        self.settings = {"DEVICE": "cpu", "CLASSES": CLASSES, **(settings or {})}
        self.cwd = Path(cwd).absolute()
        self.log = self.cwd / f"process{len(list(self.cwd.glob('process*.out')))}.out"
        self.log.touch()
        self.start()

    def run(self):
        os.chdir(self.cwd)
        os.environ.update(self.env)
        for number, path in ((1, self.log), (2, self.log.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        (sys.stdout, sys.stderr) = (open(1, "w", closefd=False), open(2, "w", closefd=False))
        for name, value in (DEFAULTS | self.settings).items():
            setattr(config, name, value)
        food_classifier.densenet121 = lambda weights: TinyNet()
        # a process that is started anew, but with these settings
        script.reload = lambda module: None
        multiprocessing.set_start_method(workers.START_METHOD, force=True)
        sys.argv = [self.script, *self.flags]
        if self.before:
            self.before()
        runpy.run_path(str(PROJECT / self.script), run_name="__main__")

    def wait_for(self, condition, timeout=60):
        """Return once condition() holds, or once the process has printed condition, a text."""
        deadline = time.monotonic() + timeout
        while not (condition() if callable(condition) else condition in self.log.read_text()):
            assert self.is_alive(), self.log.with_suffix(".err").read_text()
            assert time.monotonic() < deadline, self.log.with_suffix(".err").read_text()
            time.sleep(0.02)

    def end(self, timeout=60):
        """Wait for the end, not for that of workers; return status, stdout and stderr as a
        CompletedProcess."""
        deadline = time.monotonic() + timeout
        while self.is_alive():
            assert time.monotonic() < deadline, self.log.with_suffix(".err").read_text()
            time.sleep(0.01)
        texts = [self.log.with_suffix(suffix).read_text() for suffix in (".out", ".err")]
        return subprocess.CompletedProcess([], self.exitcode, *texts)


def torchrun_envs(worldSize, machines=1):
    """Return the variables that torchrun sets for each of several processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    local = worldSize // machines
    return [
        {
            "TORCHELASTIC_RUN_ID": "none",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(worldSize),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
        }
        for rank in range(worldSize)
    ]


def start_group(worldSize, name, *flags, machines=1, **others):
    """Start a script in several processes, as torchrun does; see Process."""
    envs = torchrun_envs(worldSize, machines)
    return [Process(name, *flags, env=env, **others) for env in envs]
