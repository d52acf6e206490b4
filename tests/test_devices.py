import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    CLASSES,
    PROJECT,
    TinyNet,
    draw_class_folders,
    read_forked,
    run_script,
    start_group,
)
from torch import nn
from torchvision.models import densenet121

from pyimagesearch import checkpoint, config, create_dataloaders, devices
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier
from train_distributed import evaluate


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [("cpu", 4, 0), ("mps", 0, 1), ("cuda", 1, 1), ("cuda", 4, 4), ("cuda:1", 4, 1)],
)
def test_counts_the_gpus_that_config_names(monkeypatch, device, found, expected):
    config.DEVICE = torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert devices.count_gpus() == expected
    assert devices.count_devices() == max(expected, 1)


def test_devices_are_described_by_name_and_precision(monkeypatch):
    names = ["Tesla T4", "NVIDIA A100", "Tesla T4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: names[torch.device(gpu).index])
    for device, expected in (
        ("cuda", "2 x Tesla T4, 1 x NVIDIA A100"),
        ("cuda:1", "1 x NVIDIA A100"),
    ):
        config.DEVICE = torch.device(device)
        assert devices.describe_devices() == f"{expected}, computing in float16"
    config.DEVICE = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert re.fullmatch(
        r"1 x CPU \(\w+, \w+, 1 threads\), computing in float32", devices.describe_devices()
    )


def test_one_device_runs_the_plain_model(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    model = TinyNet()
    assert devices.parallelize(model) is model
    assert devices.unwrap(model) is model


def test_several_gpus_run_under_data_parallel(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    model = TinyNet().eval()
    x = torch.randn(3, 3, 8, 8)
    expected = model(x)
    wrapped = devices.parallelize(model)
    assert isinstance(wrapped, nn.DataParallel)
    assert devices.unwrap(wrapped) is model
    assert torch.allclose(wrapped(x.to(config.DEVICE)).cpu(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("device", "hasMallopt", "expected"),
    [("cpu", True, [(-4, 0), (-1, -1)]), ("cpu", False, []), ("cuda", True, [])],
)
def test_memory_is_kept_on_a_cpu_where_the_system_can(monkeypatch, device, hasMallopt, expected):
    calls = []
    library = SimpleNamespace()
    if hasMallopt:
        library.mallopt = lambda *args: calls.append(args)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: library)
    config.DEVICE = torch.device(device)
    devices.keep_memory()
    assert calls == expected


def test_workers_start_with_no_more_memory_than_is_in_use(monkeypatch):
    draw_class_folders(Path("dataset"))
    (config.NUM_WORKERS, config.IMAGE_SIZE) = (1, 64)
    calls = []
    monkeypatch.setattr(devices, "release_memory", lambda: calls.append("release"))
    transform = create_dataloaders.test_transform()
    (_, loader) = create_dataloaders.get_dataloader(config.TRAIN, transform, bs=8)
    for _ in range(2):
        list(loader)
    # at the first pass, not at each
    assert calls == ["release"]


def test_a_gpu_of_its_own_is_made_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        config.DEVICE = torch.device(name)
        devices.init_process_group()
    assert chosen == [torch.device("cuda:1")]


def test_processes_on_other_kinds_of_devices_end_at_once(monkeypatch):
    monkeypatch.setattr(devices.platform, "node", lambda: "second")
    store = torch.distributed.HashStore()
    store.set("device 0", "cuda on first")
    config.DEVICE = torch.device("cpu")
    with pytest.raises(UserError, match="^DEVICE is cpu on second and cuda on first; make them "):
        devices.check_backends(store, 1, 2)
    store.set("device 0", "cpu on first")
    devices.check_backends(store, 1, 2)


def test_channels_come_last_on_cpu_and_cuda_alone():
    names = ("cpu", "cuda:1", "mps")
    formats = [devices.memory_format(torch.device(name)) for name in names]
    assert formats == [torch.channels_last, torch.channels_last, torch.preserve_format]


def test_precision_is_what_the_device_computes_fastest(monkeypatch):
    assert devices.compute_dtype(torch.device("cuda:1")) == torch.float16
    assert devices.compute_dtype(torch.device("mps")) == torch.float32
    for capabilities, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert devices.compute_dtype(torch.device("cpu")) == dtype
        with devices.autocast(torch.device("cpu")):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


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
            assert preds == expectedPreds


def test_trained_batch_norm_is_evaluated_with_the_statistics_that_are_saved(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda device: torch.float32)
    config.IMAGE_SIZE = 32
    draw_class_folders(Path("dataset"), counts=(8, 4, 1))
    many = train_in(2, "output/many.pth", "train")
    model = FoodClassifier(TinyNet(), 3)
    model.load_state_dict(many["model"])
    transform = create_dataloaders.test_transform()
    (_, loader) = create_dataloaders.get_dataloader(config.VAL, transform, 6, shuffle=False)
    (loss, accuracy, preds) = evaluate(model.to(config.DEVICE), loader, nn.CrossEntropyLoss())
    assert many["val"][-1] == (pytest.approx(loss, rel=1e-5), accuracy, preds)


FLAGS = "--image-size 64 --num-workers 2 --local-batch-size 5 --no-pretrained --epochs 2".split()


def test_torchrun_trains_prints_once_counts_each_image_once_and_survives_a_kill():
    # 21 training images in batches of 10, 7 validation and 5 test images: uneven everywhere
    draw_class_folders(Path("dataset"), counts=(7, 2, 2))
    (Path("dataset/evaluation/Soup/1.jpg")).unlink()
    (Path("dataset/validation/Soup/1.jpg")).unlink()
    # killed in epoch 2, in one of the processes; torchrun starts them again
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1".split()
    run = run_script(
        PROJECT / "tests" / "killed_training.py",
        *FLAGS,
        "--resume",
        pythonFlags=launch,
        env={"KILL_AT": "step:4", "KILL_ONCE": "killed"},
        classes=CLASSES,
    )
    assert run.returncode == 0, run.stderr
    assert "Signal 9" in run.stderr or str(-signal.SIGKILL) in run.stderr
    assert os.path.exists("killed")
    assert re.findall(r"EPOCH: (\d)/2", run.stdout) == ["1", "2"]
    assert run.stdout.count("[INFO] using a batch size of 10...") == 2
    assert "[INFO] running on 2 x CPU (" in run.stdout
    assert "[INFO] resuming after epoch 1..." in run.stdout
    assert re.search(r"accuracy +[01]\.\d\d +5\n", Path(config.REPORT_PATH).read_text())
    # the weights are those of the plain model
    state = checkpoint.load_state(config.MODEL_PATH)
    FoodClassifier(densenet121(weights=None), 3).load_state_dict(state)


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
