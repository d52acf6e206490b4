"""Random numbers that follow from SEED, epoch and image, and leave the script's own alone."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import PROJECT
from torchvision import transforms

from pyimagesearch.support.seeding import EpochSampler, hash_number, seeded


def draw_numbers():
    """Return a number of each generator that augmentations draw from."""
    return torch.rand(1).item(), random.random(), np.random.rand()


def test_a_seed_repeats_the_numbers_of_all_generators_and_another_gives_others():
    with seeded(7):
        first = draw_numbers()
    with seeded(7):
        again = draw_numbers()
    with seeded(8):
        other = draw_numbers()
    assert again == first
    for one, two in zip(first, other, strict=True):
        assert one != two


@pytest.mark.parametrize("error", [False, True])
def test_the_generators_of_a_script_are_left_as_they_were(error):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw_numbers()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    try:
        with seeded(7):
            draw_numbers()
            if error:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert draw_numbers() == expected


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_any_number_of_the_hash_is_a_seed(seed):
    with seeded(seed):
        draw_numbers()


def toss_number(image):
    """Stand for an augmentation of the user's own, written with numpy."""
    return np.random.rand()


@pytest.mark.parametrize(
    "augment",
    [
        transforms.RandomChoice([transforms.Lambda(lambda x, n=n: n) for n in range(1000)]),
        transforms.RandomOrder([transforms.Lambda(lambda x, n=n: [*x, n]) for n in range(20)]),
        transforms.Lambda(toss_number),
    ],
    ids=["RandomChoice", "RandomOrder", "numpy"],
)
def test_augmentations_of_any_generator_repeat(augment):
    found = []
    for seed in (1, 2, 1, 2):
        with seeded(seed):
            found.append(augment([]))
    assert found[:2] == found[2:]
    assert found[0] != found[1]


def test_a_hash_is_the_same_on_any_machine_and_in_any_process():
    values = ("split", 42, "2023/pâté.jpg")
    number = hash_number(*values)
    assert number == 3291580170
    assert 0 <= number < 2**32
    code = f"from pyimagesearch.support.seeding import hash_number\nprint(hash_number(*{values!r}))"
    command = [sys.executable, "-c", code]
    # Python's own hash() of text differs from process to process
    assert int(subprocess.check_output(command, cwd=PROJECT)) == number


def test_values_that_differ_in_anything_have_another_hash():
    values = [("order", 42), ("split", 42), ("order", 43), (42, "order"), ("order", 42, 0)]
    values += [("split", 42, "a.jpg"), ("split", 42, "b.jpg"), ("split", 4, "a.jpg")]
    assert len({hash_number(*value) for value in values}) == len(values)
    # a name that is no text
    hash_number("split", 42, "no text \udcff.jpg")


def list_orders(seed, numEpochs):
    """Return the orders of the images in the first epochs."""
    sampler = EpochSampler(range(20), worldSize=1, rank=0, seed=seed)
    return [tuple(index for _, index in sampler) for _ in range(numEpochs)]


def test_neighbouring_seeds_have_no_order_in_common():
    orders = []
    for seed in range(5):
        orders += list_orders(seed, numEpochs=5)
    assert len(set(orders)) == 25


def test_neighbouring_seeds_epochs_and_images_have_no_augmentation_in_common():
    seeds = []
    for seed in range(5):
        sampler = EpochSampler(range(20), worldSize=1, rank=0, seed=seed)
        for _ in range(5):
            seeds += [number for number, _ in sampler]
    assert len(set(seeds)) == 5 * 5 * 20


def test_the_epoch_advances_at_each_pass_and_can_be_set():
    first = list_orders(7, numEpochs=3)
    assert list_orders(7, numEpochs=3) == first
    sampler = EpochSampler(range(20), worldSize=1, rank=0, seed=7)
    sampler.set_epoch(2)
    assert tuple(index for _, index in sampler) == first[2]
