"""Trainings that end before their end: whatever they wrote is whole, and --resume goes on."""

import os
import shutil
import signal
import time
from contextlib import suppress
from multiprocessing import connection

from pyimagesearch import config

import pytest
from helpers import FLAGS, Process, assert_same_run, draw_class_folders, load, start_group

# of 24 images: 5 steps an epoch, the last with 4
FLAGS = [*FLAGS, "2", "--epochs", "4"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The working directory of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    draw_class_folders(folder / "dataset", counts=(8, 2, 3))
    run = Process("train_distributed.py", *FLAGS, cwd=folder).end()
    assert (run.returncode, run.stderr) == (0, "")
    return folder


@pytest.fixture(autouse=True)
def dataset(fresh_start, uninterrupted):
    """The images of that training in the working directory of each test."""
    shutil.copytree(uninterrupted / "dataset", "dataset")


def resume_and_compare(uninterrupted, *flags):
    """Resume the training here; assert that it ends, bit for bit, as the undisturbed one did."""
    run = Process("train_distributed.py", "--resume", *flags).end()
    assert (run.returncode, run.stderr) == (0, "")
    assert_same_run("output", uninterrupted / "output")
    return run.stdout


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(uninterrupted):
    # each continues the one before; an epoch writes checkpoint, weights and settings
    moments = [
        ("step:3", 0),
        ("write:0", 0),
        ("replace:0", 0),
        # between checkpoint and weights of epoch 1
        ("write:1", 1),
        # in epoch 2
        ("step:3", 1),
        # the checkpoint of epoch 3 complete, but not in its place
        ("replace:3", 2),
        ("replace:1", 3),
        ("write:0", 3),
        # all epochs done
        ("write:3", 4),
        ("report:0", 4),
    ]
    for moment, epoch in moments:
        driver = "tests/distributed/killed_training.py"
        run = Process(driver, *FLAGS, "--resume", env={"KILL_AT": moment}).end()
        assert run.returncode == -signal.SIGKILL, run.stderr
        paths = (config.CHECKPOINT_PATH, config.MODEL_PATH)
        states = [load(path) for path in paths if os.path.exists(path)]
        assert (states[0]["epoch"] if states else 0) == epoch, moment
        assert not os.path.exists(config.REPORT_PATH)
    assert "[INFO] resuming after epoch 4 of 4...\n" in resume_and_compare(uninterrupted)


@pytest.mark.parametrize(
    ("number", "numWorkers", "phase"),
    [
        (signal.SIGINT, "0", "training the network"),
        (signal.SIGINT, "2", "EPOCH: 1/"),
        (signal.SIGTERM, "0", "evaluating network"),
        (signal.SIGTERM, "2", "EPOCH: 2/"),
        (signal.SIGKILL, "0", "EPOCH: 1/"),
        (signal.SIGKILL, "2", "EPOCH: 1/"),
    ],
)
def test_a_signal_ends_a_training_at_once_and_it_can_go_on(
    uninterrupted, number, numWorkers, phase
):
    flags = [*FLAGS, "--num-workers", numWorkers]
    process = Process("train_distributed.py", *flags, before=os.setsid)
    process.wait_for(phase)
    start = time.monotonic()
    # Ctrl-C comes from the terminal, to the script and its workers, the others to the script alone
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    run = process.end(5)
    if number == signal.SIGINT:
        assert run.returncode == 130
        (line,) = run.stderr.split("\n")[1:-1]
        assert "[INFO] interrupted" in line and "--resume" in line
    else:
        assert run.returncode == -number
        # a worker may say that it lost the script
        assert "[INFO]" not in run.stderr and "[ERROR]" not in run.stderr
    # at once, though workers may need some seconds to notice
    resume_and_compare(uninterrupted, *flags)
    # which workers inherit, and which ends with the last of them
    assert connection.wait([process.sentinel], start + 10 - time.monotonic())


def test_a_worker_that_starts_while_its_script_ends_does_not_stay_for_ever():
    def start_slowly():
        os.setsid()
        os.register_at_fork(after_in_child=lambda: time.sleep(1.5))

    process = Process("train_distributed.py", *FLAGS, before=start_slowly)
    process.wait_for("training the network")
    # by now it waits for its workers
    time.sleep(0.5)
    process.kill()
    process.end()
    isGone = connection.wait([process.sentinel], 7)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert isGone


def test_a_process_that_waits_for_a_frozen_one_ends_at_sigterm():
    flags = [*FLAGS, "--epochs", "1000"]
    (first, second) = start_group(2, "train_distributed.py", *flags)
    first.wait_for("EPOCH: 1/")
    os.kill(second.pid, signal.SIGSTOP)
    # by now it waits in a collective
    time.sleep(1)
    first.terminate()
    run = first.end(1)
    assert (run.returncode, run.stderr) == (-signal.SIGTERM, "")
    second.kill()
