"""Which tests need how many GPUs, and the settings and images of all of them."""

import os
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, draw_class_folders

from pyimagesearch import config

# TEST_DEVICE=cpu runs these tests on a machine without a GPU, to try the tests themselves
DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))


def pytest_collection_modifyitems(items):
    """Skip what needs GPUs that are not there."""
    count = torch.cuda.device_count() if DEVICE.type == "cuda" else 1
    for item in items:
        if item.path.parent == Path(__file__).parent:
            needed = 2 if item.get_closest_marker("several") else 1
            item.add_marker(pytest.mark.skipif(count < needed, reason=f"needs {needed} GPUs"))


@pytest.fixture(autouse=True)
def device(fresh_start, monkeypatch):
    """Run on the GPUs, in full fp32 where a test asks for fp32; return the device."""
    (config.DEVICE, config.CLASSES, config.IMAGE_SIZE) = (DEVICE, list(CLASSES), 64)
    draw_class_folders(counts=(8, 4, 4))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return DEVICE
