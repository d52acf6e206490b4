"""What only a machine with GPUs can show; one command proves it there:

python -m pytest tests/test_gpu.py
"""

import math
import os
import statistics
import sys
import time
from pathlib import Path

import train_distributed
from pyimagesearch import checkpoint, config, create_dataloaders, devices, food_classifier
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm

import pytest
import torch
from conftest import CLASSES, PROJECT, TinyNet, draw_class_folders, run_script
from torch import nn
from torchvision.models import densenet121

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
severalGPUs = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="less than two CUDA GPUs")

FLAGS = "--image-size 64 --num-workers 2 --local-batch-size 6 --no-pretrained --lr 0.001".split()


@pytest.fixture(autouse=True)
def onGPUs():
    """Run on all GPUs, in full fp32 where a test asks for fp32."""
    config.DEVICE = GPU
    config.CLASSES = list(CLASSES)
    config.IMAGE_SIZE = 64
    draw_class_folders(Path("dataset"), counts=(8, 4, 4))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def train(monkeypatch, *flags):
    """Run train_distributed.py; return the checkpoint that it leaves."""
    monkeypatch.setattr(sys, "argv", ["train_distributed.py", *FLAGS, *flags])
    train_distributed.main()
    return checkpoint.load_state(config.CHECKPOINT_PATH)


def take_epoch(model, bs):
    """Train model for an epoch in fp32; return loss, accuracy, predictions and weights."""
    transform = create_dataloaders.test_transform()
    (_, trainLoader) = create_dataloaders.get_dataloader(config.TRAIN, transform, bs)
    (_, valLoader) = create_dataloaders.get_dataloader(config.VAL, transform, bs, shuffle=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(GPU.type, enabled=False)
    lossFunc = nn.CrossEntropyLoss()
    (loss, accuracy) = train_distributed.train_one_epoch(model, trainLoader, lossFunc, opt, scaler)
    (_, _, preds) = train_distributed.evaluate(model, valLoader, lossFunc)
    labels = [label for label, _ in preds]
    return loss, accuracy, labels, getattr(model, "module", model).state_dict()


def assert_close(one, other):
    """Compare what take_epoch() returned twice."""
    assert one[:2] == pytest.approx(other[:2], rel=1e-3)
    assert one[2] == other[2]
    for key, tensor in one[3].items():
        torch.testing.assert_close(tensor.cpu(), other[3][key].cpu(), rtol=1e-3, atol=1e-4)


def test_a_gpu_computes_in_fp16_what_a_cpu_computes_in_fp32():
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 3).eval()
    x = torch.randn(4, 3, 64, 64)
    dtypes = []
    baseModel.features.conv0.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    with torch.inference_mode():
        onGPU = model.to(GPU)(x.to(GPU)).cpu()
        assert set(dtypes) == {torch.float16}
        model.autocast["enabled"] = False
        onCPU = model.cpu()(x)
    assert onGPU.dtype == torch.float32
    torch.testing.assert_close(onGPU, onCPU, rtol=0.02, atol=0.02)


def test_training_scales_its_gradients_and_learns(monkeypatch, capsys):
    state = train(monkeypatch, "--epochs", "8")
    assert "computing in float16" in capsys.readouterr().out
    assert state["scaler"]["scale"] > 0
    losses = state["H"]["train_loss"]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_a_resumed_run_ends_near_the_uninterrupted_one(monkeypatch):
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    whole = train(monkeypatch, "--epochs", "4")
    train(monkeypatch, "--epochs", "2")
    resumed = train(monkeypatch, "--epochs", "4", "--resume")
    # not bit for bit: the order of a GPU's sums is not fixed
    assert resumed["H"]["train_loss"] == pytest.approx(whole["H"]["train_loss"], rel=0.01)
    assert resumed["lrScheduler"] == whole["lrScheduler"]


@severalGPUs
@pytest.mark.parametrize("freeze", [True, False])
def test_data_parallel_gives_the_same_answer_as_one_gpu(monkeypatch, freeze):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    outcomes = []
    for device in ("cuda:0", "cuda"):
        config.DEVICE = torch.device(device)
        torch.manual_seed(0)
        baseModel = TinyNet()
        if freeze:
            freeze_batch_norm(baseModel)
        model = FoodClassifier(baseModel, 3).to(config.DEVICE)
        if device == "cuda":
            model = nn.DataParallel(model)
        if freeze:
            outcomes.append(take_epoch(model, bs=12))
        else:
            # each replica normalizes by the statistics of its own share
            assert math.isfinite(take_epoch(model, bs=12)[0])
    if freeze:
        assert_close(*outcomes)


def run_torchrun(processes, name, *flags):
    """Run a script in several processes, each with a GPU of its own."""
    launch = f"-m torch.distributed.run --standalone --nproc-per-node={processes}".split()
    run = run_script(
        name, *flags, pythonFlags=launch, classes=CLASSES, env={"TEST_DEVICE": GPU.type}
    )
    assert run.returncode == 0, run.stderr
    return run


@severalGPUs
def test_two_processes_under_nccl_give_the_same_answer_as_one():
    driver = PROJECT / "tests" / "step_with_torchrun.py"
    (one, two) = (f"output/{number}.pth" for number in (1, 2))
    for processes, path in ((1, one), (2, two)):
        run_torchrun(processes, driver, path, "freeze")
    (one, two) = (checkpoint.load_state(path) for path in (one, two))
    assert two["train"] == [pytest.approx(pair, rel=1e-3) for pair in one["train"]]
    for (*_, found), (*_, expected) in zip(two["val"], one["val"], strict=True):
        assert [label for label, _ in found] == [label for label, _ in expected]
    for key, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][key], tensor, rtol=1e-3, atol=1e-4)


@severalGPUs
def test_torchrun_trains_on_two_gpus():
    run = run_torchrun(2, "train_distributed.py", *FLAGS, "--epochs", "2")
    assert "[INFO] number of GPUs found: 2..." in run.stdout
    assert "[INFO] using a batch size of 12..." in run.stdout
    assert run.stdout.count("EPOCH: ") == 2
    assert all(t.device.type == "cpu" for t in checkpoint.load_state(config.MODEL_PATH).values())


def time_steps(model, steps):
    """Return the median seconds of a training step at 224 px, and the memory that is resident after
    the first of these steps and after the last, in bytes."""
    opt = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    (x, y) = (torch.randn(32, 3, 224, 224, device=GPU), torch.zeros(32, dtype=torch.long).to(GPU))
    (seconds, resident) = ([], [])
    for _ in range(steps):
        start = time.perf_counter()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return statistics.median(seconds), resident[0], resident[-1]


@severalGPUs
def test_data_parallel_searches_no_algorithms_and_keeps_its_memory(monkeypatch):
    # what main() sets: on for one GPU, off for nn.DataParallel, whose threads are new at each step
    medians = []
    for device, isSearching in (("cuda:0", True), ("cuda", False)):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", isSearching)
        config.DEVICE = torch.device(device)
        model = FoodClassifier(densenet121(weights=None), 3).to(config.DEVICE)
        model = model if device == "cuda:0" else nn.DataParallel(model)
        (median, before, after) = time_steps(model, steps=50)
        medians.append(median)
        assert after - before < 2**28
    # a search of 66 kinds of convolution takes 3 seconds
    assert medians[1] < medians[0] + 1
