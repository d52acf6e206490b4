import atexit
import colorsys
import fcntl
import functools
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from pyimagesearch import ADVICE, cli, config, create_dataloaders, end_on_signals, food_classifier

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

# no test opens a window, whatever screen there is
os.environ["MPLBACKEND"] = "Agg"
# small networks gain nothing from threads, and on a busy machine these wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# for the processes that run beside the tests, as a test may change os.environ meanwhile
ENVIRONMENT = dict(os.environ)

# Ctrl-C reaches the scripts that tests start, even if the tests run where it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).parent.parent

# config.py as it comes: the tests do not depend on what a user has written there since
if torch.cuda.is_available():
    DEVICE = torch.device("cuda")
else:
    DEVICE = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
ORIGINAL_CONFIG = {
    "DATA_PATH": "Food-11",
    "BASE_PATH": "dataset",
    "TRAIN": os.path.join("dataset", "training"),
    "VAL": os.path.join("dataset", "validation"),
    "TEST": os.path.join("dataset", "evaluation"),
    "CLASSES": "Bread Dairy_product Dessert Egg Fried_food Meat Noodles/Pasta Rice Seafood Soup "
    "Vegetable/Fruit".split(),
    "MEAN": [0.485, 0.456, 0.406],
    "STD": [0.229, 0.224, 0.225],
    "IMAGE_SIZE": 224,
    "DEVICE": DEVICE,
    "PRETRAINED": True,
    "LOCAL_BATCH_SIZE": 128 if DEVICE.type == "cuda" else 32,
    "PRED_BATCH_SIZE": 4,
    "EPOCHS": 20,
    "LR": 0.0001,
    "SEED": 42,
    "NUM_WORKERS": joblib.cpu_count() if sys.platform == "linux" else min(joblib.cpu_count(), 4),
    "PLOT_PATH": os.path.join("output", "model_training.png"),
    "MODEL_PATH": os.path.join("output", "food_classifier.pth"),
    "REPORT_PATH": os.path.join("output", "classification_report.txt"),
    "CONFUSION_PATH": os.path.join("output", "confusion_matrix.png"),
    "PREDICTIONS_PATH": os.path.join("output", "predictions.csv"),
    "MISTAKES_PATH": os.path.join("output", "mistakes.png"),
    "SETTINGS_PATH": os.path.join("output", "settings.json"),
    "RESULTS_PATH": os.path.join("output", "results.png"),
    "CHECKPOINT_PATH": os.path.join("output", "checkpoint.pth"),
}


@pytest.fixture(autouse=True)
def fresh_config(tmp_path, monkeypatch):
    """Run each test in an empty directory, and undo what it changes in config."""
    monkeypatch.chdir(tmp_path)
    for name, value in ORIGINAL_CONFIG.items():
        monkeypatch.setattr(config, name, list(value) if isinstance(value, list) else value)
    config.NUM_WORKERS = 0
    torch.manual_seed(0)
    yield
    for process in started:
        # only after a failure there is one left
        process.kill()
        process.join()
    started.clear()
    stores.clear()


# the classes of draw_class_folders()
CLASSES = ("Bread", "Egg", "Soup")


@functools.cache
def install_project(classes=None):
    """Return a copy of the project, whose config.py has its original values or other classes.

    It runs on the CPU, or on the device that TEST_DEVICE names.
    """
    folder = Path(tempfile.mkdtemp(prefix="project"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(PROJECT / "pyimagesearch", folder / "pyimagesearch")
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, folder)
    with open(folder / "pyimagesearch" / "config.py", "a") as file:
        settings = ORIGINAL_CONFIG | ({"CLASSES": list(classes)} if classes else {})
        for name, value in settings.items():
            if name == "DEVICE":
                value = 'torch.device(os.environ.get("TEST_DEVICE", "cpu"))'
            else:
                value = repr(value)
            file.write(f"{name} = {value}\n")
    return folder


def draw_image(path, classIndex, seed=0, size=(40, 32)):
    """Save a noisy picture in a colour of its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array(colorsys.hsv_to_rgb(classIndex / 11, 1, 0.8)) * 255
    noise = np.random.default_rng(seed).normal(0, 20, (*size[::-1], 3))
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)


def draw_food11(root, counts=None, numClasses=11):
    """Draw a data set in Food-11's layout; counts: images per class in each split."""
    for split, count in (counts or {"training": 3, "validation": 2, "evaluation": 2}).items():
        for classIndex in range(numClasses):
            for number in range(count):
                draw_image(root / split / f"{classIndex}_{number}.jpg", classIndex, number)


def draw_class_folders(root, classes=CLASSES, counts=(5, 3, 3)):
    """Draw a prepared data set; counts: images per class in training, validation, evaluation."""
    for split, count in zip(("training", "validation", "evaluation"), counts, strict=True):
        for classIndex, name in enumerate(classes):
            for number in range(count):
                draw_image(root / split / name / f"{number}.jpg", classIndex * 3, number)


def run_script(name, *flags, cwd=".", pythonFlags=("-W", "error"), env=None, classes=None):
    """Run one of the three scripts in cwd as a user would; return the CompletedProcess.

    name: the name of a script, or the path of a driver in tests/. classes: CLASSES of config.py.
    """
    project = install_project(classes)
    return subprocess.run(
        [sys.executable, *pythonFlags, project / name, *flags],
        cwd=cwd,
        env={**ENVIRONMENT, "PYTHONPATH": str(project), **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


# forks processes that have imported everything already
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["conftest", "train_distributed", "distributed_inference"])
# the processes that a test has started, and what they meet in
(started, stores) = ([], [])


def pytest_sessionstart():
    """Start the server, which imports while pytest does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT / "tests"), str(PROJECT)]))
        ensure_running()


def run_here(name, flags, env, settings, before, output):
    """Run a script in this process, which start_forked() has started."""
    os.chdir(output.parent)
    os.environ.update(env)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # which every process that inherits it holds until it ends
    fcntl.flock(2, fcntl.LOCK_SH)
    (sys.stdout, sys.stderr) = (open(1, "w", closefd=False), open(2, "w", closefd=False))
    # a forked process cannot use a GPU
    values = ORIGINAL_CONFIG | {"DEVICE": torch.device("cpu"), "CLASSES": list(CLASSES)}
    for key, value in (values | settings).items():
        setattr(create_dataloaders if key == "START_METHOD" else config, key, value)
    food_classifier.densenet121 = lambda weights: TinyNet()
    multiprocessing.set_start_method(create_dataloaders.START_METHOD, force=True)
    # as a process that is started anew, this one has to start a resource tracker if it needs one
    resource_tracker._resource_tracker._fd = None
    sys.argv = [name, *flags]
    if before:
        before()
    cli.isScript = True
    isMain = name in ADVICE and env.get("RANK", "0") == "0"
    end_on_signals(f"interrupted; {ADVICE[name]}" if isMain else "")
    runpy.run_path(str(PROJECT / name), run_name="__main__")


def start_forked(name, *flags, cwd=".", env=None, settings=None, before=None):
    """Run a script, with TinyNet, in a process forked from one that has imported all it needs;
    return that process, of which read_forked() waits for the end.

    Args:
        name: one of the three scripts, or tests/ and the name of a driver.
        settings: values for config.py, and START_METHOD, how workers start.
        before: function that the process calls first.
    """
    output = Path(cwd).absolute() / f"process{len(list(Path(cwd).glob('process*.out')))}"
    output.with_suffix(".out").touch()
    args = (name, flags, env or {}, settings or {}, before, output)
    process = forkserver.Process(target=run_here, args=args)
    process.start()
    started.append(process)
    process.output = output
    return process


def read_forked(process, timeout=60):
    """Return exit status, stdout and stderr of a process that start_forked() returned."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError((process.output.with_suffix(".err")).read_text())
    with open(process.output.with_suffix(".err")) as file:
        # workers and the resource tracker may write for a moment longer
        deadline = time.monotonic() + 20
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline, "a process was left behind"
                time.sleep(0.01)
    texts = [process.output.with_suffix(suffix).read_text() for suffix in (".out", ".err")]
    return subprocess.CompletedProcess([], process.exitcode, *texts)


def run_forked(name, *flags, **others):
    """Run a script; return exit status, stdout and stderr; see start_forked."""
    return read_forked(start_forked(name, *flags, **others))


def start_group(worldSize, name, *flags, **others):
    """Run a script in several processes of one machine, as torchrun does; see start_forked."""
    envs = torchrun_envs(worldSize, machines=1)
    return [start_forked(name, *flags, env=env, **others) for env in envs]


def torchrun_envs(worldSize, machines):
    """Return the variables that torchrun sets for each of several processes."""
    # as torchrun does, this process serves the store in which they find each other
    stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    local = worldSize // machines
    return [
        {
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(stores[-1].port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "RANK": str(rank),
            "WORLD_SIZE": str(worldSize),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
        }
        for rank in range(worldSize)
    ]


def wait_until(process, condition):
    """Return once condition() holds, as a process that start_forked() returned makes it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_line(process, text):
    """Return once a process that start_forked() returned has printed text."""
    wait_until(process, lambda: text in process.output.with_suffix(".out").read_text())


# what runs beside the tests, by the name of its fixture
functions = {}


def run_beside(function):
    """Decorate function(folder) to be a fixture of what it returns. It runs once, in a thread
    beside the other tests, as the processes that it starts take long."""
    functions[function.__name__] = function

    @pytest.fixture(scope="session", name=function.__name__)
    def get_result(beside):
        return beside[function.__name__].result()

    return get_result


@pytest.fixture(scope="session", autouse=True)
def beside(request, tmp_path_factory):
    """Start the functions that the chosen tests need, one after the other, as they need them."""
    names = dict.fromkeys(name for item in request.session.items for name in item.fixturenames)
    with ThreadPoolExecutor(1) as pool:
        yield {
            name: pool.submit(functions[name], tmp_path_factory.mktemp(name))
            for name in names
            if name in functions
        }


@run_beside
def finishedRun(folder):
    """Return a directory in which all three scripts ran one after the other, and a copy of it in
    which a script after the tutorial did; and what each of the four printed."""
    (own, tutorial) = (folder / "own", folder / "tutorial")
    draw_food11(own / "Food-11")
    trainFlags = "--no-pretrained --image-size 64 --epochs 2 --local-batch-size 9 --num-workers 2"
    runs = []
    for script, flags, backend in (
        ("prepare_dataset.py", "", "TkAgg"),
        ("train_distributed.py", trainFlags, "module://matplotlib_inline.backend_inline"),
        ("distributed_inference.py", "", "nonsense"),
    ):
        # as a notebook sets it, without a screen
        env = {"MPLBACKEND": backend, "DISPLAY": ""}
        if script == "prepare_dataset.py":
            # PyTorch's OpenMP library prints what it found
            env["OMP_DISPLAY_ENV"] = "TRUE"
        runs.append(run_script(script, *flags.split(), cwd=own, env=env))
    shutil.copytree(own, tutorial)
    runs.append(run_script(PROJECT / "tests" / "tutorial_driver.py", cwd=tutorial))
    for run in runs:
        assert run.returncode == 0, run.stderr
    return (own, tutorial), runs


class TinyNet(torch.nn.Module):
    """A base network like DenseNet121 in what FoodClassifier needs, but quick."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.classifier = torch.nn.Linear(8, 1000)

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).relu().mean((2, 3)))
