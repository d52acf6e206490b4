"""The class of an image, from its folder or its name."""

import os
from unittest.mock import Mock

from pyimagesearch import config, dataset_checks
from pyimagesearch.cli import UserError
from pyimagesearch.dataset_checks import get_target

import pytest


@pytest.mark.parametrize("name", "11_0.jpg -1_0.jpg 1.5_0.jpg _0.jpg photo.jpg 3.jpg".split())
def test_a_name_without_a_class_index_is_said_with_the_indices_there_are(name):
    with pytest.raises(UserError, match="name .* 0 to 10"):
        get_target(os.path.join("photos", name), "photos")


@pytest.mark.parametrize("folder", "Pizza Pasta Bread2 Bréad trip/Bread Noodles".split())
def test_a_folder_that_is_no_class_is_none_of_a_similar_name(folder):
    with pytest.raises(UserError, match="folder .* CLASSES"):
        # 0_0: beside the index the folder decides
        get_target(os.path.join("photos", folder, "0_0.jpg"), "photos")


def test_a_thousand_classes_do_not_make_each_image_slow(monkeypatch):
    config.CLASSES = [f"class {number}" for number in range(1000)]
    normalize_name = Mock(wraps=dataset_checks.normalize_name)
    monkeypatch.setattr(dataset_checks, "normalize_name", normalize_name)
    for number in range(1000):
        path = os.path.join("photos", f"Class-{number}", "album", "1.jpg")
        assert get_target(path, "photos")[0] == f"class {number}"
    # each label once, each image's folders once; all labels for each image would be a million
    assert normalize_name.call_count <= 4000
