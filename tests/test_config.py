import runpy
import subprocess
import sys

import joblib
import pytest
import torch
from conftest import ORIGINAL_CONFIG, PROJECT

PATH = "pyimagesearch/config.py"


def read_config():
    """Return the constants that config.py holds now, by name."""
    values = runpy.run_path(str(PROJECT / PATH))
    return {name: value for name, value in values.items() if name.isupper()}


def test_config_comes_with_the_values_that_the_tests_expect():
    command = ["git", "-C", PROJECT, "diff", "--quiet", "HEAD", "--", PATH]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("config.py was edited, or there is no git")
    assert read_config() == ORIGINAL_CONFIG


@pytest.mark.parametrize(("platform", "expected"), [("linux", 16), ("darwin", 4), ("win32", 4)])
def test_fewer_workers_load_images_where_they_are_spawned(monkeypatch, platform, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    assert read_config()["NUM_WORKERS"] == expected


def test_config_names_a_device_that_exists():
    device = torch.device(read_config()["DEVICE"])
    assert torch.zeros(1, device=device).device.type == device.type
