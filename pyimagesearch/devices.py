# How a run is spread over devices, and with what precision they compute. The scripts call these
# functions and do not look further: plain `python` drives all GPUs of a machine by nn.DataParallel
# from one process, `torchrun` by DistributedDataParallel with one process per device, on one
# machine or several.

# import the necessary packages
import os
import platform
import signal
import sys
import warnings
from collections import Counter
from contextlib import contextmanager

import joblib
import torch
from torch import distributed, nn
from torch.utils.data import BatchSampler, DataLoader

from . import config

# Python 3.12 and later warn of what starting workers by fork means, which torch has always done
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def start():
    """Join the processes that torchrun started, if it did; each takes the device of its number."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if torch.cuda.is_available() and torch.device(config.DEVICE).type == "cuda":
        config.DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if config.DEVICE.index >= torch.cuda.device_count():
            sys.exit("[ERROR] more processes than GPUs: start them with --nproc-per-node=gpu")
        torch.cuda.set_device(config.DEVICE)
        join_processes("nccl", device_id=config.DEVICE)
    else:
        config.DEVICE = torch.device("cpu")
        if os.environ.get("OMP_NUM_THREADS") == "1":
            # what torchrun sets unless told otherwise; the processes share all CPUs
            torch.set_num_threads(share_out(joblib.cpu_count()))
        join_processes("gloo")


def join_processes(backend, **options):
    """Join the process group over the store that torchrun offers.

    torchrun keeps that store when it starts processes again, and the addresses of the dead ones
    with it (torch 2.15): on one machine each start gets a part of the store of its own. On several,
    the count of starts may differ, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 does it.
    """
    (store, rank, size) = next(distributed.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, **options)


def stop():
    """Leave the processes that start() joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def share_out(number):
    """Return this process's part of a number of CPUs, which the processes of a machine share."""
    return -(-number // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def count_processes():
    """Return the number of processes that train one model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def get_rank():
    """Return the number of this process among them; 0 is the one that prints and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count_gpus():
    """Return the number of GPUs in use: 0 on a CPU, else those that config.DEVICE names."""
    if config.DEVICE.type == "cpu":
        return 0
    if config.DEVICE.type == "cuda" and config.DEVICE.index is None:
        return torch.cuda.device_count()
    return count_processes()


def count_devices():
    """Return the number of devices that share a batch: all GPUs, or one CPU per process."""
    return max(count_gpus(), count_processes())


def describe_devices():
    """Return the names of all devices and the precision that they compute in, to be read.

    All processes have to call it together.
    """
    if config.DEVICE.type == "cuda":
        gpus = range(count_gpus()) if config.DEVICE.index is None else [config.DEVICE]
        names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    elif config.DEVICE.type == "mps":
        names = ["Apple GPU"]
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        names = [f"CPU ({platform.machine()}, {instructions}, {torch.get_num_threads()} threads)"]
    if distributed.is_initialized():
        lists = [None] * count_processes()
        distributed.all_gather_object(lists, names)
        names = sum(lists, [])
    parts = [f"{count} x {name}" for name, count in Counter(names).items()]
    return f"{', '.join(parts)}, computing in {compute_dtype(config.DEVICE)}".replace("torch.", "")


def wrap_model(model):
    """Put model on config.DEVICE, and spread it over the devices if there is more than one."""
    # with the channels last, convolutions need not reorder their input
    model = model.to(config.DEVICE, memory_format=torch.channels_last)
    if distributed.is_initialized():
        return nn.parallel.DistributedDataParallel(model)
    return nn.DataParallel(model) if count_gpus() > 1 else model


def unwrap_model(model):
    """Return the plain model that wrap_model was given."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


class SharedBatchSampler(BatchSampler):
    """Of each batch that one process alone would take, the share of this process.

    The shares of a batch are disjoint and together the whole batch, whatever its size. A process
    for which nothing is left takes the first image too, so that all take the same number of
    steps; get_batches() has it count for nothing.
    """

    def __iter__(self):
        for batch in super().__iter__():
            yield batch[get_rank() :: count_processes()] or batch[:1]


def make_shared_loader(ds, sampler, bs, **options):
    """Return a DataLoader over ds in batches of bs images, of which each process takes its share.

    options: further arguments of DataLoader.
    """
    if sys.platform == "linux" and options["num_workers"] > 0:
        # the default until Python 3.14; needs no main guard in the script, and starts at once
        options["multiprocessing_context"] = "fork"
    if count_processes() == 1:
        return DataLoader(ds, batch_size=bs, sampler=sampler, **options)
    batchSampler = SharedBatchSampler(sampler, bs, drop_last=False)
    return DataLoader(ds, batch_sampler=batchSampler, **options)


def smallest_share(size):
    """Return the number of images on the device that gets fewest of a batch of so many."""
    if count_processes() > 1:
        return max(size // count_processes(), 1)
    # nn.DataParallel cuts the batch into pieces of this size, and the last takes the rest
    piece = -(-size // count_devices())
    return size % piece or piece


def get_batches(loader):
    """Yield (x, y, count, weight) for each batch of loader, x and y on config.DEVICE.

    The first count images of x are this process's share of the batch; over all processes these
    make up the batch, each image once. DistributedDataParallel averages gradients over processes:
    a mean loss multiplied by weight is then the mean over the whole batch. With one process, count
    is len(x) and weight 1.
    """
    size = loader.batch_sampler.batch_size
    with defer_interrupt() as raise_interrupt:
        for step, (x, y) in enumerate(loader):
            total = min(size, len(loader.dataset) - step * size)
            count = len(range(get_rank(), total, count_processes()))
            x = x.to(config.DEVICE, non_blocking=True, memory_format=torch.channels_last)
            y = y.to(config.DEVICE, non_blocking=True)
            yield x, y, count, count * count_processes() / total
            raise_interrupt()


@contextmanager
def defer_interrupt():
    """Hold a Ctrl-C back until the yielded function is called, or the context ends.

    While worker processes start and stop, Python loses the exception, and the workers die of it. A
    run that ignores Ctrl-C, as one in the background of a script does, goes on ignoring it.
    """
    pressed = []

    def raise_interrupt():
        if pressed:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *args: pressed.append(True))
    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, before)
        raise_interrupt()


def add_up(*values):
    """Return the sums over all processes of numbers or 0-dimensional tensors, as floats."""
    sums = torch.stack(
        [torch.as_tensor(v, dtype=torch.float32, device=config.DEVICE) for v in values]
    )
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums.tolist()


def collect(preds, loader):
    """Return the predictions for all images of an unshuffled loader, in the order of its dataset.

    preds: int64 (n,), the predictions of this process's share of each batch, one after the other.
    """
    if not distributed.is_initialized():
        return preds.cpu()
    (size, total) = (loader.batch_sampler.batch_size, len(loader.dataset))
    indices = [
        index
        for start in range(0, total, size)
        for index in range(start, min(start + size, total))[get_rank() :: count_processes()]
    ]
    everything = torch.zeros(total, dtype=torch.int64, device=config.DEVICE)
    everything[indices] = preds
    distributed.all_reduce(everything)
    return everything.cpu()


def take_from_first(function):
    """Return in all processes what function returns in the first one; it is called there alone."""
    box = [function() if get_rank() == 0 else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, device=config.DEVICE)
    return box[0]


def first_per_machine(function):
    """Call function in all processes, on each machine in one of them before the others."""
    if not distributed.is_initialized():
        return function()
    first = int(os.environ["LOCAL_RANK"]) == 0
    result = function() if first else None
    distributed.barrier()
    return result if first else function()


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
