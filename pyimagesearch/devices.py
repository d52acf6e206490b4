# The devices of this machine, and the processes that train one model together. Plain `python` is
# one process that drives all GPUs of a machine, by nn.DataParallel; `torchrun` starts one process
# per device, on one machine or several, and DistributedDataParallel takes its place.

# import the necessary packages
import ctypes
import os
import platform
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from itertools import zip_longest

import joblib
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from . import config

# Python 3.12 and later warn about fork in a process with threads, which torch has always done
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def init_process_group():
    """Join the processes that torchrun started, if it did; each takes the device of its rank.

    Raises UserError if they do not run on one kind of device, and RuntimeError ("invalid device
    ordinal") if there are more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if config.DEVICE.type == "cuda" and config.DEVICE.index is not None:
            # else pinned memory would open a context on GPU 0 as well
            torch.cuda.set_device(config.DEVICE)
        return
    (backend, options) = ("gloo", {})
    if config.DEVICE.type == "cuda":
        config.DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(config.DEVICE)
        (backend, options) = ("nccl", {"device_id": config.DEVICE})
    else:
        config.DEVICE = torch.device("cpu")
        if os.environ.get("OMP_NUM_THREADS") == "1":
            # torchrun sets it where the user did not; the processes of a machine share its CPUs
            torch.set_num_threads(share_out(joblib.cpu_count()))
    # torchrun keeps its store over a restart, and in it the addresses of dead processes (torch
    # 2.15): each start uses a separate prefix. Machines may count their restarts differently
    (store, rank, worldSize) = next(distributed.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    check_backends(store, rank, worldSize)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=worldSize, **options)


def check_backends(store, rank, worldSize):
    """Raise UserError unless all processes use one kind of device: NCCL and gloo would wait for
    each other, when one machine's GPU driver is broken."""
    from .cli import UserError  # which imports this module

    store.set(f"device {rank}", f"{config.DEVICE.type} on {platform.node()}")
    kinds = {store.get(f"device {other}").decode() for other in range(worldSize)}
    if len({kind.split()[0] for kind in kinds}) > 1:
        raise UserError(f"DEVICE is {' and '.join(sorted(kinds))}; make them the same")


def destroy_process_group():
    """Leave the processes that init_process_group() joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def get_world_size():
    """Return the number of processes that train one model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def get_rank():
    """Return this process's rank; rank 0 prints and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main_process():
    """Return whether this is the process that prints and writes files."""
    return get_rank() == 0


def is_local_main_process():
    """Return whether this is the first process of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def local_main_process_first():
    """Let the first process of each machine run the body before the others do."""
    if distributed.is_initialized() and not is_local_main_process():
        distributed.barrier()
    yield
    if distributed.is_initialized() and is_local_main_process():
        distributed.barrier()


def share_out(number):
    """Return this process's part of a number that the processes of a machine share, rounded up."""
    return -(-number // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def all_reduce(*values):
    """Return the sums over all processes of numbers or 0-dimensional tensors, as floats."""
    sums = torch.stack(
        [torch.as_tensor(v, dtype=torch.float32, device=config.DEVICE) for v in values]
    )
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums.tolist()


def all_gather(value):
    """Return the values that all processes gave, in the order of their ranks."""
    values = [value] * get_world_size()
    if distributed.is_initialized():
        distributed.all_gather_object(values, value)
    return values


def gather(items):
    """Return the items of all processes, of which process r of n has items r, r + n, r + 2n..."""
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
    """Return the number of devices that share a batch: all GPUs, or one CPU per process."""
    return max(count_gpus(), get_world_size())


def describe_devices():
    """Return as text the names of all devices and the precision that they compute in."""
    if config.DEVICE.type == "cuda":
        gpus = range(count_gpus()) if config.DEVICE.index is None else [config.DEVICE]
        names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    elif config.DEVICE.type == "mps":
        names = ["Apple GPU"]
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        names = [f"CPU ({platform.machine()}, {instructions}, {torch.get_num_threads()} threads)"]
    counts = Counter(sum(all_gather(names), []))
    parts = [f"{count} x {name}" for name, count in counts.items()]
    dtypes = sorted(set(all_gather(str(compute_dtype(config.DEVICE)))))
    return f"{', '.join(parts)}, computing in {' and '.join(dtypes)}".replace("torch.", "")


def parallelize(model):
    """Spread model, which is on config.DEVICE, over all devices that share a batch.

    Returns model under nn.DataParallel where this process has more than one GPU, under
    DistributedDataParallel where torchrun started the processes, and as it is on a single device.
    """
    keep_memory()
    # with the channels last, convolutions need not reorder their input
    model = model.to(memory_format=memory_format(config.DEVICE))
    if distributed.is_initialized():
        return DistributedDataParallel(
            model,
            # sync_buffers() broadcasts them once per epoch: a forward pass that did would wait for
            # processes that have no batch left
            forward_sync_buffers=False,
            # gradients are views into the all-reduce buckets: no second copy
            gradient_as_bucket_view=True,
        )
    return nn.DataParallel(model) if count_gpus() > 1 else model


def call_glibc(name, *args):
    """Call a function of glibc that tunes its memory; do nothing on a GPU and on other systems."""
    isLinux = sys.platform == "linux" and config.DEVICE.type == "cpu"
    function = getattr(ctypes.CDLL(None), name, None) if isLinux else None
    if function:
        function(*args)


def keep_memory():
    """Keep the memory of a training step for the next one.

    By default glibc returns large blocks to the system, and each page of them faults in again: a
    fifth of a step's time.
    """
    # the numbers of malloc.h: no block gets an mmap of its own, and the heap never shrinks
    (M_MMAP_MAX, M_TRIM_THRESHOLD) = (-4, -1)
    call_glibc("mallopt", M_MMAP_MAX, 0)
    call_glibc("mallopt", M_TRIM_THRESHOLD, -1)


def release_memory():
    """Return to the system what keep_memory() kept and nothing uses."""
    call_glibc("malloc_trim", 0)


def unwrap(model):
    """Return the plain model that parallelize() was given."""
    wrappers = (nn.DataParallel, DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def sync_buffers(model):
    """Give all processes the main process's statistics of the batch normalization that trains."""
    if distributed.is_initialized():
        for module in model.modules():
            if module.training:
                for buffer in module.buffers(recurse=False):
                    distributed.broadcast(buffer, src=0)


def memory_format(device):
    """Return the memory format in which device runs convolutions fastest."""
    return torch.channels_last if device.type in ("cpu", "cuda") else torch.preserve_format


def compute_dtype(device):
    """Return the dtype of the heavy layers on device: fp16 on CUDA, as in the tutorial, bf16 on
    a CPU with instructions for it, else fp32."""
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return torch.bfloat16
    return torch.float32


def autocast(device):
    """Return a context in which the heavy layers on device compute in compute_dtype(device)."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
