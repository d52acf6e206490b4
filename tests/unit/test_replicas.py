"""Replicas on the cores of a CPU: the same answers and gradients as the network itself."""

import copy
import threading

import pytest
import torch
from helpers import TinyNet
from torch import nn
from torch.nn.functional import cross_entropy

from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm
from pyimagesearch.support import devices
from pyimagesearch.support.replicas import CoreParallel, DataParallel

get_num_threads = torch.get_num_threads


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Have three replicas of a thread each, and compute in fp32, where sums differ least.

    The tests' own process keeps to one thread: OpenMP's would be missing in the processes that
    other tests fork from it, which then wait for them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(devices, "compute_dtype", lambda *_: torch.float32)


def build_model(isFrozen=True):
    """Return a small classifier with statistics of its own."""
    baseModel = TinyNet()
    nn.init.uniform_(baseModel.norm.running_mean)
    if isFrozen:
        freeze_batch_norm(baseModel)
    return FoodClassifier(baseModel, 4)


def make_batch(size):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, 12, 12, generator=generator), torch.arange(size) % 4


def train_step(model, opt, size=7):
    """Take a step; return the loss."""
    (x, y) = make_batch(size)
    loss = cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    opt.zero_grad()
    return loss.detach()


def test_there_is_a_replica_for_each_thread_and_the_parameters_are_the_modules_alone(monkeypatch):
    model = build_model()
    parallel = CoreParallel(model)
    assert len(parallel.replicas) == 3
    assert [id(p) for p in parallel.parameters()] == [id(p) for p in model.parameters()]
    assert list(parallel.state_dict()) == [f"module.{name}" for name in model.state_dict()]
    # many cores share the threads of few replicas
    monkeypatch.setattr(torch, "get_num_threads", lambda: 20)
    many = CoreParallel(model)
    assert len(many.replicas) == 8
    x = torch.zeros(1, 3, 12, 12)
    assert many.eval()(x).shape == (1, 4)


# even, uneven, fewer than replicas, one
@pytest.mark.parametrize("size", [6, 7, 2, 1])
def test_outputs_and_gradients_are_those_of_the_module(size):
    model = build_model().train()
    twin = copy.deepcopy(model)
    parallel = CoreParallel(twin).train()
    (x, y) = make_batch(size)
    logits = []
    for network in (model, parallel):
        logits.append(network(x))
        cross_entropy(logits[-1], y).backward()
    torch.testing.assert_close(logits[1], logits[0])
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        if param.requires_grad:
            torch.testing.assert_close(other.grad, param.grad)
        else:
            assert other.grad is None
    # evaluation too, of which autograd keeps nothing
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            answer = parallel.eval()(x)
            torch.testing.assert_close(answer, model.eval()(x))
        assert not answer.requires_grad


def test_the_parts_are_computed_in_threads_that_stay():
    parallel = CoreParallel(build_model()).eval()
    seen = []
    barrier = threading.Barrier(3, timeout=20)

    def note(*_):
        # waits for the others, which are therefore at work at the same time
        barrier.wait()
        seen.append((threading.get_ident(), get_num_threads()))

    parallel.module.baseModel.register_forward_hook(note)
    for _ in range(2):
        with torch.inference_mode():
            parallel(make_batch(6)[0])
    assert len(seen) == 6
    assert len(set(seen)) == 3
    assert {numThreads for _, numThreads in seen} == {1}


def test_training_repeats_bit_for_bit_and_is_that_of_the_module():
    found = []
    for wrap in (CoreParallel, CoreParallel, lambda model: model):
        torch.manual_seed(0)
        model = build_model()
        opt = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        network = wrap(model).train()
        losses = torch.stack([train_step(network, opt) for _ in range(5)])
        found.append((losses, model.state_dict()))
    ((losses, state), (again, stateAgain), (expected, stateExpected)) = found
    assert torch.equal(losses, again)
    torch.testing.assert_close(losses, expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, stateAgain[name])
        torch.testing.assert_close(tensor, stateExpected[name], rtol=1e-3, atol=1e-4)


def test_weights_and_statistics_that_are_loaded_later_are_those_of_all_replicas():
    (model, other) = (build_model(), build_model())
    parallel = CoreParallel(model)
    model.load_state_dict(other.state_dict())
    (x, y) = make_batch(6)
    torch.testing.assert_close(parallel.train()(x), other.train()(x))


def test_batch_norm_that_trains_keeps_the_statistics_of_the_first_part():
    model = build_model(isFrozen=False)
    twin = copy.deepcopy(model)
    (x, _) = make_batch(6)
    parallel = CoreParallel(model).train()
    for _ in range(2):
        parallel(x)
        twin.train()(x[:2])
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    torch.testing.assert_close(parallel.eval()(x), twin.eval()(x))


@pytest.mark.parametrize("numThreads", [2, 3, 8])
def test_batch_norm_that_trains_has_no_part_of_a_single_image(numThreads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: numThreads)
    # with one value per image and channel, as small images have at the end of the network
    parallel = CoreParallel(nn.BatchNorm1d(4)).train()
    for size in range(2, 30):
        assert parallel(torch.randn(size, 4)).shape == (size, 4)


@pytest.mark.parametrize("isTraining", [True, False])
def test_an_error_in_a_replica_is_one_of_the_whole(isTraining):
    parallel = CoreParallel(build_model()).train(isTraining)
    (x, _) = make_batch(6)
    with torch.set_grad_enabled(isTraining), pytest.raises(RuntimeError, match="channels"):
        parallel(x[:, :2])
    # and the next batch is computed
    assert parallel(x).shape == (6, 4)


def call_one(replicas, inputs, kwargs, deviceIds):
    """Stand in for PyTorch's parallel_apply(), which needs a GPU, with a single replica."""
    ((replica,), (x,), (options,)) = (replicas, inputs, kwargs)
    return [(replica(*x, **options), deviceIds, threading.get_ident(), torch.is_grad_enabled())]


@pytest.fixture
def gpus(monkeypatch):
    """Have three GPUs as far as nn.DataParallel looks."""
    monkeypatch.setattr(nn.parallel, "parallel_apply", call_one)
    monkeypatch.setattr(nn.DataParallel, "__init__", lambda self, module: nn.Module.__init__(self))
    monkeypatch.setattr(DataParallel, "device_ids", [4, 2, 7], raising=False)


def test_data_parallel_computes_each_replica_in_a_thread_of_its_own_that_stays(gpus):
    model = build_model()
    parallel = DataParallel(model)
    assert isinstance(parallel, nn.DataParallel)
    (x, _) = make_batch(7)
    expected = model(x)
    threads = []
    # the last batch of an epoch may be too small for all
    for numParts in (3, 3, 2):
        for isGradEnabled in (True, False):
            parts = [(part,) for part in x.chunk(numParts)]
            with torch.set_grad_enabled(isGradEnabled):
                outputs = parallel.parallel_apply([model] * numParts, parts, [{}] * numParts)
            torch.testing.assert_close(torch.cat([output[0] for output in outputs]), expected)
            assert [output[1] for output in outputs] == [[4], [2], [7]][:numParts]
            threads.append([output[2] for output in outputs])
            assert {output[3] for output in outputs} == {isGradEnabled}
            assert {output[0].requires_grad for output in outputs} == {isGradEnabled}
    # where cuDNN finds the plans that it made there
    assert len(set(threads[0])) == 3
    assert threads == [threads[0]] * 4 + [threads[0][:2]] * 2
    assert threading.get_ident() not in threads[0]


def test_an_error_in_a_thread_of_data_parallel_is_one_of_the_whole(gpus):
    parallel = DataParallel(build_model())
    (x, _) = make_batch(6)
    with pytest.raises(RuntimeError, match="channels"):
        parallel.parallel_apply([build_model()] * 2, [(x[:, :2],), (x[:, :2],)], [{}] * 2)
