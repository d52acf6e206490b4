"""The real torchrun, whose processes import everything anew: few tests, as each takes seconds."""

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# for the processes that are forked from this one
import train_distributed  # noqa: F401
from pyimagesearch import config

import torch
from helpers import (
    FLAGS,
    Process,
    assert_same,
    draw_class_folders,
    read_files,
    run_script,
    torchrun_envs,
)

DRIVER = "tests/distributed/killed_training.py"
FLAGS = [*FLAGS, "1", "--epochs", "2"]
# killed in epoch 2, in one of the processes; torchrun starts them again
KILL = {"KILL_AT": "step:4", "KILL_ONCE": "killed"}


def run_torchrun(launch, cwd="."):
    """Run torchrun with each start in a store of its own; see run_script."""
    launch = f"-m torch.distributed.run {launch}".split()
    env = {**KILL, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return run_script(DRIVER, *FLAGS, "--resume", launch=launch, env=env, cwd=cwd)


def test_torchrun_trains_prints_once_counts_each_image_once_and_survives_a_kill():
    # 21 training images in batches of 10, 7 validation and 5 test images: uneven everywhere
    draw_class_folders(counts=(7, 3, 2))
    for path in ("validation/Egg/1.jpg", "validation/Soup/1.jpg", "evaluation/Soup/1.jpg"):
        Path("dataset", path).unlink()
    launch = "--standalone --nproc-per-node=2 --max-restarts=1"
    run = run_torchrun(launch)
    assert run.returncode == 0, run.stderr
    assert os.path.exists("killed")
    assert re.findall(r"EPOCH: (\d)/2", run.stdout) == ["1", "2"]
    # at the start and at the restart
    assert run.stdout.count("using a batch size of 10...") == 2
    assert "[INFO] resuming after epoch 1 of 2..." in run.stdout
    rows = Path(config.PREDICTIONS_PATH).read_text().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 5
    # the weights are those of the plain model
    keys = torch.load(config.MODEL_PATH)
    assert {key.split(".")[0] for key in keys} == {"baseModel", "classifier"}


def test_two_machines_go_on_after_a_kill_and_end_as_if_nothing_had_been(tmp_path):
    folders = [tmp_path / name for name in ("killed", "undisturbed")]
    for folder in folders:
        draw_class_folders(folder / "dataset", counts=(7, 2, 2))
    group = [
        Process("train_distributed.py", *FLAGS, cwd=folders[1], env=env)
        for env in torchrun_envs(2, machines=2)
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch = "--nnodes=2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d --rdzv-id=test"
    launch += f" --rdzv-endpoint=127.0.0.1:{port}"
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(run_torchrun, [launch] * 2, [folders[0]] * 2))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert os.path.exists(folders[0] / "killed")
    assert "[INFO] resuming after epoch 1 of 2..." in runs[0].stdout + runs[1].stdout
    assert [process.end().returncode for process in group] == [0, 0]
    for path in (config.MODEL_PATH, config.CHECKPOINT_PATH):
        assert_same(*(torch.load(folder / path) for folder in folders))
    (found, expected) = (read_files(folder / "output") for folder in folders)
    assert found["predictions.csv"] == expected["predictions.csv"]
