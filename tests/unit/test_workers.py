"""The processes that load images: how many there are, and how they send what they loaded."""

import multiprocessing
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import draw_class_folders, run_python

from pyimagesearch import config
from pyimagesearch.support import workers


@pytest.mark.parametrize(
    ("numWorkers", "numProcesses", "numBatches", "expected"),
    [
        (4, 1, 100, 4),
        # no more than there are batches
        (4, 1, 3, 3),
        (4, 1, 0, 0),
        # the processes of a machine share them
        (4, 2, 100, 2),
        (5, 2, 100, 3),
        (1, 8, 100, 1),
        (0, 8, 100, 0),
    ],
)
def test_workers_are_shared_by_the_processes_of_a_machine(
    monkeypatch, numWorkers, numProcesses, numBatches, expected
):
    config.NUM_WORKERS = numWorkers
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(numProcesses))
    assert workers.count_workers(numBatches) == expected


def test_a_worker_ends_where_its_script_has_ended(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(workers, "parent_process", lambda: Mock(pid=os.getppid()))
    workers.end_without_parent(0)
    assert ended == []
    # another process has taken it over
    monkeypatch.setattr(workers, "parent_process", lambda: Mock(pid=-1))
    workers.end_without_parent(0)
    assert ended == [1]


def test_the_platform_has_the_way_in_which_workers_start():
    assert workers.START_METHOD in multiprocessing.get_all_start_methods()


LONG_TMPDIR = """
from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader

(config.CLASSES, config.NUM_WORKERS) = (["Bread", "Egg", "Soup"], 1)
transform = eval_transform(32)
(ds, loader) = get_dataloader(config.TRAIN, transform, bs=2)
assert loader.num_workers == 1
print(sum(len(y) for _, y in loader))
"""


def test_workers_send_their_images_where_the_temporary_folder_has_a_very_long_name():
    draw_class_folders(counts=(1, 1, 1))
    folder = Path("a" * 60, "b" * 60).absolute()
    folder.mkdir(parents=True)
    # a worker that cannot send leaves the script waiting for ever
    run = run_python("-c", LONG_TMPDIR, env={"TMPDIR": str(folder)}, timeout=60)
    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr
