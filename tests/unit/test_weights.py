"""The weights file: what it says of its training, and what of it is read."""

import errno
import os
import ssl
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from helpers import CLASSES, DEFAULTS, Evil, TinyNet, assert_same, load
from helpers import save_weights as save_own_weights
from torchvision.models import densenet121

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.weights import (
    TrainedOn,
    describe_state,
    describe_training,
    explain_failed_download,
    read_weights,
    save_weights,
)


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


def test_no_code_in_a_strangers_weights_is_run_nor_is_it_advised_to():
    for isZip in (True, False):
        torch.save({"classifier.bias": Evil()}, "evil.pth", _use_new_zipfile_serialization=isZip)
        with pytest.raises(UserError, match="^evil.pth .*; no code in it was run: ") as caught:
            read_weights("evil.pth")
        assert "weights_only" not in str(caught.value)
        assert not Path("trap").exists()


STRANGERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 28\n": "git lfs pull",
    b"\n<!DOCTYPE html>\n<html><body>404</body></html>": "a web page",
    b"<HTML><head>": "a web page",
    b"": "damaged, or no weights file",
    b"anything else": "damaged, or no weights file",
    b"PK\x03\x04 a download that was cut off": "damaged, or no weights file",
    b"\x80\x02}q\x00": "damaged",
}


@pytest.mark.parametrize("data", STRANGERS)
def test_a_file_of_something_else_is_one_line_that_says_what_it_is(data):
    Path("mine.pth").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_weights("mine.pth")
    line = str(caught.value)
    assert line.startswith("mine.pth is ")
    assert STRANGERS[data] in line
    assert "\n" not in line
    assert "weights_only" not in line


def test_a_file_that_was_cut_off_is_one_line():
    save_own_weights(CLASSES)
    data = Path(config.MODEL_PATH).read_bytes()
    for size in (len(data) // 2, len(data) - 100):
        Path("mine.pth").write_bytes(data[:size])
        with pytest.raises(UserError, match="^mine.pth is damaged"):
            read_weights("mine.pth")


def test_weights_of_another_network_are_one_short_line():
    others = [
        densenet121(weights=None).state_dict(),
        {},
        {"state_dict": {}},
        {0: 1},
        [1, 2],
        torch.ones(3),
    ]
    for other in others:
        torch.save(other, "other.pth")
        with pytest.raises(UserError, match="^other.pth holds no FoodClassifier") as caught:
            read_weights("other.pth")
        assert len(str(caught.value)) < 250


def test_weights_without_names_for_other_classes_than_those_of_config_are_one_line():
    torch.save(dict(FoodClassifier(TinyNet(), 3).state_dict()), "other.pth")
    with pytest.raises(UserError, match="^other.pth knows 3 classes, CLASSES in config.py 11; "):
        read_weights("other.pth")


def test_the_weights_in_a_checkpoint_are_taken_with_all_that_they_know():
    model = FoodClassifier(TinyNet(), 3)
    state = model.state_dict()
    config.IMAGE_SIZE = 48
    describe_state(state, CLASSES)
    config.IMAGE_SIZE = 64
    torch.save({"started": "then", "model": state, "opt": {}, "H": {}}, "checkpoint.pth")
    (found, trainedOn) = read_weights("checkpoint.pth")
    assert_same(dict(found), dict(model.state_dict()))
    assert trainedOn == TrainedOn(CLASSES, 48, DEFAULTS["MEAN"], DEFAULTS["STD"])


def test_weights_are_saved_in_the_usual_layout_and_the_model_keeps_its_own():
    # a network computes with the channels last; other formats know no such thing
    model = FoodClassifier(TinyNet(), 3)
    weight = model.baseModel.conv.weight
    assert not weight.is_contiguous()
    save_weights(model, CLASSES)
    assert all(tensor.is_contiguous() for tensor in load(config.MODEL_PATH).values())
    assert not weight.is_contiguous()
    model.load_state_dict(load(config.MODEL_PATH))
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "error",
    [
        URLError(ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED")),
        HTTPError("https://there", 403, "Forbidden", {}, None),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_fails_is_one_line_with_the_address_and_the_place(error, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "cache")
    with pytest.raises(UserError) as caught, explain_failed_download("https://there/weights.pth"):
        raise error
    line = str(caught.value)
    assert line.startswith("https://there/weights.pth cannot be downloaded (")
    assert os.path.join("cache", "hub", "checkpoints") in line
    assert "--no-pretrained" in line
    assert "\n" not in line


def test_a_full_disk_is_no_failed_download():
    with pytest.raises(OSError, match="No space") as caught, explain_failed_download("there"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not isinstance(caught.value, UserError)
