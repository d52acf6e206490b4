"""The real torchrun, whose processes import everything anew: few tests, as each takes seconds."""

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import FLAGS, PROJECT, assert_same_run, draw_class_folders, run_python, start_group

from pyimagesearch import config

FLAGS = [*FLAGS, "1", "--epochs", "2"]
# killed in epoch 2, in one of the processes; torchrun starts them again
KILL = {"KILL_AT": "step:4", "KILL_ONCE": "killed"}


def run_torchrun(launch, cwd="."):
    """Run torchrun with each start in a store of its own; see run_python."""
    command = ["-m", "torch.distributed.run", *launch.split()]
    command += [PROJECT / "tests/distributed/killed_training.py", *FLAGS, "--resume"]
    return run_python(*command, env={**KILL, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, cwd=cwd)


def test_torchrun_trains_prints_once_counts_each_image_once_and_survives_a_kill():
    # 21, 11 and 5 images in batches of 10: uneven everywhere, and one has a batch more to validate
    draw_class_folders(counts=(7, 4, 2))
    for path in ("validation/Egg/1.jpg", "evaluation/Soup/1.jpg"):
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


def test_two_machines_go_on_after_a_kill_and_end_as_if_nothing_had_been(tmp_path):
    folders = [tmp_path / name for name in ("killed", "undisturbed")]
    for folder in folders:
        draw_class_folders(folder / "dataset", counts=(7, 2, 2))
    group = start_group(2, "train_distributed.py", *FLAGS, machines=2, cwd=folders[1])
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
    assert_same_run(*(folder / "output" for folder in folders))
