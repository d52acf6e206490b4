"""FoodClassifier and its weights, the tutorial's too, and frozen batch normalization."""

import copy
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch
from helpers import (
    CLASSES,
    TinyNet,
    assert_same,
    draw_class_folders,
    draw_image,
    load,
    save_weights,
)
from torch import distributed, nn
from torchvision import transforms
from torchvision.models import DenseNet121_Weights, densenet121

from pyimagesearch import config, food_classifier
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader
from pyimagesearch.food_classifier import (
    FoodClassifier,
    freeze_batch_norm,
    load_classifier,
    load_densenet,
    predict,
    sync_batch_norm,
)
from pyimagesearch.support import devices, images, processes, weights
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.weights import TrainedOn, read_weights


def test_weights_load_strictly_both_ways_with_the_class_of_the_tutorial():
    config.DEVICE = torch.device("cpu")
    baseModel = densenet121(weights=None)
    freeze_batch_norm(baseModel)
    model = FoodClassifier(baseModel, 11)
    weights.save_weights(model, config.CLASSES)
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
    if devices.compute_dtype(config.DEVICE) == torch.float32:
        theirs.eval()
        torch.testing.assert_close(ours(x), theirs.classifier(theirs.baseModel(x)))


def make_norms():
    """Return a batch normalization with statistics, as of a trained network, and it frozen."""
    norm = nn.BatchNorm2d(16).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(16) + 0.5)
    # a module inside another is replaced, not one alone
    frozen = nn.Sequential(copy.deepcopy(norm))
    freeze_batch_norm(frozen)
    return norm, frozen[0]


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
    sizes = []
    x = torch.randn(4, 16, 9, 9)
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


class OnMps(torch.Tensor):
    """A tensor that says it is on Apple's GPU."""

    device = torch.device("mps")


@pytest.mark.parametrize(
    ("device", "kind", "isLast"),
    [("cpu", torch.Tensor, True), ("cuda", torch.Tensor, True), ("mps", OnMps, False)],
)
def test_channels_come_last_where_that_is_faster_and_nowhere_else(device, kind, isLast):
    # Apple's GPU trains wrongly with them
    config.DEVICE = torch.device(device)
    model = FoodClassifier(TinyNet(), 3)
    seen = []
    model.baseModel.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(2, 3, 8, 8).as_subclass(kind))
    for tensor in (model.baseModel.conv.weight, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == isLast


def test_the_threads_of_data_parallel_compute_in_half_precision_too(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda *_: torch.bfloat16)
    model = FoodClassifier(TinyNet(), 5)
    (seen, logits) = ([], [])
    x = torch.randn(2, 3, 8, 8)
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


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_classifier_computes_in_the_precision_of_the_device_where_it_is(monkeypatch, kind):
    # config.py is of the GPU, from which .cpu() has taken the classifier
    config.DEVICE = torch.device("cuda")
    dtypes = {"cuda": torch.float16, "cpu": torch.float32, kind: torch.bfloat16}
    monkeypatch.setattr(
        devices, "compute_dtype", lambda device, _: dtypes[torch.device(device).type]
    )
    model = FoodClassifier(TinyNet(), 3).cpu()
    seen = []
    model.baseModel.conv.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    model(torch.randn(2, 3, 8, 8))
    assert seen == [dtypes["cpu"]]


def test_the_network_normalizes_bytes_by_its_own_numbers_and_takes_floats_as_they_are():
    trainedOn = TrainedOn(CLASSES, 8, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    model = FoodClassifier(TinyNet(), 3, trainedOn).eval()
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    floats = transforms.Normalize(trainedOn.mean, trainedOn.std)(images / 255)
    assert torch.equal(model.normalize(images), floats)
    assert torch.equal(model(images), model(floats))
    # those of config.py, where nothing else is said
    config.MEAN = [0.5, 0.25, 0.125]
    assert FoodClassifier(TinyNet(), 3).normalize.mean.flatten().tolist() == config.MEAN
    # which strangers' programs do not find in the weights
    assert not [name for name in model.state_dict() if "normalize" in name]


def test_ones_own_code_may_choose_the_precision(tinyNet):
    save_weights(CLASSES)
    config.PRECISION = "bfloat16"
    seen = []
    for precision in (None, "float32"):
        (model, _, _) = load_classifier(config.MODEL_PATH, precision)
        model.baseModel.conv.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
        model(torch.zeros(1, 3, 48, 48, dtype=torch.uint8, device=config.DEVICE))
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_loads_the_imagenet_weights(monkeypatch, rank):
    loaded = Mock()
    monkeypatch.setattr(food_classifier, "densenet121", loaded)
    monkeypatch.setattr(processes, "get_rank", lambda: rank)
    load_densenet(pretrained=True)
    expected = DenseNet121_Weights.IMAGENET1K_V1 if rank == 0 else None
    loaded.assert_called_once_with(weights=expected)
    loaded.reset_mock()
    load_densenet(pretrained=False)
    loaded.assert_called_once_with(weights=None)


@pytest.mark.parametrize(("worldSize", "isSent"), [(1, False), (2, True)])
def test_processes_take_the_statistics_of_rank_0_of_what_trains_alone(
    monkeypatch, worldSize, isSent
):
    frozen = nn.Sequential(nn.BatchNorm2d(3))
    freeze_batch_norm(frozen)
    trained = nn.BatchNorm2d(3)
    model = nn.Sequential(trained, frozen).train()
    sent = []
    monkeypatch.setattr(processes, "get_world_size", lambda: worldSize)
    monkeypatch.setattr(distributed, "broadcast", lambda tensor, src: sent.append((tensor, src)))
    sync_batch_norm(model)
    expected = list(trained.buffers()) if isSent else []
    assert [id(tensor) for tensor, _ in sent] == [id(tensor) for tensor in expected]
    assert {src for _, src in sent} <= {0}


def test_ones_own_code_gets_model_classes_and_transform_from_the_weights_alone(tinyNet, capsys):
    model = save_weights(["Pizza", "bread", "egg"])
    Path(config.MODEL_PATH).rename("mine.pth")
    # the same names, which sorted come in another order
    config.CLASSES = ["Bread", "Egg", "Pizza"]
    before = dict(vars(config))
    (loaded, classes, transform) = load_classifier("mine.pth")
    assert classes == ["Pizza", "bread", "egg"]
    # nothing has to be said, as the file says all
    assert capsys.readouterr().out == ""
    draw_image("lunch.png", 3)
    photo = images.load_image("lunch.png")
    resized = transforms.Resize((48, 48))(photo)
    x = transform("lunch.png")
    assert torch.equal(x, transforms.PILToTensor()(resized))
    # as the tutorial gives it to the network
    expected = transforms.Normalize([0.5] * 3, [0.25] * 3)(transforms.ToTensor()(resized))
    assert torch.equal(loaded.normalize(x[None].to(config.DEVICE)).cpu()[0], expected)
    assert not loaded.training
    assert next(loaded.parameters()).device.type == config.DEVICE.type
    with torch.inference_mode():
        logits = loaded(x[None].to(config.DEVICE)).cpu()
    torch.testing.assert_close(logits, model(expected[None]).detach(), atol=0.01, rtol=0.01)
    # config.py has no part in it
    assert vars(config) == before


def test_ones_own_code_and_the_script_give_the_same_probabilities_of_a_large_photograph(tinyNet):
    draw_class_folders(counts=(1, 1, 1))
    # which is decoded at a reduced scale
    path = "dataset/evaluation/Bread/0.jpg"
    draw_image(path, 0, size=(1600, 1200))
    save_weights(CLASSES)
    (model, _, transform) = load_classifier(config.MODEL_PATH)
    x = transform(path)
    (_, trainedOn) = read_weights(config.MODEL_PATH)
    testTransform = eval_transform(trainedOn.imageSize)
    (ds, _) = get_dataloader(
        config.TEST, testTransform, bs=1, shuffle=False, trainedOn=trainedOn, numWorkers=0
    )
    assert ds.samples[0][0] == path
    assert torch.equal(x, ds[0][0])
    assert torch.equal(predict(model, x[None]), predict(model, ds[0][0][None]))
    # in full it would be another picture
    assert not torch.equal(x, testTransform(images.load_image(path)))


def test_two_classifiers_live_side_by_side_and_each_answers_as_alone(tinyNet):
    draw_image("lunch.png", 3)
    config.CLASSES = ["Bread", "Egg", "Soup", "Pie"]
    save_weights(["cat", "dog"], bias=[0.0, 1.0])
    Path(config.MODEL_PATH).rename("pets.pth")
    # of the size and normalization of config.py
    food = FoodClassifier(TinyNet(), 4)
    config.IMAGE_SIZE = 64
    weights.save_weights(food, config.CLASSES)
    config.IMAGE_SIZE = 224
    Path(config.MODEL_PATH).rename("food.pth")

    def answer(model, classes, transform):
        x = transform("lunch.png")
        return classes, x, predict(model, x[None])

    before = dict(vars(config))
    alone = [answer(*load_classifier(path)) for path in ("pets.pth", "food.pth")]
    both = [load_classifier("pets.pth"), load_classifier("food.pth")]
    for (classes, x, probs), loaded in zip(alone, both, strict=True):
        (classesNow, xNow, probsNow) = answer(*loaded)
        assert classesNow == classes
        assert torch.equal(xNow, x)
        assert torch.equal(probsNow, probs)
    assert alone[0][1].shape == (3, 48, 48)
    assert alone[1][1].shape == (3, 64, 64)
    # nothing is left in config for a script that runs in the same notebook
    assert vars(config) == before


def test_predictions_are_probabilities_of_a_model_in_evaluation_mode():
    model = FoodClassifier(TinyNet(), 3).train()
    x = torch.randn(2, 3, 8, 8)
    probs = predict(model, x)
    assert (probs.shape, probs.device.type, probs.requires_grad) == ((2, 3), "cpu", False)
    torch.testing.assert_close(probs.sum(1), torch.ones(2))
    assert not model.training
    assert torch.equal(predict(model, x), probs)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_tutorials_weights_load_anywhere_with_the_class_names_of_config(
    tinyNet, monkeypatch, prefix
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
    draw_image("lunch.png", 3)
    assert transform("lunch.png").shape == (3, 64, 64)
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_a_download_that_fails_says_where_to_put_the_file(monkeypatch):
    # torch.hub's own, as behind a company's proxy
    error = URLError("CERTIFICATE_VERIFY_FAILED")
    monkeypatch.setenv("TORCH_HOME", "cache")
    monkeypatch.setattr(torch.hub, "urlopen", Mock(side_effect=error))
    with pytest.raises(UserError, match="densenet121-a639ec97.pth cannot be downloaded .*CERTIF"):
        load_densenet(pretrained=True)


def test_the_tutorials_own_freezing_hits_a_quarter_of_batch_normalization_and_35_convolutions():
    model = densenet121(weights=None)
    # its loop; the modules and the parameters are lists of other lengths
    for module, param in zip(model.modules(), model.parameters(), strict=False):
        if isinstance(module, nn.BatchNorm2d):
            param.requires_grad = False
    counts = Counter()
    for module in model.modules():
        for param in module.parameters(recurse=False):
            counts[type(module), param.requires_grad] += 1
    assert sum(counts.values()) == 364
    assert counts[nn.BatchNorm2d, False] == 65
    assert counts[nn.BatchNorm2d, True] == 242 - 65
    assert counts[nn.Conv2d, False] == 35
    assert counts[nn.Conv2d, True] == 120 - 35
    assert counts[nn.Linear, False] == 1
    numbers = [p.numel() for p in model.parameters()]
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    assert round(sum(frozen) / sum(numbers), 2) == 0.36
    # and all of the statistics run on
    model.train()
    assert all(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    # ours freezes all of it, and nothing else
    model = densenet121(weights=None)
    freeze_batch_norm(model)
    for module in model.train().modules():
        isNorm = isinstance(module, nn.BatchNorm2d)
        assert module.training != isNorm
        for param in module.parameters(recurse=False):
            assert param.requires_grad != isNorm
