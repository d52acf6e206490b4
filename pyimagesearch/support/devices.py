"""The devices that train, and how they compute."""

import ctypes
import os
import sys

import torch
from torch import distributed

from pyimagesearch import config

from . import processes


def count_gpus():
    """Return the number of GPUs that DEVICE names, under torchrun one per process."""
    device = torch.device(config.DEVICE)
    if device.type == "cpu":
        return 0
    if distributed.is_initialized():
        return processes.get_world_size()
    if device.type == "cuda" and device.index is None:
        return torch.cuda.device_count()
    return 1


def count_devices():
    """Return the number of devices that share a batch: GPUs, or the CPU of each process."""
    return max(count_gpus(), processes.get_world_size())


def compute_dtype(device, precision="auto"):
    """Return the dtype of the heavy layers on a device, a torch.device or its name.

    precision: of PRECISION in config.py, or a dtype. "auto" is fp16 on CUDA, bf16 on a CPU that has
    it, else fp32.
    """
    if isinstance(precision, torch.dtype):
        return precision
    if precision != "auto":
        return getattr(torch, precision)
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        for name in ("avx512_bf16", "amx_bf16", "bf16"):
            if capabilities.get(name):
                return torch.bfloat16
    return torch.float32


def keep_memory():
    """Keep a step's memory for the next, on a CPU: faulting it in again takes 10 % of the time, in
    training and for batches of photographs."""
    if sys.platform == "linux" and torch.device(config.DEVICE).type == "cpu":
        libc = ctypes.CDLL("libc.so.6")
        # the numbers of malloc.h: no block gets a separate mmap, and the heap never shrinks
        M_MMAP_MAX = -4
        M_TRIM_THRESHOLD = -1
        M_ARENA_MAX = -8
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        # one heap for all replicas' threads, as each would keep what it once used
        libc.mallopt(M_ARENA_MAX, 1)
        # forked workers would keep what is unused, and the script would write to copies
        os.register_at_fork(before=lambda: libc.malloc_trim(0))
