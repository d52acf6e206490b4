"""The processes that torchrun starts: how they join, what they check and gather together."""

import os
import pickle
import platform
import sys
import time
from unittest.mock import Mock, call

import joblib
import pytest
import torch
from torch import distributed

from pyimagesearch import config
from pyimagesearch.support import processes
from pyimagesearch.support.errors import UserError


@pytest.fixture
def joined(monkeypatch):
    """Have the test be the second process on the second machine of six CPUs, the fourth of all;
    return the Mock that notes what join_processes() does."""
    env = {"RANK": 3, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**env, "TORCHELASTIC_RUN_ID": "a", "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    done = Mock()
    monkeypatch.setattr(torch.cuda, "set_device", done.set_device)
    monkeypatch.setattr(torch, "set_num_threads", done.set_num_threads)
    monkeypatch.setattr(distributed, "init_process_group", done.init_process_group)
    # a build for CPUs has none
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(os, "register_at_fork", lambda before: None)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    return done


def test_a_fork_waits_until_the_threads_of_the_process_group_are_done(joined, monkeypatch):
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda before: hooks.append(before))
    config.DEVICE = torch.device("cpu")
    processes.join_processes()
    (hook,) = hooks
    start = time.monotonic()
    hook()
    # time.sleep() lets other threads go on
    assert time.monotonic() - start >= 0.01


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
def test_a_process_takes_its_own_gpu_or_cpus(joined, monkeypatch, device, threads, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    config.DEVICE = torch.device(device)
    processes.join_processes()
    assert joined.mock_calls == expected


def test_without_nccl_gloo_serves_gpus(joined, monkeypatch):
    # on Windows
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: False)
    config.DEVICE = torch.device("cuda")
    processes.join_processes()
    assert joined.mock_calls == [call.set_device(1), call.init_process_group("gloo")]


def test_a_process_without_torchrun_takes_the_first_gpu_and_the_users_threads(joined, monkeypatch):
    # as in a pod of Kubeflow's
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    config.DEVICE = torch.device("cuda")
    processes.join_processes()
    assert joined.mock_calls == [call.set_device(0), call.init_process_group("nccl")]
    joined.reset_mock()
    config.DEVICE = torch.device("cpu")
    processes.join_processes()
    assert joined.mock_calls == [call.init_process_group("gloo")]
    assert processes.get_local_world_size() == 1


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    ],
)
def test_a_process_that_lacks_a_variable_never_trains_alone(monkeypatch, env):
    config.DEVICE = torch.device("cpu")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    # PyTorch's own words
    with pytest.raises(ValueError, match="expected, but not set"):
        processes.join_processes()


@pytest.mark.parametrize("own", ["cuda:1", "cuda"])
def test_one_gpu_for_all_processes_is_refused_by_all_once_they_have_joined(
    joined, monkeypatch, own
):
    config.DEVICE = torch.device(own)

    def gather(value):
        joined.all_gather(value)
        # the first machine has the device with an index
        return ["cuda:1", "cuda:1", "cuda", value]

    monkeypatch.setattr(processes, "all_gather", gather)
    with pytest.raises(UserError, match='cuda:1, .*DEVICE = "cuda".*CUDA_VISIBLE_DEVICES'):
        processes.join_processes()
    # so that rank 0 alone prints the line, and no process waits for one that has ended
    calls = [call.init_process_group("nccl"), call.all_gather(own)]
    assert joined.mock_calls[-2:] == calls


def test_one_gpu_is_a_device_without_torchrun():
    config.DEVICE = torch.device("cuda:1")
    processes.join_processes()
    assert not distributed.is_initialized()


def test_rank_0_alone_prints(joined, monkeypatch, capsys):
    config.DEVICE = torch.device("cpu")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "get_rank", lambda rank=rank: rank)
        processes.join_processes()
        print(f"rank {rank}")
    sys.stdout.close()
    assert capsys.readouterr().out == "rank 0\n"


@pytest.mark.parametrize(
    "env",
    [
        # srun -n 2 python
        {"SLURM_NTASKS": 2, "SLURM_STEP_NUM_TASKS": 2, "SLURM_PROCID": 1},
        # mpirun -n 2 python: Open MPI
        {"OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 0, "PMIX_RANK": 0},
        # MPICH, Intel MPI, Cray's
        {"PMI_SIZE": 2, "PMI_RANK": 1},
        # MVAPICH2
        {"MV2_COMM_WORLD_SIZE": 2, "MV2_COMM_WORLD_RANK": 1},
        # jsrun of LSF
        {"LSB_JOBID": 1, "JSM_NAMESPACE_SIZE": 2, "JSM_NAMESPACE_RANK": 1},
    ],
)
def test_tasks_that_would_each_train_alone_are_refused(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="2 tasks .*torchrun"):
        processes.join_processes()


@pytest.mark.parametrize(
    "env",
    [
        # sbatch --ntasks=8, and one plain python in it
        {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 8, "SLURM_NPROCS": 8, "SLURM_PROCID": 0},
        # salloc -n 4 python, whose shell may be a step of one task
        {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 4, "SLURM_NPROCS": 4},
        {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 4, "SLURM_STEP_NUM_TASKS": 1},
        # srun -n 1 python
        {"SLURM_NTASKS": 1, "SLURM_STEP_NUM_TASKS": 1, "SLURM_PROCID": 0},
        # each task of an array is a job of its own
        {"SLURM_NTASKS": 1, "SLURM_ARRAY_TASK_COUNT": 4, "SLURM_ARRAY_TASK_ID": 2},
        # mpirun -n 1 python
        {"OMPI_COMM_WORLD_SIZE": 1, "PMI_SIZE": 1, "MV2_COMM_WORLD_SIZE": 1},
        # the scripts of PBS, LSF and Grid Engine, where CPUs are allotted
        {"PBS_JOBID": 1, "PBS_NP": 8, "PBS_TASKNUM": 1, "NCPUS": 8},
        {"LSB_JOBID": 1, "LSB_DJOB_NUMPROC": 8, "LSB_MAX_NUM_PROCESSORS": 8},
        {"JOB_ID": 1, "NSLOTS": 8},
    ],
)
def test_one_task_trains_in_whatever_is_allotted(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    assert processes.join_processes() == 1


@pytest.mark.parametrize("name", ["WORLD_SIZE", *processes.NUM_TASKS])
def test_a_script_of_which_one_process_does_all_is_refused_as_several(monkeypatch, name):
    processes.refuse_several()
    monkeypatch.setenv(name, "1")
    processes.refuse_several()
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match="4 processes.* once, with python"):
        processes.refuse_several()


@pytest.mark.parametrize("name", processes.NUM_TASKS)
def test_tasks_in_which_torchrun_runs_are_not_refused(joined, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    config.DEVICE = torch.device("cpu")
    processes.join_processes()
    joined.init_process_group.assert_called_once()


class Group:
    """Processes of which one after the other calls a function; they exchange what was pickled."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.sent = None
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
        monkeypatch.setattr(distributed, "broadcast_object_list", self.broadcast)

    def broadcast(self, box):
        if distributed.get_rank() == 0:
            self.sent = pickle.dumps(box)
        box[:] = pickle.loads(self.sent)

    def call(self, function):
        """Call function in each process; return the answers and what was raised."""
        answers = []
        for rank in range(3):
            self.monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
            try:
                answers.append(function())
            except UserError as error:
                answers.append(error)
        return answers


def test_what_rank_0_answers_all_have(monkeypatch):
    function = Mock(return_value={"a": [1]})
    answers = Group(monkeypatch).call(lambda: processes.call_in_rank_0(function, 5))
    assert answers == [{"a": [1]}] * 3
    function.assert_called_once_with(5)


def test_what_rank_0_raises_all_raise(monkeypatch):
    function = Mock(side_effect=UserError("no data"))
    answers = Group(monkeypatch).call(lambda: processes.call_in_rank_0(function))
    function.assert_called_once_with()
    for error in answers:
        assert isinstance(error, UserError)
        assert str(error) == "no data"


def test_an_error_that_is_no_users_ends_rank_0_with_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        Group(monkeypatch).call(lambda: processes.call_in_rank_0(lambda: 1 / 0))


def test_one_process_calls_and_gathers_by_itself():
    assert processes.call_in_rank_0(lambda: 5) == 5
    with pytest.raises(UserError, match="no data"):
        processes.call_in_rank_0(Mock(side_effect=UserError("no data")))
    assert processes.all_gather("a") == ["a"]
    processes.check_same("dataset", [("a.jpg", 1)])


def gather_from(monkeypatch, hosts):
    """Have check_same() gather what it sends from hosts with these lists: {host: items}."""
    sent = []
    monkeypatch.setattr(processes, "all_gather", lambda value: sent.append(value) or [value])
    for host, items in hosts.items():
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        processes.check_same("dataset/training", items)
    # a host twice, as it may have several processes
    monkeypatch.setattr(processes, "all_gather", lambda value: sent + sent)


def test_the_same_images_on_all_machines_are_not_spoken_of(monkeypatch):
    gather_from(monkeypatch, {"first": [("a.jpg", 1)], "second": [("a.jpg", 1)]})
    processes.check_same("dataset/training", [("a.jpg", 1)])


@pytest.mark.parametrize("others", [[("b.jpg", 1)], [("a.jpg", 2)], [("a.jpg", 1), ("b.jpg", 1)]])
def test_other_images_on_a_machine_are_an_error_of_all_that_names_the_machines(monkeypatch, others):
    hosts = {"first": [("a.jpg", 1)], "second": others, "third": [("a.jpg", 1)]}
    gather_from(monkeypatch, hosts)
    texts = set()
    for items in hosts.values():
        with pytest.raises(UserError, match="^dataset/training holds ") as caught:
            processes.check_same("dataset/training", items)
        texts.add(str(caught.value))
    (text,) = texts
    assert "1 images (" in text
    assert f"{len(others)} images (" in text
    assert " on first, third and " in text
    assert " on second; " in text


def test_a_digest_takes_any_name_of_a_file():
    assert processes.digest_items([(os.fsdecode(b"\xff.jpg"), 1)])
