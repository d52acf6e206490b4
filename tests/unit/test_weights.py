"""The weights file: what it says of its training, and what of it is read."""

from pathlib import Path

import pytest
import torch
from helpers import CLASSES, DEFAULTS, Evil, TinyNet, assert_same, load
from helpers import save_weights as save_own_weights

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.weights import TrainedOn, describe_training, read_weights, save_weights


def test_a_weights_file_says_what_it_was_trained_on():
    model = save_own_weights(["Pizza", "bread", "egg"])
    # a network of 48 px and a normalization of its own
    (state, trainedOn) = read_weights(config.MODEL_PATH)
    assert trainedOn == TrainedOn(["Pizza", "bread", "egg"], 48, [0.5] * 3, [0.25] * 3)
    assert_same(dict(state), dict(model.state_dict()))


def test_reading_weights_leaves_config_as_it_was():
    save_own_weights(["Pizza", "bread", "egg"])
    before = dict(vars(config))
    read_weights(config.MODEL_PATH)
    assert vars(config) == before


def test_what_a_file_does_not_say_is_taken_from_config_and_a_line_says_so(capsys):
    model = FoodClassifier(TinyNet(), 3)
    torch.save(dict(model.state_dict()), "tutorial.pth")
    (config.CLASSES, config.IMAGE_SIZE) = (["Soup", "Egg/fried", "Bread"], 64)
    (_, trainedOn) = read_weights("tutorial.pth")
    # as an ImageFolder names and sorts them
    assert trainedOn == TrainedOn(CLASSES, 64, DEFAULTS["MEAN"], DEFAULTS["STD"])
    assert trainedOn == describe_training()
    (line,) = capsys.readouterr().out.splitlines()
    assert "tutorial.pth" in line
    assert "CLASSES" in line


def test_a_file_that_says_all_prints_nothing(capsys):
    save_own_weights(CLASSES)
    read_weights(config.MODEL_PATH)
    assert capsys.readouterr().out == ""


class OnGpu(torch.Tensor):
    """A tensor that cpu() alone makes one of the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_weights_of_a_gpu_are_saved_as_tensors_of_the_cpu():
    model = FoodClassifier(TinyNet(), 3)
    expected = dict(model.state_dict())

    def move(module, state, prefix, metadata):
        for name, tensor in state.items():
            state[name] = tensor.as_subclass(OnGpu)

    model.register_state_dict_post_hook(move)
    save_weights(model, CLASSES)
    # refuses what is no plain tensor
    assert_same(dict(load(config.MODEL_PATH)), expected)


def test_saving_weights_leaves_the_model_as_it_was():
    model = FoodClassifier(TinyNet(), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_weights(model, CLASSES)
    assert_same(dict(model.state_dict()), before)
    # what the file says is not in the next state dict
    assert "classes" not in model.state_dict()._metadata[""]


def test_a_file_that_is_not_there_is_one_line_with_its_full_path():
    path = str(Path("nowhere.pth").absolute())
    with pytest.raises(UserError, match="--weights") as caught:
        read_weights("nowhere.pth")
    assert f"no weights at {path}" in str(caught.value)


def test_no_code_in_a_strangers_weights_is_run():
    torch.save({"classifier.bias": Evil()}, "evil.pth")
    with pytest.raises(Exception, match="weights_only"):
        read_weights("evil.pth")
    assert not Path("trap").exists()
