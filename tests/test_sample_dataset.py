import os
import random
from pathlib import Path

from pyimagesearch import config, sample_dataset
from pyimagesearch.create_dataloaders import load_image
from pyimagesearch.sample_dataset import DISHES, SAMPLE_SIZE, draw_dataset, draw_dish

import numpy as np
import pytest


@pytest.fixture
def fewDishes(monkeypatch):
    """Draw few of them, as a test takes no time for all."""
    counts = {"training": 2, "validation": 1, "evaluation": 1}
    monkeypatch.setattr(sample_dataset, "SAMPLE_COUNTS", counts)


def test_there_is_a_dish_for_each_label_of_food11_in_its_order():
    assert list(DISHES) == config.CLASSES


@pytest.mark.parametrize("label", DISHES)
def test_dishes_of_a_kind_differ_and_are_the_same_for_the_same_seed(label):
    (dish, again, other) = (draw_dish(label, random.Random(seed)) for seed in (1, 1, 2))
    assert (dish.mode, dish.size) == ("RGB", (SAMPLE_SIZE, SAMPLE_SIZE))
    assert dish.tobytes() == again.tobytes()
    assert np.mean(np.asarray(dish) != np.asarray(other)) > 0.5


def test_draw_dataset_has_the_layout_of_food11(fewDishes):
    draw_dataset("Food-11", seed=42)
    for split, count in sample_dataset.SAMPLE_COUNTS.items():
        names = {f"{index}_{number}.jpg" for index in range(11) for number in range(count)}
        assert set(os.listdir(Path("Food-11", split))) == names
    assert load_image("Food-11/training/10_1.jpg").size == (SAMPLE_SIZE, SAMPLE_SIZE)
    assert os.listdir(".") == ["Food-11"]


def test_draw_dataset_depends_on_the_seed_alone(fewDishes):
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        draw_dataset(folder, seed)
    image = Path("training/3_0.jpg")
    assert ("one" / image).read_bytes() == ("again" / image).read_bytes()
    assert ("one" / image).read_bytes() != ("other" / image).read_bytes()


def test_a_drawing_that_was_killed_leaves_no_data_set_and_can_be_done_again(fewDishes, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(sample_dataset, "draw_dish", lambda label, rng: 1 / 0)
        draw_dataset("Food-11", seed=42)
    assert not os.path.exists("Food-11")
    draw_dataset("Food-11", seed=42)
    assert os.listdir(".") == ["Food-11"]


def test_draw_dataset_never_replaces_what_is_there(fewDishes):
    os.mkdir("Food-11")
    with pytest.raises(FileExistsError):
        draw_dataset("Food-11", seed=42)
    assert os.listdir("Food-11") == []
