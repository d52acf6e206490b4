"""The values of config.py and the flags that override them."""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from helpers import DEFAULTS, PROJECT
from torchvision.models import DenseNet121_Weights

from pyimagesearch import config
from pyimagesearch.support import sample_dataset, settings
from pyimagesearch.support.errors import UserError


def run_config():
    """Return what config.py holds for a user of this machine."""
    return runpy.run_path(str(PROJECT / "pyimagesearch/config.py"))


def get_config():
    """Return what config holds now."""
    return {name: getattr(config, name) for name in DEFAULTS}


def test_config_has_the_classes_and_settings_of_the_tutorial():
    found = run_config()
    expected = {"IMAGE_SIZE": 224, "PRED_BATCH_SIZE": 4, "EPOCHS": 20, "LR": 0.0001}
    expected.update(PRETRAINED=True, DATA_PATH="Food-11", BASE_PATH="dataset")
    assert {name: found[name] for name in expected} == expected
    # the order of the class indices in the names of Food-11's files
    assert found["CLASSES"] == list(sample_dataset.DISHES)
    imagenet = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    assert (found["MEAN"], found["STD"]) == (imagenet.mean, imagenet.std)


@pytest.mark.parametrize(
    ("platform", "device", "numCPUs", "batchSize", "numWorkers"),
    [
        ("linux", "cuda", 64, 128, 16),
        ("linux", "cpu", 2, 32, 2),
        ("darwin", "mps", 64, 32, 4),
        ("win32", "cpu", 64, 32, 4),
    ],
)
def test_config_fits_the_machine(monkeypatch, platform, device, numCPUs, batchSize, numWorkers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(joblib, "cpu_count", lambda: numCPUs)
    found = run_config()
    assert found["DEVICE"] == torch.device(device)
    assert (found["LOCAL_BATCH_SIZE"], found["NUM_WORKERS"]) == (batchSize, numWorkers)


def parse(*flags):
    """Parse flags as a script does that has them all."""
    return settings.read_flags(argparse.ArgumentParser(), list(settings.FLAGS), flags)


def test_flags_override_config_for_this_run_and_what_they_change_is_printed(capsys):
    (config.EPOCHS, config.PRED_BATCH_SIZE, config.LR) = (7, 5, 0.0001)
    args = parse(*"--image-size 64 --epochs 3 --lr 1e-4 --no-pretrained".split())
    assert (config.IMAGE_SIZE, config.EPOCHS, config.PRETRAINED) == (64, 3, False)
    assert (config.PRED_BATCH_SIZE, config.LR) == (5, 0.0001)
    given = {"IMAGE_SIZE": 64, "EPOCHS": 3, "LR": 0.0001, "PRETRAINED": False}
    assert settings.get_flags(args) == given
    (line,) = capsys.readouterr().out.splitlines()
    expected = "overridden by flags: IMAGE_SIZE = 64, EPOCHS = 3, PRETRAINED = False..."
    assert line == f"[INFO] {expected}"
    with pytest.raises(UserError, match="^EPOCHS "):
        parse("--epochs", "0")


def test_a_flag_that_is_refused_leaves_config_as_it_was():
    before = get_config()
    with pytest.raises(UserError, match="^LR "):
        parse("--epochs", "3", "--lr", "-1")
    assert get_config() == before


def test_help_gives_each_flag_with_the_value_that_config_has(capsys):
    config.EPOCHS = 7
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for name in settings.FLAGS:
        assert f"--{name.lower().replace('_', '-')}" in text
        assert f"(default: {getattr(config, name)})" in text


def test_config_is_taken_where_its_meaning_is_plain(monkeypatch):
    monkeypatch.setenv("HOME", os.path.abspath("home"))
    (config.DATA_PATH, config.TRAIN) = ("~/photos", Path("~", "dataset", "training"))
    (config.DEVICE, config.PRECISION) = ("cuda:1", torch.float32)
    # numbers become those that a checkpoint can hold
    (config.MEAN, config.STD) = (np.array([0.5, 0.25, 0.75]), [np.float32(0.5)] * 3)
    config.CLASSES = np.array([" Bread", "Noodles / Pasta ", "Egg"])
    (config.SEED, config.LR, config.EPOCHS) = (np.int64(7), np.float64(0.001), np.float64(2))
    (config.IMAGE_SIZE, config.PRETRAINED) = (np.uint8(64), np.bool_(False))
    settings.expand_paths()
    settings.override_config({})
    found = {name: getattr(config, name) for name in [*settings.FLAGS, "MEAN", "STD", "CLASSES"]}
    assert "np." not in repr(found)
    assert json.loads(json.dumps(found)) == found
    assert (found["SEED"], found["MEAN"]) == (7, [0.5, 0.25, 0.75])
    assert found["CLASSES"] == ["Bread", "Noodles/Pasta", "Egg"]
    assert config.DATA_PATH == os.path.abspath("home/photos")
    assert config.TRAIN == os.path.abspath("home/dataset/training")
    assert config.DEVICE == torch.device("cuda:1")
    assert config.PRECISION == "float32"


def test_a_path_that_is_none_is_passed_over():
    (config.DATA_PATH, config.TEST) = (None, 5)
    settings.expand_paths()
    assert (config.DATA_PATH, config.TEST) == (None, 5)


class Schedule:
    """A setting of the user's own, whose text has the address of the object."""


def test_settings_come_back_from_json_without_addresses_of_objects():
    objects = [Schedule(), Schedule()]
    (one, other) = [settings.make_json({"SCHEDULE": value, "LR": 0.5}) for value in objects]
    assert one == other
    assert one["LR"] == 0.5
    assert "Schedule object" in one["SCHEDULE"]
    assert settings.make_json({"DEVICE": torch.device("cuda:1")}) == {"DEVICE": "cuda:1"}


def test_reading_config_makes_plain_copies_and_leaves_config_as_it_was():
    config.CLASSES = [" Bread", "Egg"]
    (config.DEVICE, config.EPOCHS, config.MODEL_PATH) = ("cpu", np.int64(7), "~/model.pth")
    before = get_config()
    found = settings.read_config({"LR": 0.5})
    assert (found["CLASSES"], found["LR"]) == (["Bread", "Egg"], 0.5)
    assert found["DEVICE"] == torch.device("cpu")
    assert get_config() == before
    assert config.EPOCHS is before["EPOCHS"]


@pytest.mark.parametrize(
    ("setting", "flag", "expected"),
    [
        (None, "--pretrained", True),
        (None, "--no-pretrained", False),
        # what is set counts by itself
        (True, "--no-pretrained", True),
        (False, "--pretrained", False),
    ],
)
def test_batch_normalization_is_frozen_with_pretrained_weights_unless_config_says(
    setting, flag, expected
):
    config.FREEZE_BATCH_NORM = setting
    parse(flag)
    assert config.FREEZE_BATCH_NORM is expected


@pytest.mark.parametrize("pretrained", [True, False])
def test_batch_normalization_follows_pretrained_of_config_too(pretrained):
    config.PRETRAINED = pretrained
    settings.override_config({})
    assert config.FREEZE_BATCH_NORM is pretrained


WRONG = {
    "EPOCHS": [0, 2.5, "20"],
    "LR": [float("nan"), -0.1],
    "PRETRAINED": ["False"],
    "FREEZE_BATCH_NORM": ["yes", 2],
    "PRECISION": ["fp32", 32, torch.int8, None],
    "NUM_WORKERS": [-1],
    "MEAN": [[123.7, 116.3, 103.5], [0.5, 0.5]],
    "STD": [[58.4, 57.1, 57.4], [0.2, 0, 0.2]],
    "CLASSES": ["Soup", ["Egg"], ["Egg", "../training"], ["Egg", " "]],
}
# of which two share a folder, on some disk
WRONG["CLASSES"] += [["Egg", "Rice/white", "Rice/brown"], ["egg", "Egg"], ["crème", "cre\u0300me"]]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_setting_that_would_be_wrong_in_silence_is_one_line_that_names_it(name, value):
    setattr(config, name, value)
    with pytest.raises(UserError, match=name) as caught:
        settings.override_config({})
    assert "\n" not in str(caught.value)
    # nothing is written before all is checked
    assert getattr(config, name) is value


def test_a_script_refuses_outputs_that_would_overwrite_each_other():
    (config.MODEL_PATH, config.CHECKPOINT_PATH) = ("weights/food.pth", "checkpoints/food.pth")
    with pytest.raises(UserError, match="weights/food.pth"):
        settings.override_config({})
