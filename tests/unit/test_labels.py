"""The names of classes, and the class of an image from its folder."""

import os
from unittest.mock import Mock

import pytest

from pyimagesearch import config
from pyimagesearch.support import labels
from pyimagesearch.support.labels import get_classes, index_labels, normalize_name, split_label
from pyimagesearch.support.plan import Plan, plan_folders


@pytest.mark.parametrize(
    "name", ["Noodles/Pasta", "noodles_pasta", " Noodles-Pasta", "NOODLES pasta"]
)
def test_names_are_compared_without_case_and_kind_of_gap(name):
    assert normalize_name(name) == "noodles_pasta"


def test_names_are_compared_with_accents_composed():
    assert normalize_name("Cre\u0300me") == normalize_name("crème")


def test_classes_are_the_outer_names_of_labels_in_the_order_of_an_image_folder():
    config.CLASSES = ["Soup", "bread", "Noodles/Pasta", "Bread"]
    assert get_classes() == ["Bread", "Noodles", "Soup", "bread"]
    assert get_classes(["b", "a/c"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "label", "name"),
    [
        ("bread/0.jpg", "Bread", "0.jpg"),
        ("Bread/2023/0.jpg", "Bread", "2023/0.jpg"),
        ("noodles/pasta/2023/0.jpg", "Noodles/Pasta", "2023/0.jpg"),
        ("noodles-pasta/0.jpg", "Noodles/Pasta", "0.jpg"),
        ("trip/bread/0.jpg", None, "trip/bread/0.jpg"),
        # a file named like a class is in no folder of it
        ("bread", None, "bread"),
    ],
)
def test_the_class_folder_gives_the_label_and_albums_in_it_belong_to_the_name(path, label, name):
    path = path.replace("/", os.sep)
    assert split_label(path, index_labels()) == (label, name.replace("/", os.sep))


@pytest.mark.parametrize("folder", "Pizza Pasta Bread2 Bréad trip/Bread Noodles".split())
def test_a_folder_that_is_no_class_is_none_of_a_similar_name(folder):
    # 0_0: beside the index the folder decides
    path = os.path.join(folder, "0_0.jpg")
    assert split_label(path, index_labels()) == (None, path)


def test_a_thousand_classes_do_not_make_each_image_slow(monkeypatch):
    config.CLASSES = [f"class {number}" for number in range(1000)]
    # two albums, as a folder with one image would hide what is done for each image
    for number in range(1000):
        for album in ("a", "b"):
            os.makedirs(os.path.join("photos", f"Class-{number}", album))
            open(os.path.join("photos", f"Class-{number}", album, "1.jpg"), "w").close()
    counter = Mock(wraps=normalize_name)
    monkeypatch.setattr(labels, "normalize_name", counter)
    found = Plan(["photos"] * 3, [], {}, {}, {"SEED": None, "copies": {}})
    plan_folders(found, read_label=None)
    assert len(found.photographs) == 2000
    for photograph in found.photographs:
        folder = photograph.path.split(os.sep)[1]
        assert photograph.label == folder.lower().replace("-", " ")
    # each label once, each image's folders once; all labels for each image would be two million
    assert counter.call_count <= 4000
