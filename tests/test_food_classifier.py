import copy
import inspect
import threading

from pyimagesearch import checkpoint, config, devices
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm

import pytest
import torch
from conftest import TinyNet
from torch import nn
from torchvision.models import densenet121


def train_steps(model, steps=3, size=32):
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        model.train()
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.arange(4))
        opt.zero_grad()
        loss.backward()
        opt.step()


def batch_norm_state(model):
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, tensor in module.state_dict().items()
    }


def test_puts_a_linear_layer_on_the_features_of_densenet():
    assert list(inspect.signature(FoodClassifier).parameters) == ["baseModel", "numClasses"]
    baseModel = densenet121(weights=None)
    model = FoodClassifier(baseModel, 11).eval()
    assert model.baseModel is baseModel
    assert isinstance(model.baseModel.classifier, nn.Identity)
    assert (model.classifier.in_features, model.classifier.out_features) == (1024, 11)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 11)
    assert logits.dtype == torch.float32


def test_state_dict_has_the_keys_of_the_tutorial():
    expected = {f"baseModel.{key}" for key in densenet121(weights=None).state_dict()}
    expected -= {"baseModel.classifier.weight", "baseModel.classifier.bias"}
    expected |= {"classifier.weight", "classifier.bias"}
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    assert set(FoodClassifier(baseModel, 5).state_dict()) == expected


def test_a_replica_computes_the_same_in_a_thread_of_its_own(monkeypatch):
    # as nn.DataParallel does it, on a machine without GPUs
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.bfloat16)
    model = FoodClassifier(TinyNet(), 5)
    # precision is decided once, not asked again in each thread
    monkeypatch.setattr(devices, "compute_dtype", None)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    (seen, logits) = ([], [])
    model.baseModel.conv.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    replica = model._replicate_for_data_parallel()

    def run_replica():
        # a new thread has neither autocast nor the grad mode of the one that started it
        with torch.set_grad_enabled(False):
            logits.append(replica(x))

    thread = threading.Thread(target=run_replica)
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16]
    assert logits[0].dtype == torch.float32
    assert torch.equal(logits[0], expected)


@pytest.mark.parametrize("freeze", [True, False])
def test_torch_compile_traces_the_model_whole(freeze):
    baseModel = TinyNet()
    if freeze:
        freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 5)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x)) or not freeze
    compiled(x).sum().backward()
    assert model.classifier.weight.grad is not None


def test_frozen_batch_norm_stays_bit_for_bit_while_convolutions_train():
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 4)
    (before, conv) = (batch_norm_state(model), baseModel.features.conv0.weight.clone())
    train_steps(model)
    after = batch_norm_state(model)
    assert len(after) == 121 * 5
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(conv, baseModel.features.conv0.weight)


def test_frozen_batch_norm_computes_the_same_and_keeps_no_input():
    plain = nn.BatchNorm2d(3).eval()
    for tensor in plain.state_dict().values():
        tensor.copy_(torch.rand(3) + 0.5 if tensor.ndim else tensor)
    frozen = copy.deepcopy(plain)
    freeze_batch_norm(frozen)
    x = torch.randn(4, 3, 5, 5)
    (answers, shapes) = ([], [])

    def keep(tensor):
        shapes.append(tensor.shape)
        return tensor

    for norm in (plain, frozen.train()):
        leaf = x.clone().requires_grad_()
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = norm(leaf)
        (out**2).sum().backward()
        answers.append((out, leaf.grad))
    for expected, found in zip(*answers, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5)
    # nothing but the constants, one number per channel
    assert set(shapes) == {(3,)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frozen_batch_norm_agrees_with_pytorch_in_every_precision_and_layout(dtype, layout):
    plain = nn.BatchNorm2d(16).eval()
    with torch.no_grad():
        for tensor in (plain.weight, plain.bias, plain.running_mean, plain.running_var):
            tensor.copy_(torch.rand(16) + 0.5)
    frozen = copy.deepcopy(plain)
    freeze_batch_norm(frozen)
    plain.requires_grad_(False)
    x = torch.randn(4, 16, 9, 9).to(dtype=dtype, memory_format=layout)
    direction = torch.randn(4, 16, 9, 9).to(dtype=dtype, memory_format=layout)
    answers = []
    for norm in (plain, frozen.train()):
        leaf = x.clone().requires_grad_()
        out = norm(leaf)
        out.backward(direction)
        answers.append((out, leaf.grad))
    for expected, found in zip(*answers, strict=True):
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found, expected)


def test_train_does_not_thaw_frozen_batch_norm():
    baseModel = TinyNet()
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 4)
    assert model.train() is model
    assert model.training
    assert model.baseModel.conv.training
    assert not model.baseModel.norm.training
    assert not model.baseModel.norm.weight.requires_grad
    assert not model.eval().training


@pytest.mark.parametrize("key", ["norm.weight", "norm.bias", "norm.running_mean"])
def test_batch_norm_that_is_not_frozen_trains(key):
    model = FoodClassifier(TinyNet(), 4)
    before = model.baseModel.state_dict()[key].clone()
    train_steps(model)
    assert not torch.equal(before, model.baseModel.state_dict()[key])


def test_the_weights_say_what_they_were_trained_on_and_load_strictly():
    config.IMAGE_SIZE = 96
    model = FoodClassifier(densenet121(weights=None), 3)
    checkpoint.save_weights(model.to(config.DEVICE), ["soup", "Bread", "Egg"])
    state = torch.load(config.MODEL_PATH, weights_only=True)
    facts = state._metadata[""]
    assert facts["classes"] == ["soup", "Bread", "Egg"]
    assert (facts["imageSize"], facts["mean"], facts["std"]) == (96, config.MEAN, config.STD)
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    # as the tutorial's script does
    twin = FoodClassifier(densenet121(weights=None), 3)
    assert str(twin.load_state_dict(state)) == "<All keys matched successfully>"
    assert set(state) == set(twin.state_dict())
