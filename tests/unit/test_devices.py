"""How many devices train, in what precision, and the memory that a CPU keeps."""

import sys
from unittest.mock import Mock

import pytest
import torch
from helpers import run_python
from torch import distributed

from pyimagesearch import config
from pyimagesearch.support import devices


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
        ("cuda", 4, 3, 3, 3),
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


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("cuda:1", "amx_bf16", torch.float16),
        ("mps", "bf16", torch.float32),
        ("cpu", "avx512_bf16", torch.bfloat16),
        ("cpu", "amx_bf16", torch.bfloat16),
        ("cpu", "bf16", torch.bfloat16),
        ("cpu", "avx2", torch.float32),
    ],
)
def test_precision_is_what_the_device_computes_fastest(monkeypatch, device, capability, dtype):
    # of the device that is asked about, whatever DEVICE says
    config.DEVICE = torch.device("cuda" if device == "cpu" else "cpu")
    found = {"amx_bf16": False, capability: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", Mock(return_value=found))
    assert devices.compute_dtype(device) == dtype
    assert devices.compute_dtype(torch.device(device)) == dtype
    # unless config.py says so
    assert devices.compute_dtype(device, "float32") == torch.float32
    assert devices.compute_dtype(device, torch.float32) == torch.float32


KEEPING = """
import numpy as np
from pyimagesearch import config
from pyimagesearch.support import devices


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
