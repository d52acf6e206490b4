"""Trainings that end before their end: whatever they wrote is whole, and --resume goes on."""

import os
import re
import shutil
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path

import pytest
import torch
from helpers import (
    FLAGS,
    Process,
    assert_same_run,
    draw_class_folders,
    load,
    read_tree,
    start_group,
)

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier

# of 24 images: 5 steps an epoch, the last with 4
FLAGS = [*FLAGS, "2", "--epochs", "4"]
DRIVER = "tests/distributed/killed_training.py"


def train_undisturbed(folder, *flags):
    """Train in folder on drawn images until the end; return folder."""
    draw_class_folders(folder / "dataset", counts=(8, 2, 3))
    run = Process("train_distributed.py", *FLAGS, *flags, cwd=folder).end()
    assert (run.returncode, run.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The working directory of a training that nothing disturbed."""
    return train_undisturbed(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The output folder of a finished training with other settings."""
    flags = ["--lr", "0.01", "--seed", "7"]
    return train_undisturbed(tmp_path_factory.mktemp("earlier"), *flags) / "output"


@pytest.fixture(autouse=True)
def dataset(fresh_start, uninterrupted):
    """The images of that training in the working directory of each test."""
    shutil.copytree(uninterrupted / "dataset", "dataset")


def kill_at(moment, *flags):
    """Train here with FLAGS and those given until the process is killed at this moment."""
    run = Process(DRIVER, *FLAGS, *flags, env={"KILL_AT": moment}).end()
    assert run.returncode == -signal.SIGKILL, (moment, run.stderr)


def count_epochs():
    """Return how many epochs the checkpoint here has; it and the weights are whole."""
    if os.path.exists(config.MODEL_PATH):
        load(config.MODEL_PATH)
    if not os.path.exists(config.CHECKPOINT_PATH):
        return 0
    return load(config.CHECKPOINT_PATH)["epoch"]


def resume_and_compare(uninterrupted):
    """Resume the training here; assert that it ends, bit for bit, as the undisturbed one did."""
    run = Process("train_distributed.py", *FLAGS, "--resume").end()
    assert (run.returncode, run.stderr) == (0, "")
    assert_same_run("output", uninterrupted / "output")
    return run.stdout


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(uninterrupted):
    # each continues the one before; a start writes the settings and, if there is a checkpoint, the
    # history, an epoch the checkpoint, the history and the weights
    moments = [
        # the settings of a new run
        ("write:0", 0),
        ("replace:0", 0),
        ("step:3", 0),
        # the checkpoint of epoch 1
        ("write:1", 0),
        ("replace:1", 0),
        # the history of epoch 1
        ("write:2", 1),
        # the settings of a resumed run, and its history
        ("write:0", 1),
        ("replace:0", 1),
        ("write:1", 1),
        # in epoch 2
        ("step:3", 1),
        # the checkpoint of epoch 4 complete, but not in its place
        ("replace:8", 3),
        ("write:2", 3),
        # between checkpoint and weights
        ("replace:3", 4),
        # all epochs done: the weights again, then the files of the report
        ("write:2", 4),
        ("report:0", 4),
    ]
    for moment, epoch in moments:
        kill_at(moment, "--resume")
        assert count_epochs() == epoch, moment
        assert not os.path.exists(config.REPORT_PATH)
    # settings, history, weights, the text of the report; then each of its other files
    for number in range(3, 8):
        kill_at(f"write:{number}", "--resume")
    assert "[INFO] resuming after epoch 4 of 4...\n" in resume_and_compare(uninterrupted)


def read_aside():
    """Return the sorted (name, bytes) of the files that were moved aside here."""
    found = []
    for folder in Path("output").glob("run-*"):
        found += read_tree(folder).items()
    return sorted(found)


def resume_and_compare_beside_earlier(earlier, uninterrupted):
    """Resume the training here; assert that it ends as the undisturbed one did, and that each file
    of the earlier one is aside, once."""
    run = Process("train_distributed.py", *FLAGS, "--resume").end()
    assert (run.returncode, run.stderr) == (0, "")
    assert read_aside() == sorted(read_tree(earlier).items())
    for folder in Path("output").glob("run-*"):
        shutil.rmtree(folder)
    assert_same_run("output", uninterrupted / "output")


@pytest.mark.parametrize(
    "moment",
    [
        # the settings of the earlier run are aside, the rest is not yet
        "rename:1",
        "rename:3",
        # all of it is aside
        "write:0",
        "replace:0",
        "step:0",
        "step:2",
        # in epoch 2
        "step:6",
    ],
)
def test_a_new_run_killed_at_any_moment_leaves_the_earlier_one_and_can_go_on(
    earlier, uninterrupted, moment
):
    shutil.copytree(earlier, "output")
    kill_at(moment)
    resume_and_compare_beside_earlier(earlier, uninterrupted)


def test_killed_once_more_while_the_earlier_run_is_moved_aside(earlier, uninterrupted):
    shutil.copytree(earlier, "output")
    kill_at("rename:1")
    # the rest of the earlier run without its settings is none that could be resumed
    kill_at("rename:2", "--resume")
    kill_at("write:0", "--resume")
    resume_and_compare_beside_earlier(earlier, uninterrupted)


def test_killed_before_it_touched_the_earlier_run_a_new_one_is_not_that_run(earlier, uninterrupted):
    shutil.copytree(earlier, "output")
    kill_at("rename:0")
    # output/ still holds the earlier run, which --resume does not continue with other settings
    run = Process("train_distributed.py", *FLAGS, "--resume").end()
    assert run.returncode == 1
    assert re.fullmatch(r"\[ERROR\] LR is 0.01 in the run in output/ .*\n", run.stderr)
    assert read_tree() == read_tree(earlier)
    # the same command starts the run
    run = Process("train_distributed.py", *FLAGS).end()
    assert (run.returncode, run.stderr) == (0, "")
    resume_and_compare_beside_earlier(earlier, uninterrupted)


def test_an_earlier_run_killed_in_its_first_epoch_is_not_resumed_by_a_new_one(uninterrupted):
    kill_at("step:2", "--lr", "0.01")
    # without --resume, which would refuse the other rate; there is nothing to move aside
    kill_at("step:2")
    resume_and_compare(uninterrupted)


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
    resume_and_compare(uninterrupted)
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


def use_two_threads():
    torch.set_num_threads(2)


def die_in_a_replica():
    """Have the process be killed in the second epoch, in the thread of a replica."""
    torch.set_num_threads(2)
    forward = FoodClassifier.forward
    calls = []

    def forward_or_die(model, x):
        calls.append(x)
        isInThread = threading.current_thread() is not threading.main_thread()
        if len(calls) > 40 and isInThread and torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(model, x)

    FoodClassifier.forward = forward_or_die


def test_a_training_killed_in_the_thread_of_a_replica_resumes_to_the_same_bits():
    shutil.copytree("dataset", "whole/dataset")
    Process("train_distributed.py", *FLAGS, cwd="whole", before=use_two_threads).end()
    run = Process("train_distributed.py", *FLAGS, before=die_in_a_replica).end()
    assert run.returncode == -signal.SIGKILL
    assert 0 < load(config.CHECKPOINT_PATH)["epoch"] < 4
    run = Process("train_distributed.py", "--resume", before=use_two_threads).end()
    assert (run.returncode, run.stderr) == (0, "")
    assert_same_run("output", "whole/output")


def test_two_processes_of_two_replicas_each_resume_to_the_same_bits():
    shutil.copytree("dataset", "whole/dataset")
    flags = [*FLAGS, "--local-batch-size", "4"]
    for folder, epochs in (("whole", ["4"]), (".", ["2", "4"])):
        for number in epochs:
            last = [*flags, "--epochs", number, "--resume"]
            group = start_group(
                2, "train_distributed.py", *last, cwd=folder, before=use_two_threads
            )
            assert [process.end().returncode for process in group] == [0, 0]
    assert_same_run("output", "whole/output")
