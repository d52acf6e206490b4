"""How many devices train, which one a process takes, and in what precision."""

import sys
from unittest.mock import Mock, call

from pyimagesearch import config, devices

import joblib
import pytest
import torch
from helpers import run_python
from torch import distributed


@pytest.mark.parametrize(
    ("device", "found", "worldSize", "numGPU", "numDevices"),
    [
        ("cpu", 4, None, 0, 1),
        ("mps", 0, None, 1, 1),
        ("cuda", 4, None, 4, 4),
        ("cuda:1", 4, None, 1, 1),
        # torchrun starts a process for each
        ("cpu", 0, 3, 0, 3),
        ("cuda", 4, 1, 1, 1),
    ],
)
def test_the_batch_grows_with_the_devices_that_train(
    monkeypatch, device, found, worldSize, numGPU, numDevices
):
    config.DEVICE = torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(distributed, "is_initialized", lambda: bool(worldSize))
    monkeypatch.setattr(distributed, "get_world_size", lambda: worldSize)
    assert devices.count_gpus() == numGPU
    assert devices.count_devices() == numDevices


def test_precision_is_what_the_device_computes_fastest(monkeypatch):
    for device, capability, dtype in (
        ("cuda:1", "amx_bf16", torch.float16),
        ("mps", "bf16", torch.float32),
        ("cpu", "avx512_bf16", torch.bfloat16),
        ("cpu", "amx_bf16", torch.bfloat16),
        ("cpu", "bf16", torch.bfloat16),
        ("cpu", "avx2", torch.float32),
    ):
        config.DEVICE = device
        found = {"amx_bf16": False, capability: True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", Mock(return_value=found))
        assert devices.compute_dtype() == dtype


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [
        # before NCCL, which would take the first GPU in every process
        ("cuda", "1", [call.set_device(1), call.init_process_group("nccl")]),
        ("cpu", "1", [call.set_num_threads(3), call.init_process_group("gloo")]),
        # the user's own number
        ("cpu", "2", [call.init_process_group("gloo")]),
    ],
)
def test_a_process_takes_its_own_gpu_or_cpus(monkeypatch, device, threads, expected):
    # the fourth process of all, the second on the second machine of six CPUs
    env = {"RANK": 3, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**env, "TORCHELASTIC_RUN_ID": "a", "OMP_NUM_THREADS": threads}.items():
        monkeypatch.setenv(name, str(value))
    done = Mock()
    monkeypatch.setattr(torch.cuda, "set_device", done.set_device)
    monkeypatch.setattr(torch, "set_num_threads", done.set_num_threads)
    monkeypatch.setattr(distributed, "init_process_group", done.init_process_group)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    config.DEVICE = torch.device(device)
    devices.join_processes()
    assert done.mock_calls == expected


KEEPING = """
import numpy as np
from pyimagesearch import config, devices


def get_memory():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


for name in ("cuda", "cpu"):
    config.DEVICE = name
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
    lines = run_python("-c", KEEPING).stdout.splitlines()
    for line, isKept in zip(lines, (False, True), strict=True):
        (kept, inWorker) = map(int, line.split())
        # of 64 MiB that were used once
        assert (kept > 60) == isKept
        assert inWorker < 4
