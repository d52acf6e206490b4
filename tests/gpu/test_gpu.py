"""What only a machine with GPUs can show; python -m pytest tests/gpu proves it there."""

import copy
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import FLAGS, PROJECT, TinyNet, call, load, run_python
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import densenet121

import train_distributed
from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm, load_classifier
from pyimagesearch.support import devices
from pyimagesearch.support.replicas import DataParallel

FLAGS = [*FLAGS, "2"]
DRIVER = PROJECT / "tests/gpu/train_on_gpu.py"


@pytest.fixture
def compute_in(monkeypatch):
    """Return a function that has all networks compute in a dtype from then on."""
    return lambda dtype: monkeypatch.setattr(devices, "compute_dtype", lambda *_: dtype)


def build_model(device):
    """Return DenseNet121 on device, frozen as for fine-tuning."""
    torch.manual_seed(0)
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    return FoodClassifier(baseModel, 3).to(device)


def get_gradients(model, device):
    """Return the gradients of a step as one vector on the CPU."""
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 3
    loss = cross_entropy(model.train()(x.to(device)), y.to(device))
    # scaled, as small gradients would be 0 in fp16
    (loss * 128).backward()
    gradients = []
    for param in model.parameters():
        if param.requires_grad:
            gradients.append(param.grad.flatten().cpu() / 128)
    return torch.cat(gradients)


def test_a_step_on_a_gpu_has_the_gradients_of_one_on_a_cpu(device, compute_in):
    compute_in(torch.float32)
    config.DEVICE = torch.device("cpu")
    onCPU = get_gradients(build_model("cpu"), "cpu")
    config.DEVICE = device
    onGPU = get_gradients(build_model(device), device)
    assert (onGPU - onCPU).norm() < 1e-3 * onCPU.norm()


def test_half_precision_has_nearly_the_gradients_and_logits_of_full(device, compute_in):
    gradients = []
    logits = []
    x = torch.randn(4, 3, 64, 64).to(device)
    for dtype in (torch.float32, torch.float16):
        compute_in(dtype)
        model = build_model(device)
        gradients.append(get_gradients(model, device))
        with torch.inference_mode():
            logits.append(model.eval()(x))
    (full, half) = gradients
    assert (half - full).norm() < 0.2 * full.norm()
    torch.testing.assert_close(logits[1], logits[0], rtol=0.02, atol=0.02)


def test_training_learns_and_leaves_weights_for_a_machine_without_a_gpu(device):
    call(train_distributed.main, *FLAGS, "--epochs", "8")
    state = load(config.CHECKPOINT_PATH)
    losses = state["H"]["train_loss"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert bool(state["scaler"]) == (device.type == "cuda")
    weights = torch.load(config.MODEL_PATH, weights_only=True)
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


def test_a_run_moves_from_the_gpu_to_a_cpu_and_back(device, tinyNet, compute_in):
    compute_in(torch.float32)
    call(train_distributed.main, *FLAGS, "--epochs", "3")
    whole = load(config.CHECKPOINT_PATH)["H"]["train_loss"]
    call(train_distributed.main, *FLAGS, "--epochs", "1")
    config.DEVICE = torch.device("cpu")
    call(train_distributed.main, *FLAGS, "--epochs", "2", "--resume")
    config.DEVICE = device
    call(train_distributed.main, *FLAGS, "--epochs", "3", "--resume")
    # not bit for bit: the order of a GPU's sums is not fixed
    assert load(config.CHECKPOINT_PATH)["H"]["train_loss"] == pytest.approx(whole, rel=0.01)


def train_tiny(model, bs=12):
    """Train for an epoch; return (loss, accuracy), predicted classes and weights."""
    transform = eval_transform(config.IMAGE_SIZE)
    (_, trainLoader) = get_dataloader(config.TRAIN, transform, bs)
    (_, valLoader) = get_dataloader(config.VAL, transform, bs, shuffle=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    lossFunc = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(enabled=False)
    means = train_distributed.train_one_epoch(model, trainLoader, lossFunc, opt, scaler)
    (_, _, preds, _) = train_distributed.evaluate(model, valLoader, lossFunc)
    state = {}
    for key, tensor in model.state_dict().items():
        state[key.removeprefix("module.")] = tensor.cpu()
    return means, preds, state


# two replicas on one GPU, or one on each
@pytest.mark.parametrize("ids", [[0, 0], pytest.param(None, marks=pytest.mark.several)])
def test_data_parallel_gives_the_same_answer_as_one_gpu(device, ids, compute_in):
    compute_in(torch.float32)
    baseModel = TinyNet()
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 3).to(device)
    parallel = DataParallel(copy.deepcopy(model), device_ids=ids)
    (meansOfOne, predsOfOne, stateOfOne) = train_tiny(model)
    (means, preds, state) = train_tiny(parallel)
    assert means == pytest.approx(meansOfOne, rel=1e-3)
    assert preds == predsOfOne
    for key, tensor in stateOfOne.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-4)


# NCCL on one GPU; two processes that share it, over gloo; NCCL on two
@pytest.mark.parametrize(
    ("count", "backend"),
    [(1, "nccl"), (2, "gloo"), pytest.param(2, "nccl", marks=pytest.mark.several)],
)
def test_torchrun_trains_as_one_process_does(device, count, backend):
    outcomes = []
    for number, folder in ((1, "one"), (count, "many")):
        env = {"TEST_DEVICE": str(device), "TEST_BACKEND": backend if folder == "many" else "gloo"}
        launch = f"-m torch.distributed.run --standalone --nproc-per-node={number}".split()
        os.mkdir(folder)
        os.symlink(Path("dataset").absolute(), Path(folder, "dataset"))
        bs = ["--local-batch-size", str(12 // number), "--lr", str(0.001 / number)]
        flags = [*FLAGS, "--pretrained", "--epochs", "2", *bs]
        run = run_python(*launch, DRIVER, *flags, cwd=folder, env=env)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("EPOCH: ") == 2
        outcomes.append(load(Path(folder, config.CHECKPOINT_PATH))["H"]["train_loss"])
    assert outcomes[1] == pytest.approx(outcomes[0], rel=0.02)


def test_sigterm_ends_a_training_at_once(device):
    env = {**os.environ, "TEST_DEVICE": str(device), "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests"}
    command = [sys.executable, DRIVER, *FLAGS, "--epochs", "1000"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "EPOCH: 2/" in line:
            break
    start = time.monotonic()
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert time.monotonic() - start < 2
    process.stdout.close()


def test_data_parallel_leaves_no_memory_behind_at_a_step(device, compute_in):
    compute_in(torch.float16)
    # cuDNN keeps plans per thread: those of nn.DataParallel, which are new at each step, lost 2 MiB
    # on an H100 with PyTorch 2.11
    model = DataParallel(build_model(device), device_ids=[0, 0])
    x = torch.randn(4, 3, 64, 64).to(device)
    y = torch.zeros(4, dtype=torch.long).to(device)
    resident = []
    for _ in range(200 if device.type == "cuda" else 20):
        cross_entropy(model(x), y).backward()
        model.zero_grad()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    half = len(resident) // 2
    assert (resident[-1] - resident[half]) / half < 2**18


def test_weights_of_a_gpu_classify_on_it_and_without_it(device, tinyNet):
    call(train_distributed.main, *FLAGS, "--epochs", "1")
    x = torch.randn(3, 3, 64, 64)
    logits = []
    for name in (device, "cpu"):
        config.DEVICE = torch.device(name)
        (model, classes, _) = load_classifier(config.MODEL_PATH)
        assert classes == ["Bread", "Egg", "Soup"]
        with torch.inference_mode():
            logits.append(model(x.to(name)).cpu())
    torch.testing.assert_close(*logits, rtol=0.02, atol=0.02)
