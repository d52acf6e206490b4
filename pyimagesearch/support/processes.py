"""The processes that torchrun starts, or a platform such as Kubeflow, which train one model
together."""

import hashlib
import math
import os
import platform
import sys
import time
from collections import defaultdict

import joblib
import torch
from torch import distributed

from pyimagesearch import config

from .errors import UserError

# a process that has any of these is one of several: torchrun sets all, Kubeflow and Azure ML those
# of PyTorch's env://
GROUP = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR")

# what is set in each of several tasks of one step by srun, by Intel MPI, MPICH and Cray's, by Open
# MPI, by MVAPICH2 and by LSF's jsrun. The shell of a batch script or of salloc, in which tasks are
# only allotted, has none of them
NUM_TASKS = (
    "SLURM_STEP_NUM_TASKS",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
)


def is_in_group():
    """Return whether this process was started as one of several that train one model."""
    return any(name in os.environ for name in GROUP)


def join_processes():
    """Join the other processes, if this is one of several, each with a device of its own; return
    how many they are. Rank 0 alone prints. Raises UserError where each would train alone, and
    PyTorch's ValueError where a variable of env:// is missing."""
    if not is_in_group():
        refuse_lone_tasks()
        return 1
    device = torch.device(config.DEVICE)
    if device.type == "cuda":
        # without torchrun a process usually has a machine, or a container, to itself
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    elif distributed.is_torchelastic_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun sets it where the user did not; the processes of a machine share its CPUs
        torch.set_num_threads(math.ceil(joblib.cpu_count() / get_local_world_size()))
    # gloo serves GPUs too, slower, where NCCL is missing, as on Windows
    isNccl = device.type == "cuda" and distributed.is_nccl_available()
    distributed.init_process_group("nccl" if isNccl else "gloo")
    if hasattr(os, "register_at_fork"):
        # a worker that is forked while a thread of gloo or NCCL hands back a result can wait for
        # ever for a lock of Python's: seen with Python 3.11, about once in 5,000 forks
        os.register_at_fork(before=lambda: time.sleep(0.01))
    # wait until all have joined: one that ended before would break the start of the others
    for name in all_gather(str(device)):
        if torch.device(name).index is not None:
            text = f"DEVICE is {name}, but each of several processes has a GPU of its own"
            advice = 'set DEVICE = "cuda" in config.py, and choose GPUs with CUDA_VISIBLE_DEVICES'
            raise UserError(f"{text}; {advice}")
    if get_rank() > 0:
        sys.stdout = open(os.devnull, "w", errors="replace")
    return get_world_size()


def count_tasks():
    """Return as how many tasks a batch system or MPI started this script."""
    return max(int(os.environ.get(name, 1)) for name in NUM_TASKS)


def refuse_lone_tasks():
    """Raise UserError if a batch system or MPI started several tasks, but not with torchrun."""
    count = count_tasks()
    if count > 1:
        alone = f"started as {count} tasks without torchrun, each of which would train alone"
        raise UserError(f"{alone}; start one task per machine, and in it torchrun")


def refuse_several():
    """Raise UserError if this script was started as several processes, each of which would do the
    same."""
    count = max(int(os.environ.get("WORLD_SIZE", 1)), count_tasks())
    if count > 1:
        text = f"started as {count} processes, each of which would do the same"
        raise UserError(f"{text}; start it once, with python: it uses all GPUs")


def get_world_size():
    """Return the number of processes that train one model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def get_rank():
    """Return this process's rank; rank 0 prints and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def get_local_world_size():
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def all_gather(value):
    """Return the values that all processes gave, in the order of their ranks."""
    values = [value] * get_world_size()
    if distributed.is_initialized():
        distributed.all_gather_object(values, value)
    return values


def call_in_rank_0(function, *args):
    """Call function in rank 0 alone; all processes return its answer or raise its UserError."""
    answer = None
    error = None
    if get_rank() == 0:
        try:
            answer = function(*args)
        except UserError as caught:
            error = caught
    if distributed.is_initialized():
        box = [answer, error]
        distributed.broadcast_object_list(box)
        (answer, error) = box
    if error is not None:
        raise error
    return answer


def digest_items(items):
    """Return a short digest of a list of plain values."""
    return hashlib.sha256(repr(items).encode(errors="surrogateescape")).hexdigest()[:16]


def check_same(name, items):
    """Raise UserError in all processes unless all of them have the same list of items in the folder
    so named."""
    hosts = defaultdict(set)
    own = (platform.node(), len(items), digest_items(items))
    for host, count, digest in all_gather(own):
        hosts[f"{count} images ({digest})"].add(host)
    if len(hosts) > 1:
        places = []
        for images, names in hosts.items():
            places.append(f"{images} on {', '.join(sorted(names))}")
        advice = "copy the same images to all machines"
        raise UserError(f"{name} holds {' and '.join(places)}; {advice}")
