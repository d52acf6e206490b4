"""The data loaders: which images, in what order and shares, and how they are augmented."""

import os
import shutil
import zlib
from pathlib import Path

from pyimagesearch import config, create_dataloaders, devices
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_classes, get_dataloader

import pytest
import torch
from helpers import CLASSES, draw_class_folders, draw_image, run_python
from torchvision import datasets, transforms


def draw(count, classes=CLASSES):
    """Draw a prepared data set with so many training images of each class."""
    draw_class_folders(classes=classes, counts=(count, 1, 1))
    (config.CLASSES, config.IMAGE_SIZE) = (list(classes), 32)


def test_loader_yields_normalized_images_and_classes_in_order_unless_it_shuffles():
    draw(12)
    transform = create_dataloaders.test_transform()
    (ds, ordered) = get_dataloader(config.TRAIN, transform, bs=5, shuffle=False)
    assert isinstance(ds, datasets.ImageFolder)
    assert ds.imgs == sorted(ds.imgs)
    batches = list(ordered)
    assert [len(y) for _, y in batches] == [5] * 7 + [1]
    assert torch.cat([y for _, y in batches]).tolist() == ds.targets
    (x, y) = batches[0]
    assert (x.shape, x.dtype, y.dtype) == ((5, 3, 32, 32), torch.float32, torch.int64)
    # between what black and white become
    assert (0 - 0.485) / 0.229 - 1e-5 <= x.min() < -1
    assert 1 < x.max() <= (1 - 0.406) / 0.225 + 1e-5
    (_, shuffled) = get_dataloader(config.TRAIN, transform, bs=5)
    labels = torch.cat([y for _, y in shuffled]).tolist()
    assert labels != ds.targets
    assert sorted(labels) == ds.targets
    # an ImageFolder like any other
    assert [label for _, label in ds] == ds.targets


def test_an_epoch_can_be_repeated_by_any_number_of_workers(monkeypatch):
    draw(4)
    augment = transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()])
    passes = []
    before = torch.get_rng_state()
    for method, numWorkers, first in (("", 0, 0), ("fork", 2, 0), ("fork", 2, 1), ("spawn", 1, 0)):
        config.NUM_WORKERS = numWorkers
        monkeypatch.setattr(create_dataloaders, "START_METHOD", method)
        (_, loader) = get_dataloader(config.TRAIN, augment, bs=5)
        loader.sampler.set_epoch(first)
        passes.append([torch.cat([x for x, _ in loader]) for _ in range(2)])
    ((one, two), forked, (later, _), spawned) = passes
    for other in (forked, spawned):
        assert torch.equal(one, other[0])
        assert torch.equal(two, other[1])
    assert torch.equal(two, later)
    assert not torch.equal(one, two)
    # nor are the script's own random numbers used
    assert torch.equal(torch.get_rng_state(), before)


def test_the_augmentation_of_an_image_differs_between_epochs_and_between_seeds():
    draw(4)

    def toss(image):
        # which image it is, and a random number
        return torch.tensor([zlib.crc32(image.tobytes()), torch.rand(1).item()], dtype=float)

    found = []
    for seed in (1, 2):
        config.SEED = seed
        (_, loader) = get_dataloader(config.TRAIN, toss, bs=5)
        found += [dict(torch.cat([x for x, _ in loader]).tolist()) for _ in range(2)]
    assert len(found[0]) == 12
    assert all(one.keys() == found[0].keys() for one in found)
    assert len({number for one in found for number in one.values()}) == 48


@pytest.mark.parametrize(("count", "worldSize"), [(12, 2), (12, 3), (11, 3), (13, 4), (1, 4)])
def test_processes_share_the_batches_of_one(monkeypatch, count, worldSize):
    draw(count, classes=["Egg"])
    # some processes have no image to evaluate, and a loader all the same
    config.NUM_WORKERS = 2

    def get_batches(rank, worldSize, shuffle, epoch=0):
        monkeypatch.setattr(devices, "get_rank", lambda: rank)
        monkeypatch.setattr(devices, "get_world_size", lambda: worldSize)
        (_, loader) = get_dataloader(config.TRAIN, None, bs, shuffle)
        return [list(loader.batch_sampler) for _ in range(epoch + 1)][epoch]

    bs = 2 * worldSize
    # evaluation: every image once
    shares = [get_batches(rank, worldSize, shuffle=False) for rank in range(worldSize)]
    places = [list(range(rank, count, worldSize)) for rank in range(worldSize)]
    assert [sum(batches, []) for batches in shares] == places
    # training: equal shares, which make up the batches of one process with the same batch size
    for epoch in range(2):
        shares = [get_batches(rank, worldSize, True, epoch) for rank in range(worldSize)]
        assert len({str([len(batch) for batch in share]) for share in shares}) == 1
        whole = get_batches(0, 1, True, epoch)
        together = [sorted(sum(batch, [])) for batch in zip(*shares, strict=True)]
        assert together[:-1] == [sorted(batch) for batch in whole[: len(together) - 1]]
        # a repeated image is one of the epoch, with the same augmentation
        assert set(sum(together, [])) == set(sum(whole, []))
        assert 0 <= sum(map(len, together)) - count < worldSize


def test_workers_stay_between_epochs_and_are_no_more_than_batches(monkeypatch):
    draw(4)
    config.NUM_WORKERS = 4
    (_, loader) = get_dataloader(config.TRAIN, lambda image: torch.tensor(os.getpid()), bs=6)
    (first, second) = (set(torch.cat([x for x, _ in loader]).tolist()) for _ in range(2))
    assert len(first) == 2
    assert first == second
    # the processes of a machine share them
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert get_dataloader(config.TRAIN, None, bs=1)[1].num_workers == 2


def test_memory_is_pinned_for_cuda_and_for_nothing_else():
    draw(1)
    for name in ("cuda", "cuda:1", "cpu", "mps"):
        config.DEVICE = torch.device(name)
        assert get_dataloader(config.TRAIN, None, bs=1)[1].pin_memory == name.startswith("cuda")


def test_large_photographs_are_decoded_at_the_scale_of_image_size():
    draw(1)
    draw_image("dataset/training/Bread/0.jpg", 3, size=(1600, 1200))
    config.IMAGE_SIZE = 64
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert ds[0][0].size == (400, 300)


def test_classes_are_named_and_ordered_as_an_image_folder_does():
    config.CLASSES = ["Soup", "Crème", "Noodles/Pasta"]
    # as a Mac stores it
    for folder in ("Soup", "Cre\u0300me", "Noodles/Pasta"):
        draw_image(Path("dataset/training", folder, "0.jpg"), 0)
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert ds.classes == ["Cre\u0300me", "Noodles", "Soup"]
    assert get_classes() == ["Crème", "Noodles", "Soup"]


def test_a_missing_folder_is_an_error_with_the_full_path_that_was_looked_for():
    with pytest.raises(UserError) as caught:
        get_dataloader(config.TRAIN, None, bs=1)
    for text in (os.path.abspath(config.TRAIN), "BASE_PATH", "prepare_dataset.py"):
        assert text in str(caught.value)


def test_the_loader_takes_the_images_that_prepare_copies_and_no_hidden_ones():
    draw(1)
    os.mkdir("dataset/training/Bread/.thumbnails")
    for name in ("._0.jpg", "1.jfif", ".thumbnails/0.jpg"):
        shutil.copy("dataset/training/Bread/0.jpg", f"dataset/training/Bread/{name}")
    (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
    assert [os.path.basename(path) for path, label in ds.imgs if label == 0] == ["0.jpg", "1.jfif"]


LONG_TMPDIR = """
from pyimagesearch import config, create_dataloaders
(config.CLASSES, config.NUM_WORKERS) = (["Bread", "Egg", "Soup"], 1)
transform = create_dataloaders.test_transform()
(ds, loader) = create_dataloaders.get_dataloader(config.TRAIN, transform, bs=2)
print(sum(len(y) for _, y in loader))
"""


def test_workers_send_their_images_where_the_temporary_folder_has_a_very_long_name():
    draw(1)
    folder = Path("a" * 60, "b" * 60).absolute()
    folder.mkdir(parents=True)
    # a worker that cannot send leaves the script waiting for ever
    run = run_python("-c", LONG_TMPDIR, env={"TMPDIR": str(folder)}, timeout=60)
    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr
