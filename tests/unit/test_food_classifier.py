"""FoodClassifier and its weights, the tutorial's too, and frozen batch normalization."""

import copy
import threading
from pathlib import Path

from pyimagesearch import checkpoint, config, devices, images
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm, load_classifier

import pytest
import torch
from helpers import CLASSES, Evil, TinyNet, assert_same, draw_image, load, save_weights
from torch import nn
from torchvision import transforms
from torchvision.models import densenet121


def test_weights_load_strictly_both_ways_with_the_class_of_the_tutorial():
    config.DEVICE = torch.device("cpu")
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 11)
    checkpoint.save_weights(model, config.CLASSES)
    # as the tutorial's class puts it together
    theirs = nn.Module()
    theirs.baseModel = densenet121(weights=None)
    theirs.classifier = nn.Linear(theirs.baseModel.classifier.in_features, 11)
    theirs.baseModel.classifier = nn.Identity()
    theirs.load_state_dict(load(config.MODEL_PATH), strict=True)
    torch.save(theirs.state_dict(), "tutorial.pth")
    (ours, _, _) = load_classifier("tutorial.pth")
    assert_same(dict(ours.state_dict()), dict(model.state_dict()))
    x = torch.randn(2, 3, 64, 64)
    assert (ours(x).shape, ours(x).dtype) == ((2, 11), torch.float32)
    if devices.compute_dtype() == torch.float32:
        theirs.eval()
        torch.testing.assert_close(ours(x), theirs.classifier(theirs.baseModel(x)))


def make_norms():
    """Return a batch normalization with statistics, as of a trained network, and it frozen."""
    norm = nn.BatchNorm2d(16).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(16) + 0.5)
    frozen = copy.deepcopy(norm)
    freeze_batch_norm(frozen)
    return norm, frozen


def run_backward(model, x):
    """Return the output of model for x, and the gradients of x and of all convolutions."""
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    # a gradient of its own for each number
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    convs = [m.weight.grad for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [out, leaf.grad, *convs]


def test_frozen_batch_norm_trains_the_convolutions_as_evaluation_mode_would():
    blocks = [nn.Conv2d(3, 16, 3), make_norms()[0], nn.ReLU(), nn.Conv2d(16, 16, 3)]
    plain = nn.Sequential(*blocks, make_norms()[0]).eval()
    frozen = copy.deepcopy(plain)
    freeze_batch_norm(frozen)
    x = torch.randn(4, 3, 9, 9)
    answers = [run_backward(model, x) for model in (plain, frozen.train())]
    assert len(answers[0]) == 4
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_batch_norm_is_close_to_pytorch_in_half_precision(dtype, layout):
    (plain, frozen) = make_norms()
    x = torch.randn(4, 16, 9, 9).to(dtype=dtype, memory_format=layout)
    limit = 2 * torch.finfo(dtype).eps
    for expected, found in zip(run_backward(plain, x), run_backward(frozen, x), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=limit, rtol=limit)
    assert frozen(x.requires_grad_()).is_contiguous(memory_format=layout)


def test_frozen_batch_norm_keeps_no_picture_for_the_backward_pass_and_evaluates_exactly():
    (plain, norm) = make_norms()
    (sizes, x) = ([], torch.randn(4, 16, 9, 9))
    assert torch.equal(norm.train()(x), plain(x))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        norm(x.requires_grad_())
    # nothing but the constants, one number per channel
    assert set(sizes) == {16}


def test_frozen_batch_norm_reckons_its_constants_once_an_epoch_from_the_weights_as_they_are():
    ((_, norm), (other, _)) = (make_norms(), make_norms())
    x = torch.randn(4, 16, 9, 9).requires_grad_()
    norm.train()(x)
    constants = norm.constants
    norm(x)
    # a GPU waits for the CPU where these small operations run at every step
    assert norm.constants is constants
    norm.load_state_dict(other.state_dict())
    torch.testing.assert_close(norm.train()(x), other(x))
    assert norm(x.half()).dtype == torch.float16


@pytest.mark.parametrize(("device", "isLast"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_channels_come_last_where_that_is_faster_and_nowhere_else(device, isLast):
    # Apple's GPU trains wrongly with them
    config.DEVICE = torch.device(device)
    model = FoodClassifier(TinyNet(), 3)
    seen = []
    model.baseModel.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(2, 3, 8, 8))
    for tensor in (model.baseModel.conv.weight, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == isLast


def test_the_threads_of_data_parallel_compute_in_half_precision_too(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.bfloat16)
    model = FoodClassifier(TinyNet(), 5)
    (x, seen, logits) = (torch.randn(2, 3, 8, 8), [], [])
    expected = model(x)
    model.baseModel.conv.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    # a replica runs in a thread of its own, which does not inherit autocast
    replica = model._replicate_for_data_parallel()
    thread = threading.Thread(target=lambda: logits.append(replica(x)))
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16]
    assert logits[0].dtype == torch.float32
    assert torch.equal(logits[0], expected)


def test_ones_own_code_gets_model_classes_and_transform_from_the_weights_alone(tinyNet, capsys):
    model = save_weights(["Pizza", "bread", "egg"])
    Path(config.MODEL_PATH).rename("mine.pth")
    # the same names, which sorted come in another order
    config.CLASSES = ["Bread", "Egg", "Pizza"]
    (loaded, classes, transform) = load_classifier("mine.pth")
    assert classes == ["Pizza", "bread", "egg"]
    assert "mine.pth" in capsys.readouterr().out
    draw_image("lunch.png", 3)
    photo = images.load_image("lunch.png")
    (resize, normalize) = (transforms.Resize((48, 48)), transforms.Normalize([0.5] * 3, [0.25] * 3))
    expected = transforms.Compose([resize, transforms.ToTensor(), normalize])(photo)
    x = transform(photo)
    assert torch.equal(x, expected)
    assert not loaded.training
    assert next(loaded.parameters()).device.type == config.DEVICE.type
    with torch.inference_mode():
        logits = loaded(x[None].to(config.DEVICE)).cpu()
    torch.testing.assert_close(logits, model(expected[None]).detach(), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_tutorials_weights_load_anywhere_and_a_line_says_whose_class_names_are_used(
    tinyNet, capsys, monkeypatch, prefix
):
    model = FoodClassifier(TinyNet(), 3)
    # as its script saves them: on a GPU, alone or in the wrapper, without metadata
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(state, "tutorial.pth")
    config.DEVICE = torch.device("cpu")
    (config.CLASSES, config.IMAGE_SIZE) = (["Soup", "Egg/fried", "Bread"], 64)
    (loaded, classes, transform) = load_classifier("tutorial.pth")
    # as an ImageFolder names and sorts them
    assert classes == CLASSES
    assert transform.transforms[0].size == (64, 64)
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    (line,) = capsys.readouterr().out.splitlines()
    assert "tutorial.pth" in line
    assert "CLASSES" in line


class OnGpu(torch.Tensor):
    """A tensor that cpu() alone makes one of the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_weights_of_a_gpu_are_saved_as_tensors_of_the_cpu():
    model = FoodClassifier(TinyNet(), 3)
    expected = dict(model.state_dict())

    def move(module, state, prefix, metadata):
        state.update({name: tensor.as_subclass(OnGpu) for name, tensor in state.items()})

    model.register_state_dict_post_hook(move)
    checkpoint.save_weights(model, CLASSES)
    # refuses what is no plain tensor
    assert_same(dict(load(config.MODEL_PATH)), expected)


def test_no_other_weights_are_taken_for_those_of_this_network(tinyNet):
    # of another network, and of other classes than CLASSES
    for other in (densenet121(weights=None), FoodClassifier(TinyNet(), 3)):
        torch.save(other.state_dict(), "other.pth")
        with pytest.raises(RuntimeError, match="Missing key|size mismatch"):
            load_classifier("other.pth")


def test_no_code_in_a_strangers_weights_is_run():
    torch.save({"classifier.bias": Evil()}, "evil.pth")
    with pytest.raises(Exception, match="weights_only"):
        load_classifier("evil.pth")
    assert not Path("trap").exists()
