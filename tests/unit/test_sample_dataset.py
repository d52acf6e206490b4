"""The drawn sample: Food-11's layout, the same for a seed, and never a half or over another."""

import os
import random

import numpy as np
import pytest
from helpers import read_tree
from PIL import Image

from pyimagesearch import config
from pyimagesearch.support import sample_dataset
from pyimagesearch.support.sample_dataset import DISHES, SAMPLE_SIZE, draw_dataset, draw_dish


@pytest.fixture(autouse=True)
def quickDishes(monkeypatch):
    """Have draw_dataset() draw few dishes of one random colour, as all take minutes."""
    counts = {"training": 2, "validation": 1, "evaluation": 1}
    monkeypatch.setattr(sample_dataset, "SAMPLE_COUNTS", counts)
    monkeypatch.setattr(sample_dataset, "draw_dish", draw_quickly)


def draw_quickly(label, rng):
    return Image.new("RGB", (8, 8), tuple(rng.randbytes(3)))


@pytest.mark.parametrize("label", DISHES)
def test_dishes_of_a_class_differ_and_are_the_same_for_a_seed(label):
    (dish, again, other) = (draw_dish(label, random.Random(seed)) for seed in (1, 1, 2))
    assert (dish.mode, dish.size) == ("RGB", (SAMPLE_SIZE, SAMPLE_SIZE))
    assert dish.tobytes() == again.tobytes()
    assert np.mean(np.asarray(dish) != np.asarray(other)) > 0.5


def test_the_sample_is_food11_in_its_layout_and_the_same_for_a_seed():
    assert list(DISHES) == config.CLASSES
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        draw_dataset(folder, seed)
    for split, count in sample_dataset.SAMPLE_COUNTS.items():
        names = {f"{i}_{number}.jpg" for i in range(11) for number in range(count)}
        assert set(os.listdir(f"one/{split}")) == names
    assert read_tree("one") == read_tree("again")
    # no image is in two splits, or drawn for two seeds
    assert len({*read_tree("one").values(), *read_tree("other").values()}) == 88
    # only a complete sample has its name
    assert sorted(os.listdir()) == ["again", "one", "other"]


def test_a_drawing_that_was_killed_is_no_data_set_and_can_be_done_again(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(sample_dataset, "draw_dish", lambda label, rng: 1 / 0)
        draw_dataset("Food-11", seed=42)
    assert not os.path.exists("Food-11")
    draw_dataset("Food-11", seed=42)
    assert os.listdir(".") == ["Food-11"]
    # but never over what is there
    with pytest.raises(FileExistsError):
        draw_dataset("Food-11", seed=42)
