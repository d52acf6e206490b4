"""The data loaders: which images, in what order and shares, and how they are augmented."""

import multiprocessing
import os
import random
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import CLASSES, draw_class_folders, draw_image
from torchvision import datasets, transforms

from pyimagesearch import config
from pyimagesearch.create_dataloaders import (
    eval_transform,
    gather_in_order,
    get_dataloader,
    mean_over_images,
)
from pyimagesearch.support import processes, workers
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.weights import TrainedOn


def draw(count, classes=CLASSES):
    """Draw a prepared data set with so many training images of each class."""
    draw_class_folders(classes=classes, counts=(count, 1, 1))
    (config.CLASSES, config.IMAGE_SIZE) = (list(classes), 32)


def load_all(loader):
    """Return all inputs of a loader, in its order."""
    return torch.cat([x for x, _ in loader])


def test_the_transform_resizes_as_it_is_told_whatever_config_says():
    draw_image("lunch.png", 3, size=(40, 32))
    config.IMAGE_SIZE = 8
    with datasets.folder.Image.open("lunch.png") as image:
        x = eval_transform(24)(image)
        expected = transforms.PILToTensor()(image.resize((24, 24), 2))
    # bytes, of which a batch is a quarter of what floats are
    assert x.dtype == torch.uint8
    assert torch.equal(x, expected)


def test_loader_yields_images_and_classes_in_order_unless_it_shuffles():
    draw(12)
    transform = eval_transform(32)
    (ds, ordered) = get_dataloader(config.TRAIN, transform, bs=5, shuffle=False)
    assert isinstance(ds, datasets.ImageFolder)
    assert ds.imgs == sorted(ds.imgs)
    batches = list(ordered)
    assert [len(y) for _, y in batches] == [5] * 7 + [1]
    assert torch.cat([y for _, y in batches]).tolist() == ds.targets
    (x, y) = batches[0]
    assert (x.shape, x.dtype, y.dtype) == ((5, 3, 32, 32), torch.uint8, torch.int64)
    assert x.min() < 60
    assert x.max() > 200
    (_, shuffled) = get_dataloader(config.TRAIN, transform, bs=5)
    labels = torch.cat([y for _, y in shuffled]).tolist()
    assert labels != ds.targets
    assert sorted(labels) == ds.targets
    # an ImageFolder like any other
    assert [label for _, label in ds] == ds.targets


def augment_with_all_generators(image):
    """Return what torch's, numpy's and Python's generators give for an image."""
    numbers = [torch.rand(1).item(), np.random.rand(), random.random()]
    return torch.tensor([zlib.crc32(image.tobytes()), *numbers], dtype=float)


@pytest.mark.parametrize(
    "augment",
    [
        transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()]),
        augment_with_all_generators,
    ],
    ids=["torchvision", "numpy"],
)
def test_an_epoch_can_be_repeated_by_any_number_of_workers(monkeypatch, augment):
    draw(4)
    passes = []
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    for method, numWorkers, first in (("", 0, 0), ("fork", 2, 0), ("fork", 2, 1), ("spawn", 1, 0)):
        config.NUM_WORKERS = numWorkers
        monkeypatch.setattr(workers, "START_METHOD", method)
        (_, loader) = get_dataloader(config.TRAIN, augment, bs=5)
        loader.sampler.set_epoch(first)
        passes.append([load_all(loader), load_all(loader)])
    ((one, two), forked, (later, _), spawned) = passes
    for other in (forked, spawned):
        assert torch.equal(one, other[0])
        assert torch.equal(two, other[1])
    assert torch.equal(two, later)
    assert not torch.equal(one, two)
    # nor are the script's own random numbers used
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])


def test_the_augmentation_of_an_image_differs_between_epochs_and_between_seeds():
    draw(4)
    found = []
    for seed in (1, 2):
        config.SEED = seed
        (_, loader) = get_dataloader(config.TRAIN, augment_with_all_generators, bs=5)
        for _ in range(2):
            # by which image it is
            rows = load_all(loader).tolist()
            found.append({image: tuple(numbers) for image, *numbers in rows})
    images = found[0].keys()
    assert len(images) == 12
    for epoch in found:
        assert epoch.keys() == images
    for generator in range(3):
        numbers = set()
        for epoch in found:
            numbers |= {drawn[generator] for drawn in epoch.values()}
        assert len(numbers) == 48


@pytest.mark.parametrize(("count", "worldSize"), [(12, 2), (12, 3), (11, 3), (13, 4), (1, 4)])
def test_processes_share_the_batches_of_one(monkeypatch, count, worldSize):
    draw(count, classes=["Egg"])
    # some processes have no image to evaluate, and a loader all the same
    config.NUM_WORKERS = 2
    bs = 2 * worldSize

    def get_batches(rank, worldSize, shuffle, epoch=0):
        monkeypatch.setattr(processes, "get_rank", lambda: rank)
        monkeypatch.setattr(processes, "get_world_size", lambda: worldSize)
        monkeypatch.setattr(processes, "check_same", lambda name, items: None)
        (_, loader) = get_dataloader(config.TRAIN, None, bs, shuffle)
        for _ in range(epoch + 1):
            batches = list(loader.batch_sampler)
        return batches

    # evaluation: every image once
    for rank in range(worldSize):
        share = sum(get_batches(rank, worldSize, shuffle=False), [])
        assert share == list(range(rank, count, worldSize))
    # training: equal shares, which make up the batches of one process with the same batch size
    for epoch in range(2):
        shares = [get_batches(rank, worldSize, True, epoch) for rank in range(worldSize)]
        sizes = [[len(batch) for batch in share] for share in shares]
        assert sizes == [sizes[0]] * worldSize
        whole = get_batches(0, 1, True, epoch)
        together = [sorted(sum(batch, [])) for batch in zip(*shares, strict=True)]
        assert together[:-1] == [sorted(batch) for batch in whole[: len(together) - 1]]
        # a repeated image is one of the epoch, with the same augmentation
        assert set(sum(together, [])) == set(sum(whole, []))
        assert 0 <= sum(map(len, together)) - count < worldSize


@pytest.mark.parametrize("worldSize", [1, 2])
def test_several_processes_compare_the_images_of_their_machines(monkeypatch, worldSize):
    draw(2)
    compared = []
    monkeypatch.setattr(processes, "get_world_size", lambda: worldSize)
    monkeypatch.setattr(processes, "check_same", lambda *args: compared.append(args))
    get_dataloader(config.TRAIN, None, bs=2)
    assert len(compared) == worldSize - 1
    for name, items in compared:
        assert name == config.TRAIN
        size = os.path.getsize("dataset/training/Bread/0.jpg")
        assert items[0] == (os.path.join("Bread", "0.jpg"), size)
        assert len(items) == 6


def test_other_images_of_a_machine_are_said_before_its_classes(monkeypatch):
    # a machine without a class: the others would wait for its answer, were it refused by itself
    draw(1)
    shutil.rmtree("dataset/training/Soup")
    compared = Mock(side_effect=UserError("other images"))
    monkeypatch.setattr(processes, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes, "check_same", compared)
    with pytest.raises(UserError, match="other images"):
        get_dataloader(config.TRAIN, None, bs=2)


def test_workers_stay_between_epochs_and_are_no_more_than_batches(monkeypatch):
    draw(4)
    config.NUM_WORKERS = 4
    (_, loader) = get_dataloader(config.TRAIN, lambda image: torch.tensor([os.getpid()]), bs=6)
    first = set(load_all(loader).flatten().tolist())
    second = set(load_all(loader).flatten().tolist())
    assert len(first) == 2
    assert first == second
    # the processes of a machine share them
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert get_dataloader(config.TRAIN, None, bs=1)[1].num_workers == 2
    # one may say how many
    assert get_dataloader(config.TRAIN, None, bs=1, numWorkers=0)[1].num_workers == 0


def note_load(image):
    """Note in a file that an image was loaded; return by which process."""
    with Path("loads").open("a") as file:
        file.write("1")
    return torch.tensor([os.getpid()])


@pytest.mark.parametrize(
    ("name", "method", "numEarly"),
    # a GPU trains in its own memory, and spawned workers share none
    [("cpu", "fork", 2), ("mps", "fork", 0), ("cpu", "spawn", 0)],
)
def test_on_a_cpu_the_workers_of_an_evaluation_start_before_the_training(
    monkeypatch, name, method, numEarly
):
    draw(4)
    config.NUM_WORKERS = 2
    config.DEVICE = torch.device(name)
    monkeypatch.setattr(workers, "START_METHOD", method)
    get_dataloader(config.TRAIN, note_load, bs=6)
    (ds, validation) = get_dataloader(config.TRAIN, note_load, bs=6, shuffle=False)
    early = {child.pid for child in multiprocessing.active_children()}
    assert len(early) == numEarly
    assert (len(validation.sampler), len(validation)) == (len(ds), 2)
    for _ in range(2):
        found = load_all(validation).flatten().tolist()
        assert len(found) == len(ds)
        if early:
            assert set(found) == early
    # they have loaded nothing in vain
    assert Path("loads").stat().st_size == 2 * len(ds)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cpu", "mps"])
def test_memory_is_pinned_for_cuda_and_for_nothing_else(name):
    draw(1)
    # as text too, as one's own code may set it
    for device in (torch.device(name), name):
        config.DEVICE = device
        assert get_dataloader(config.TRAIN, None, bs=1)[1].pin_memory == name.startswith("cuda")


def test_large_photographs_are_decoded_at_the_scale_of_image_size():
    draw(1)
    draw_image("dataset/training/Bread/0.jpg", 3, size=(1600, 1200))
    config.IMAGE_SIZE = 64
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert ds[0][0].size == (400, 300)
    # that of the weights, where they are given
    trainedOn = TrainedOn(CLASSES, 128, config.MEAN, config.STD)
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1, trainedOn=trainedOn)
    assert ds[0][0].size == (800, 600)


def test_classes_are_named_and_ordered_as_an_image_folder_does():
    config.CLASSES = ["Soup", "Crème", "Noodles/Pasta"]
    # as a Mac stores it
    for folder in ("Soup", "Cre\u0300me", "Noodles/Pasta"):
        draw_image(Path("dataset/training", folder, "0.jpg"), 0)
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert ds.classes == ["Cre\u0300me", "Noodles", "Soup"]


@pytest.mark.parametrize(
    "classes", [["Bread", "Egg"], ["Bread", "Egg", "Pie"], ["Egg", "Bread", "Soup", "Pie"]]
)
def test_other_classes_than_those_of_the_network_are_refused_with_both(classes):
    draw(1)
    config.CLASSES = classes
    with pytest.raises(UserError, match="classes Bread, Egg, Soup, but config.py has") as caught:
        get_dataloader(config.TRAIN, None, bs=1)
    assert f"has {', '.join(sorted(classes))}; " in str(caught.value)
    # nothing of config counts where the weights say their classes
    trainedOn = TrainedOn(CLASSES, 32, config.MEAN, config.STD)
    get_dataloader(config.TRAIN, None, bs=1, trainedOn=trainedOn)
    config.CLASSES = list(CLASSES)
    with pytest.raises(
        UserError, match="the weights have .*another BASE_PATH, or take other weights"
    ):
        trainedOn = trainedOn._replace(classes=classes)
        get_dataloader(config.TRAIN, None, bs=1, trainedOn=trainedOn)


def test_a_missing_folder_is_an_error_that_names_it():
    with pytest.raises(FileNotFoundError, match=config.TRAIN):
        get_dataloader(config.TRAIN, None, bs=1)


def test_the_loader_takes_the_images_that_prepare_copies_and_no_hidden_ones():
    draw(1)
    os.mkdir("dataset/training/Bread/.thumbnails")
    os.makedirs("dataset/training/Bread/@eaDir/0.jpg")
    names = ("._0.jpg", "1.jfif", ".thumbnails/0.jpg", "@eaDir/0.jpg/SYNOFILE_THUMB_M.jpg")
    for name in names:
        shutil.copy("dataset/training/Bread/0.jpg", f"dataset/training/Bread/{name}")
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert [os.path.basename(path) for path, label in ds.imgs if label == 0] == ["0.jpg", "1.jfif"]


@pytest.mark.parametrize("hasImage", [True, False])
@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "@eaDir", "#recycle", "$RECYCLE.BIN"])
def test_a_hidden_or_system_folder_beside_the_class_folders_is_no_class(folder, hasImage):
    draw(1)
    # Jupyter makes the first, a disk on a network or Windows the others
    os.mkdir(f"dataset/training/{folder}")
    if hasImage:
        draw_image(f"dataset/training/{folder}/0-checkpoint.jpg", 0)
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert ds.classes == CLASSES
    assert ds.class_to_idx == {"Bread": 0, "Egg": 1, "Soup": 2}
    assert ds.targets == [0, 1, 2]


def test_means_are_over_the_images_of_all_processes(monkeypatch):
    loader = SimpleNamespace(sampler=range(3))
    # alone, from tensors that are on a device
    assert mean_over_images(torch.tensor(6.0), torch.tensor(3), loader) == (2, 1)
    others = [(1.0, 0.0, 2), (0.0, 0.0, 0)]
    monkeypatch.setattr(processes, "all_gather", lambda value: [value, *others])
    assert mean_over_images(6, 3, loader) == (7 / 5, 3 / 5)


def test_numbers_of_all_processes_are_gathered_in_the_order_of_the_images(monkeypatch):
    batches = [torch.tensor([0, 3]), torch.tensor([6])]
    assert gather_in_order(batches) == [0, 3, 6]
    # every third image each; the last process has one less
    monkeypatch.setattr(processes, "all_gather", lambda value: [value, [1, 4, 7], [2, 5]])
    assert gather_in_order(batches) == list(range(8))
    # a process that has none
    monkeypatch.setattr(processes, "all_gather", lambda value: [[0], [1], value])
    assert gather_in_order([]) == [0, 1]
