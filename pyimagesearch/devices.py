# The devices of this machine, and the processes that train one model together.

import atexit
import ctypes
import math
import os
import platform
import sys
import time
import warnings
from contextlib import suppress
from itertools import zip_longest

import joblib
import torch
from torch import distributed

from . import config
from .cli import UserError, compare

# Python 3.12 and later warn about fork in a process with threads, which torch has always done
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

# how DistributedDataParallel wraps the model
DDP_OPTIONS = {
    # sync_buffers() does it once per epoch: syncing in forward would hang on uneven batches
    "forward_sync_buffers": False,
    # all gradients of a bucket are copied there at once, and the optimizer reads them there
    "batched_grad_copy": True,
    "gradient_as_bucket_view": True,
}


def join_processes():
    """Take this process's device; under torchrun join the other processes, of which the main one
    alone prints. Raises UserError in all of them if DEVICE is wrong in one, or differs."""
    isTorchrun = "TORCHELASTIC_RUN_ID" in os.environ
    (store, rank, worldSize) = (distributed.HashStore(), 0, 1)
    if isTorchrun:
        (store, rank, worldSize) = next(distributed.rendezvous("env://"))
        # torchrun's store, with the addresses of dead processes, outlives a restart
        store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    # before they join: NCCL and gloo would wait for each other
    compare_devices(store, rank, worldSize)
    if isTorchrun and config.DEVICE.type == "cuda":
        if rank == 0 and config.DEVICE.index is not None:
            print(f"[INFO] {config.DEVICE} ignored: each process takes the GPU of its rank...")
        config.DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if config.DEVICE.type == "cuda" and config.DEVICE.index is not None:
        # else pinned memory would open a context on GPU 0 as well
        torch.cuda.set_device(config.DEVICE)
    if not isTorchrun:
        return
    (backend, options) = ("nccl", {"device_id": config.DEVICE})
    if config.DEVICE.type != "cuda":
        (config.DEVICE, backend, options) = (torch.device("cpu"), "gloo", {})
        if os.environ.get("OMP_NUM_THREADS") == "1":
            # torchrun sets it where the user did not; the processes of a machine share its CPUs
            torch.set_num_threads(share_out(joblib.cpu_count()))
    distributed.init_process_group(backend, store=store, rank=rank, world_size=worldSize, **options)
    # not after an error, as a process that is lost would not answer
    atexit.register(distributed.destroy_process_group)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")


def compare_devices(store, rank, worldSize):
    """Convert config.DEVICE to a torch.device; raise UserError in all processes unless each of them
    has this device, and all have one kind."""
    with suppress(RuntimeError, TypeError):
        config.DEVICE = torch.device(config.DEVICE)
    device = config.DEVICE
    kind = device.type if isinstance(device, torch.device) else None
    # counted, not tried: that would open a context on the GPU, which takes time and memory
    counts = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}
    counts["cuda"] = torch.cuda.device_count()
    # under torchrun each process takes the GPU of its rank
    needed = int(os.environ.get("LOCAL_RANK", 0)) if kind == "cuda" else 0
    isThere = max(needed, (kind and device.index) or 0) < counts.get(kind, 0)
    store.set(str(rank), f"{kind if isThere else 'wrong'} on {platform.node()}")
    names = [str(other) for other in range(worldSize)]
    # not store.get(), which no signal can end
    deadline = time.monotonic() + 300
    while not store.check(names):
        if time.monotonic() > deadline:
            raise UserError("another process did not start; see its messages and --master-addr")
        time.sleep(0.02)
    found = {store.get(name).decode() for name in names}
    if not isThere:
        noun = "a device that this machine has, under torchrun one for each process"
        raise UserError(f"DEVICE in config.py must be {noun}, not {str(device)!r}")
    if len({text.split()[0] for text in found}) > 1:
        raise UserError(f"DEVICE is {' and '.join(sorted(found))}; they must match")


def get_world_size():
    """Return the number of processes that train one model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def get_rank():
    """Return this process's rank; rank 0 prints and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share_out(number):
    """Return this process's part of a number that the processes of a machine share, rounded up."""
    return -(-number // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def mean_over_images(totalLoss, correct, loader):
    """Return mean loss and accuracy over the images of all processes, from sums over this process's
    images; raise UserError in all of them if the loss is not a number."""
    # float32 counts exactly up to 16.7 million only; MPS has nothing larger
    dtype = torch.float32 if config.DEVICE.type == "mps" else torch.float64
    numbers = [float(totalLoss), float(correct), len(loader.sampler)]
    sums = torch.tensor(numbers, dtype=dtype, device=config.DEVICE)
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    (totalLoss, correct, total) = sums.tolist()
    if not math.isfinite(totalLoss):
        raise UserError("training diverged: the loss is not a number; restart with a lower --lr")
    return totalLoss / total, correct / total


def all_gather(value):
    """Return the values that all processes gave, in the order of their ranks."""
    values = [value] * get_world_size()
    if distributed.is_initialized():
        distributed.all_gather_object(values, value)
    return values


def compare_processes(record):
    """Raise UserError in all processes unless all of them have the same record."""
    pairs = all_gather((platform.node(), record))
    records = {}
    for rank, (host, other) in enumerate(pairs):
        # processes of one machine differ when it plays several
        isUnique = all(other == another for name, another in pairs if name == host)
        records[f"on {host}" if isUnique else f"on {host} (rank {rank})"] = other
    compare(records, "they must match")


def gather(items):
    """Return the items of all processes, interleaved back into the order of the dataset."""
    rows = zip_longest(*all_gather(items))
    # the last row is short where the items do not divide evenly
    return [item for row in rows for item in row if item is not None]


def broadcast(value):
    """Return in all processes the value that the main process gave."""
    box = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, device=config.DEVICE)
    return box[0]


def count_gpus():
    """Return the number of GPUs in use: 0 on a CPU, else those that config.DEVICE names."""
    if config.DEVICE.type == "cpu":
        return 0
    if config.DEVICE.type == "cuda" and config.DEVICE.index is None:
        return torch.cuda.device_count()
    return get_world_size()


def count_devices():
    """Return the number of devices that share a batch: GPUs, or the CPU of each process."""
    return max(count_gpus(), get_world_size())


def describe_devices():
    """Return as text the devices that share a batch, and the precision that they compute in."""
    dtype = str(compute_dtype()).removeprefix("torch.")
    threads = f" ({torch.get_num_threads()} threads)" if config.DEVICE.type == "cpu" else ""
    return f"{count_devices()} x {config.DEVICE.type}{threads}, computing in {dtype}"


def keep_memory():
    """Keep the memory of a training step for the next one, on a CPU under Linux: glibc returns
    large blocks to the system, and each page of them faults in again, for a fifth of the time."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" and config.DEVICE.type == "cpu" else None
    # other C libraries have no such function
    if hasattr(libc, "mallopt"):
        # the numbers of malloc.h: no block gets a separate mmap, and the heap never shrinks
        (M_MMAP_MAX, M_TRIM_THRESHOLD) = (-4, -1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        # forked workers would keep what is unused, and the script would write to copies
        os.register_at_fork(before=lambda: libc.malloc_trim(0))


def sync_buffers(model):
    """Give all processes the main process's statistics of the batch normalization that trains."""
    if distributed.is_initialized():
        for module in model.modules():
            if module.training:
                for buffer in module.buffers(recurse=False):
                    distributed.broadcast(buffer, src=0)


def compute_dtype():
    """Return the dtype of the heavy layers on config.DEVICE: fp16 on CUDA, as in the tutorial, bf16
    on a CPU with instructions for it, else fp32."""
    kind = torch.device(config.DEVICE).type
    if kind == "cuda":
        return torch.float16
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return torch.bfloat16
    return torch.float32
