import atexit
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyimagesearch import checkpoint, config, create_dataloaders, devices, food_classifier
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier
from train_distributed import evaluate

import joblib
import pytest
import torch
from conftest import (
    CLASSES,
    PROJECT,
    TinyNet,
    draw_class_folders,
    read_forked,
    run_beside,
    run_forked,
    run_script,
    start_forked,
    start_group,
    stores,
    torchrun_envs,
)
from torch import nn


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [("cpu", 4, 0), ("mps", 0, 1), ("cuda", 1, 1), ("cuda", 4, 4), ("cuda:1", 4, 1)],
)
def test_counts_the_gpus_that_config_names(monkeypatch, device, found, expected):
    config.DEVICE = torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert devices.count_gpus() == expected
    assert devices.count_devices() == max(expected, 1)


def test_devices_are_described_by_kind_and_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, count in (("cuda", 2), ("cuda:1", 1)):
        config.DEVICE = torch.device(device)
        assert devices.describe_devices() == f"{count} x cuda, computing in float16"
    config.DEVICE = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert devices.describe_devices() == "1 x cpu (1 threads), computing in float32"


KEEPING = """
import numpy as np
from pyimagesearch import config, devices


def get_memory():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


for name in ("cuda", "cpu"):
    config.DEVICE = devices.torch.device(name)
    devices.keep_memory()
    before = get_memory()
    np.ones(2**26 // 8)
    kept = get_memory() - before
    if devices.os.fork() == 0:
        print(round(kept), round(get_memory() - before), flush=True)
        devices.os._exit(0)
    devices.os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can keep memory")
def test_memory_is_kept_on_a_cpu_and_workers_start_without_it():
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    run = subprocess.run([sys.executable, "-c", KEEPING], env=env, capture_output=True, text=True)
    for line, isKept in zip(run.stdout.splitlines(), (False, True), strict=True):
        (kept, inWorker) = map(int, line.split())
        # of 64 MiB that were used once
        assert (kept > 60) == isKept
        assert inWorker < 4


def test_a_gpu_of_its_own_is_made_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        config.DEVICE = torch.device(name)
        devices.join_processes()
    assert chosen == [torch.device("cuda:1")]


def test_processes_on_other_kinds_of_devices_end_at_once(monkeypatch):
    monkeypatch.setattr(devices.platform, "node", lambda: "second")
    store = torch.distributed.HashStore()
    store.set("0", "cuda on first")
    config.DEVICE = torch.device("cpu")
    with pytest.raises(UserError, match="^DEVICE is cpu on second and cuda on first; they must "):
        devices.compare_devices(store, 1, 2)
    store.set("0", "cpu on first")
    devices.compare_devices(store, 1, 2)
    # a device that one machine lacks ends the others too
    store.set("0", "wrong on first")
    with pytest.raises(UserError, match="^DEVICE is cpu on second and wrong on first"):
        devices.compare_devices(store, 1, 2)
    config.DEVICE = "gpu"
    with pytest.raises(UserError, match="^DEVICE in config.py must be a device .*, not 'gpu'"):
        devices.compare_devices(store, 1, 2)


@pytest.mark.parametrize(
    ("device", "isThere"),
    [("cpu", True), ("cuda", True), ("cuda:1", True), ("cuda:2", False), ("mps", False)],
)
def test_devices_are_counted_without_a_context_on_the_gpu(monkeypatch, device, isThere):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for value in (device, torch.device(device)):
        config.DEVICE = value
        # this machine may have no GPU, on which making a tensor would fail
        if isThere:
            devices.compare_devices(torch.distributed.HashStore(), 0, 1)
            assert config.DEVICE == torch.device(device)
        else:
            with pytest.raises(UserError, match="^DEVICE in config.py must be a device that this"):
                devices.compare_devices(torch.distributed.HashStore(), 0, 1)


@pytest.mark.parametrize("name", ["cpu", "cuda", "mps"])
def test_channels_come_last_on_cpu_and_cuda_alone(name):
    config.DEVICE = torch.device(name)
    model = FoodClassifier(TinyNet(), 3)
    seen = []
    model.baseModel.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.zeros(2, 3, 8, 8))
    for tensor in (model.baseModel.conv.weight, seen[0]):
        isLast = tensor.is_contiguous(memory_format=torch.channels_last)
        assert isLast == (name != "mps")


def test_precision_is_what_the_device_computes_fastest(monkeypatch):
    for name, dtype in (("cuda:1", torch.float16), ("mps", torch.float32)):
        config.DEVICE = torch.device(name)
        assert devices.compute_dtype() == dtype
    config.DEVICE = torch.device("cpu")
    for capabilities, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert devices.compute_dtype() == dtype


def train_in(worldSize, path, freeze):
    """Train a little in so many processes; return what step_with_torchrun.py saves at path."""
    for process in start_group(worldSize, "tests/step_with_torchrun.py", path, freeze):
        run = read_forked(process)
        assert (run.returncode, run.stderr) == (0, "")
    return checkpoint.load_state(path)


@pytest.mark.parametrize(
    ("worldSize", "images", "freeze"), [(2, 9, "freeze"), (3, 7, "train"), (4, 3, "freeze")]
)
def test_processes_give_the_same_answer_as_one(worldSize, images, freeze):
    # 24 training images divide evenly; of the images to evaluate one process has a batch less than
    # the others, and of 3 images the fourth process has none
    draw_class_folders(Path("dataset"), counts=(8, 4, 1))
    paths = sorted(Path("dataset/validation").glob("*/*.jpg"), key=lambda path: path.name)
    for path in paths[images:]:
        path.unlink()
    many = train_in(worldSize, "output/many.pth", freeze)
    assert all(len(preds) == images for _, _, preds in many["val"])
    if freeze == "freeze":
        one = train_in(1, "output/one.pth", freeze)
        assert many["train"] == [pytest.approx(pair, rel=1e-5) for pair in one["train"]]
        for key, tensor in one["model"].items():
            assert torch.allclose(many["model"][key], tensor, rtol=1e-4, atol=1e-6), key
        for (*numbers, preds), (*expected, expectedPreds) in zip(
            many["val"], one["val"], strict=True
        ):
            assert numbers == pytest.approx(expected, rel=1e-5)
            assert [label for label, _ in preds] == [label for label, _ in expectedPreds]
            assert [p for _, p in preds] == pytest.approx([p for _, p in expectedPreds], rel=1e-4)


def test_trained_batch_norm_is_evaluated_with_the_statistics_that_are_saved(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    config.IMAGE_SIZE = 32
    draw_class_folders(Path("dataset"), counts=(8, 4, 1))
    many = train_in(2, "output/many.pth", "train")
    model = FoodClassifier(TinyNet(), 3)
    model.load_state_dict(many["model"])
    transform = create_dataloaders.test_transform()
    (_, loader) = create_dataloaders.get_dataloader(config.VAL, transform, 6, shuffle=False)
    (loss, accuracy, preds) = evaluate(model.to(config.DEVICE), loader, nn.CrossEntropyLoss())
    assert many["val"][-1][:2] == (pytest.approx(loss, rel=1e-5), accuracy)
    assert [label for label, _ in many["val"][-1][2]] == [label for label, _ in preds]


FLAGS = "--image-size 64 --num-workers 2 --local-batch-size 5 --no-pretrained --epochs 2".split()


@run_beside
def torchrunRun(folder):
    """Train under torchrun, which restarts a killed process; return the directory and the run."""
    # 21 training images in batches of 10, 7 validation and 5 test images: uneven everywhere
    draw_class_folders(folder / "dataset", counts=(7, 2, 2))
    (folder / "dataset/evaluation/Soup/1.jpg").unlink()
    (folder / "dataset/validation/Soup/1.jpg").unlink()
    # killed in epoch 2, in one of the processes; torchrun starts them again
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1".split()
    return folder, run_script(
        PROJECT / "tests" / "killed_training.py",
        *FLAGS,
        "--resume",
        cwd=folder,
        pythonFlags=launch,
        env={"KILL_AT": "step:4", "KILL_ONCE": "killed", "TINY": "yes"},
        classes=CLASSES,
    )


def test_torchrun_trains_prints_once_counts_each_image_once_and_survives_a_kill(torchrunRun):
    (folder, run) = torchrunRun
    os.chdir(folder)
    assert run.returncode == 0, run.stderr
    assert "Signal 9" in run.stderr or str(-signal.SIGKILL) in run.stderr
    assert os.path.exists("killed")
    assert re.findall(r"EPOCH: (\d)/2", run.stdout) == ["1", "2"]
    assert run.stdout.count("[INFO] using a batch size of 10...") == 2
    assert "[INFO] running on 2 x cpu (" in run.stdout
    assert "[INFO] resuming after epoch 1..." in run.stdout
    assert re.search(r"accuracy +[01]\.\d\d +5\n", Path(config.REPORT_PATH).read_text())
    # the weights are those of the plain model
    state = checkpoint.load_state(config.MODEL_PATH)
    assert {key.split(".")[0] for key in state} == {"baseModel", "classifier"}


@run_beside
def machineRuns(folder):
    """Train on two machines, both of which are this one, in one directory, and kill a process;
    return the directory and the runs."""
    draw_class_folders(folder / "dataset", counts=(7, 2, 2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch = "-m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=3".split()
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    with ThreadPoolExecutor() as pool:
        machines = [
            pool.submit(
                run_script,
                PROJECT / "tests" / "killed_training.py",
                *FLAGS,
                "--resume",
                cwd=folder,
                pythonFlags=[*launch, f"--node-rank={rank}"],
                env={"KILL_AT": "step:4", "KILL_ONCE": "killed", "TINY": "yes"},
                classes=CLASSES,
            )
            for rank in (0, 1)
        ]
    return folder, [machine.result() for machine in machines]


def test_two_machines_go_on_after_a_process_was_killed(machineRuns):
    (folder, runs) = machineRuns
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert os.path.exists(folder / "killed")
    assert "[INFO] resuming after epoch 1..." in runs[0].stdout
    assert re.findall(r"EPOCH: (\d)/2", runs[0].stdout) == ["1", "2"]


def note(text):
    """Write text to the output of this process, also where it is muted."""
    os.write(1, f"{text}\n".encode())


def note_setup():
    """Note how a process is set up; this machine seems to have six CPUs."""
    joblib.cpu_count = lambda: 6
    atexit.register = lambda function: note(f"at exit: {function.__name__}")
    food_classifier.densenet121 = lambda weights: note(f"weights: {weights}") or TinyNet()
    wrap = nn.parallel.DistributedDataParallel.__init__
    names = ("gradient_as_bucket_view", "batched_grad_copy", "forward_sync_buffers")

    def wrap_and_note(self, module, **options):
        wrap(self, module, **options)
        note([getattr(self, name) for name in names])

    nn.parallel.DistributedDataParallel.__init__ = wrap_and_note


def test_processes_share_cpus_and_imagenet_weights_and_say_goodbye():
    draw_class_folders(Path("dataset"), counts=(4, 2, 2))
    flags = "--image-size 64 --num-workers 0 --local-batch-size 6 --epochs 1 --pretrained".split()
    envs = [{**env, "OMP_NUM_THREADS": "1"} for env in torchrun_envs(2, machines=1)]
    processes = [
        start_forked("train_distributed.py", *flags, env=env, before=note_setup) for env in envs
    ]
    runs = [read_forked(process) for process in processes]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    # each start has a separate part of torchrun's store, which outlives it
    assert stores[-1].check(["0/0", "0/1"])
    assert re.search(r"running on 2 x cpu \(3 threads\)", runs[0].stdout)
    for run in runs:
        assert "\nat exit: destroy_process_group\n" in f"\n{run.stdout}"
        # no copy for each gradient, and no wait in a forward pass
        assert "[True, True, False]\n" in run.stdout
    # DistributedDataParallel gives the first process's weights to all
    assert "weights: DenseNet121_Weights.IMAGENET1K_V1\n" in runs[0].stdout
    assert "weights: None\n" in runs[1].stdout
    assert "[INFO]" not in runs[1].stdout


def test_a_machine_without_the_others_device_ends_them_all():
    draw_class_folders(Path("dataset"), counts=(4, 2, 2))
    devicesHere = ({"DEVICE": "cpu"}, {"DEVICE": "cuda:7"})
    processes = [
        start_forked("train_distributed.py", env=env, settings=settings)
        for env, settings in zip(torchrun_envs(2, machines=2), devicesHere, strict=True)
    ]
    (first, second) = (read_forked(process) for process in processes)
    assert (first.returncode, second.returncode) == (1, 1)
    host = re.escape(platform.node())
    line = rf"\[ERROR\] DEVICE is cpu on {host} and wrong on {host}; they must match\n"
    assert re.fullmatch(line, first.stderr)
    assert second.stderr.startswith(
        "[ERROR] DEVICE in config.py must be a device that this machine"
    )


RUN = (
    "--image-size 64 --num-workers 0 --pretrained --lr 0.001 --epochs 4 --local-batch-size".split()
)


def test_a_wrong_flag_on_one_machine_ends_the_other_in_seconds():
    draw_class_folders(Path("dataset"), counts=(4, 2, 2))
    start = time.monotonic()
    processes = [
        start_forked("train_distributed.py", *flags, env=env)
        for env, flags in zip(torchrun_envs(2, 2), (FLAGS, ["--epochs", "none"]), strict=True)
    ]
    (first, second) = (read_forked(process) for process in processes)
    assert time.monotonic() - start < 20
    assert (first.returncode, second.returncode) == (1, 2)
    assert first.stderr.startswith("[ERROR] lost the connection to another process, whose own ")
    assert second.stderr.startswith("[ERROR] argument --epochs: must be a whole number from 1 to")
    assert first.stderr.count("\n") == second.stderr.count("\n") == 1


def test_torchrun_resumes_bit_for_bit():
    outcomes = []
    for name, epochs in (("whole", ["4"]), ("parts", ["2", "4"])):
        draw_class_folders(Path(name, "dataset"), counts=(7, 3, 3))
        for count in epochs:
            flags = ["--resume"] if count != epochs[0] else [*RUN, "5"]
            group = start_group(2, "train_distributed.py", *flags, "--epochs", count, cwd=name)
            for process in group:
                assert read_forked(process).returncode == 0
        outcomes.append(checkpoint.load_state(str(Path(name, config.CHECKPOINT_PATH))))
    for key, tensor in outcomes[0]["model"].items():
        assert torch.equal(outcomes[1]["model"][key], tensor), key
    assert outcomes[0]["H"] == outcomes[1]["H"]


def test_a_run_moves_from_one_device_to_two_and_back():
    draw_class_folders(Path("dataset"), counts=(8, 3, 3))
    shutil.copytree("dataset", "one/dataset")
    assert run_forked("train_distributed.py", *RUN, "6", cwd="one").returncode == 0
    for worldSize, flags in ((1, [*RUN, "6", "--epochs", "1"]), (2, ["2"]), (1, ["4"])):
        flags = flags if len(flags) > 1 else ["--resume", "--epochs", *flags]
        for process in start_group(worldSize, "train_distributed.py", *flags):
            run = read_forked(process)
            assert run.returncode == 0, run.stderr
    one = checkpoint.load_state(str(Path("one", config.CHECKPOINT_PATH)))
    moved = checkpoint.load_state(config.CHECKPOINT_PATH)
    # frozen batch normalization: 24 images in batches of 6, on one device as on two
    for key, tensor in one["model"].items():
        torch.testing.assert_close(moved["model"][key], tensor, rtol=1e-3, atol=1e-4)
    assert moved["H"]["val_acc"] == one["H"]["val_acc"]


def test_bad_input_is_said_once_by_several_processes():
    draw_class_folders(Path("dataset"), counts=(4, 2, 2))
    # the second process's share, sometimes the first's
    Path("dataset/validation/Bread/1.jpg").write_text("no image")
    runs = [read_forked(process) for process in start_group(2, "train_distributed.py", *FLAGS)]
    assert all(run.returncode == 1 for run in runs)
    errors = [line for run in runs for line in run.stderr.splitlines()]
    assert sum("1.jpg: cannot be read as an image" in line for line in errors) == 1
    # the other process says that it lost this one
    assert sum("lost the connection" in line for line in errors) == 1
    assert len(errors) == 2, errors
