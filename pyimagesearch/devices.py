"""The devices of this machine, their precision, and the processes that train one model together."""

import ctypes
import math
import os
import sys
import warnings
from itertools import zip_longest

import joblib
import torch
from torch import distributed

from . import config

# Python 3.12 and later warn about fork in a process with threads, which torch has always done
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def join_processes():
    """Take this process's device; under torchrun join the others, of which rank 0 alone prints."""
    device = torch.device(config.DEVICE)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        elif os.environ.get("OMP_NUM_THREADS") == "1":
            # torchrun sets it where the user did not; the processes of a machine share its CPUs
            torch.set_num_threads(divide_by_processes(joblib.cpu_count()))
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # none ends, say for a wrong flag, before all have joined
        all_gather(None)
        if get_rank() > 0:
            sys.stdout = open(os.devnull, "w", errors="replace")


def get_world_size():
    """Return the number of processes that train one model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def get_rank():
    """Return this process's rank; rank 0 prints and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def divide_by_processes(number):
    """Return a number divided by the processes of this machine, rounded up."""
    return math.ceil(number / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def count_gpus():
    """Return the number of GPUs that config.DEVICE names, under torchrun one per process."""
    device = torch.device(config.DEVICE)
    if device.type == "cpu":
        return 0
    if device.type == "cuda" and device.index is None and not distributed.is_initialized():
        return torch.cuda.device_count()
    return get_world_size()


def count_devices():
    """Return the number of devices that share a batch: GPUs, or the CPU of each process."""
    return max(count_gpus(), get_world_size())


def compute_dtype():
    """Return the dtype of the heavy layers: fp16 on CUDA, bf16 on a CPU that has it, else fp32."""
    kind = torch.device(config.DEVICE).type
    capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
    if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return torch.bfloat16
    return torch.float16 if kind == "cuda" else torch.float32


def mean_over_images(totalLoss, correct, loader):
    """Return mean loss and accuracy over the images of all processes; give this process's sums."""
    sums = all_gather((float(totalLoss), float(correct), len(loader.sampler)))
    (totalLoss, correct, total) = map(sum, zip(*sums, strict=True))
    return totalLoss / total, correct / total


def all_gather(value):
    """Return the values that all processes gave, in the order of their ranks."""
    values = [value] * get_world_size()
    if distributed.is_initialized():
        distributed.all_gather_object(values, value)
    return values


def interleave(items):
    """Return in image order the items of all processes; each had every n-th, some have one more."""
    rows = zip_longest(*all_gather(items))
    return [item for row in rows for item in row if item is not None]


def broadcast(value):
    """Return in all processes the value that rank 0 gave."""
    box = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box)
    return box[0]


def sync_buffers(model):
    """Give all processes rank 0's statistics of the batch normalization that trains."""
    if distributed.is_initialized():
        for module in model.modules():
            if module.training:
                for buffer in module.buffers(recurse=False):
                    distributed.broadcast(buffer, src=0)


def keep_memory():
    """Keep a step's memory for the next, on a CPU: faulting it in again takes 20 % of the time."""
    if sys.platform == "linux" and torch.device(config.DEVICE).type == "cpu":
        libc = ctypes.CDLL("libc.so.6")
        # the numbers of malloc.h: no block gets a separate mmap, and the heap never shrinks
        (M_MMAP_MAX, M_TRIM_THRESHOLD) = (-4, -1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        # forked workers would keep what is unused, and the script would write to copies
        os.register_at_fork(before=lambda: libc.malloc_trim(0))
