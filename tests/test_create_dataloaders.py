import inspect
import os
import re
import signal
import time
from pathlib import Path

import distributed_inference
import train_distributed
from pyimagesearch import checkpoint, config, create_dataloaders, devices, food_classifier, images
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.images import load_image

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    PROJECT,
    TinyNet,
    draw_class_folders,
    draw_image,
    read_forked,
    run_beside,
    run_forked,
    run_script,
    start_forked,
    wait_for_line,
)
from PIL import Image
from torchvision import datasets


def test_get_dataloader_has_the_signature_of_the_tutorial():
    parameters = inspect.signature(get_dataloader).parameters
    assert list(parameters) == ["rootDir", "transforms", "bs", "shuffle"]
    assert parameters["shuffle"].default is True


@pytest.mark.parametrize("numWorkers", [0, 2])
def test_loader_yields_normalized_float_images_and_class_indices(numWorkers):
    draw_class_folders(Path("dataset"), counts=(3, 1, 1))
    (config.NUM_WORKERS, config.IMAGE_SIZE) = (numWorkers, 48)
    (ds, loader) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=4)
    assert isinstance(ds, datasets.ImageFolder)
    batches = list(loader)
    assert [len(y) for _, y in batches] == [4, 4, 1]
    (x, y) = batches[0]
    assert x.shape == (4, 3, 48, 48)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    # what black and white become
    assert x.min() >= (0 - 0.485) / 0.229 - 1e-5
    assert x.max() <= (1 - 0.406) / 0.225 + 1e-5
    assert x.min() < -1 < 1 < x.max()


def test_loader_keeps_the_order_of_paths_unless_it_shuffles():
    draw_class_folders(Path("dataset"), counts=(12, 1, 1))
    transform = create_dataloaders.test_transform()
    (ds, ordered) = get_dataloader(config.TRAIN, transform, bs=5, shuffle=False)
    assert torch.cat([y for _, y in ordered]).tolist() == ds.targets
    (_, shuffled) = get_dataloader(config.TRAIN, transform, bs=5)
    labels = torch.cat([y for _, y in shuffled]).tolist()
    assert labels != ds.targets
    assert sorted(labels) == ds.targets


def test_an_epoch_can_be_repeated_by_any_number_of_workers():
    draw_class_folders(Path("dataset"), counts=(4, 1, 1))
    config.IMAGE_SIZE = 32
    passes = []
    for numWorkers, first in ((0, 0), (2, 0), (2, 1)):
        config.NUM_WORKERS = numWorkers
        torch.rand(numWorkers + 1)
        (_, loader) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=5)
        loader.sampler.set_epoch(first)
        passes += [torch.cat([x for x, _ in loader]) for _ in range(2)]
    assert torch.equal(passes[0], passes[2])
    assert torch.equal(passes[1], passes[3])
    assert torch.equal(passes[1], passes[4])
    assert not torch.equal(passes[0], passes[1])


def test_the_augmentation_of_an_image_differs_between_epochs():
    draw_class_folders(Path("dataset"), counts=(4, 1, 1))
    (ds, loader) = get_dataloader(config.TRAIN, None, bs=5)
    (first, second) = ({index: seed for seed, index in loader.sampler} for _ in range(2))
    assert set(first) == set(second) == set(range(len(ds)))
    assert not set(first.values()) & set(second.values())


def test_loading_without_workers_uses_no_global_random_numbers():
    draw_class_folders(Path("dataset"), counts=(4, 1, 1))
    config.IMAGE_SIZE = 32
    (_, loader) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=5)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "worldSize"), [(12, 2), (12, 3), (11, 3), (13, 4), (1, 4)])
def test_processes_share_the_batches_of_one(monkeypatch, count, worldSize):
    draw_class_folders(Path("dataset"), classes=["Egg"], counts=(count, 1, 1))

    def get_batches(rank, worldSize, shuffle):
        monkeypatch.setattr(devices, "get_rank", lambda: rank)
        monkeypatch.setattr(devices, "get_world_size", lambda: worldSize)
        (_, loader) = get_dataloader(config.TRAIN, None, 2 * worldSize, shuffle)
        return [list(loader.batch_sampler) for _ in range(2)]

    def get_sizes(batches):
        return [len(batch) for batch in batches]

    # evaluation: every image once, the longest share first
    shares = [get_batches(rank, worldSize, shuffle=False)[0] for rank in range(worldSize)]
    places = [i for share in shares for batch in share for i in batch]
    assert sorted(places) == list(range(count))
    assert (
        shares[0]
        == [list(range(count)[::worldSize][i : i + 2]) for i in range(0, count, 2)][
            : len(shares[0])
        ]
    )
    # training: equal shares, which make up the batches of one process with the same batch size
    for epoch in range(2):
        shares = [get_batches(rank, worldSize, shuffle=True)[epoch] for rank in range(worldSize)]
        assert all(get_sizes(share) == get_sizes(shares[0]) for share in shares)
        monkeypatch.setattr(devices, "get_rank", lambda: 0)
        monkeypatch.setattr(devices, "get_world_size", lambda: 1)
        (_, loader) = get_dataloader(config.TRAIN, None, 2 * worldSize)
        loader.sampler.set_epoch(epoch)
        together = [sorted(sum(batch, [])) for batch in zip(*shares, strict=True)]
        whole = list(loader.batch_sampler)
        assert together[: len(whole) - 1] == [sorted(batch) for batch in whole[:-1]]
        assert set(together[-1]) >= set(whole[-1])
        # a repeated image is one of the epoch, with the same augmentation
        items = sum(together, [])
        assert set(items) == set(sum(whole, []))
        assert 0 <= len(items) - count < worldSize


SPAWNING = {"START_METHOD": "spawn", "NUM_WORKERS": 1, "EPOCHS": 1}
FLAGS = "--image-size 64 --local-batch-size 5 --no-pretrained".split()


DRIVER = "tests/killed_training.py"


def train_env(method):
    """Return the variables of DRIVER for a training that nothing kills."""
    return {"KILL_AT": "never:0", "TINY": "yes", "START_METHOD": method}


@run_beside
def spawnedRuns(folder):
    """Train with spawned workers, to the end and with a file that is no image; return the directory
    of the first run, and both runs."""
    flags = [*FLAGS, "--epochs", "1", "--num-workers", "1"]
    (whole, broken) = (folder / "whole", folder / "broken")
    for cwd in (whole, broken):
        draw_class_folders(cwd / "dataset")
    (broken / "dataset/training/Egg/0.jpg").write_text("no image")
    options = {"env": train_env("spawn"), "classes": CLASSES}
    runs = [run_script(PROJECT / DRIVER, *flags, cwd=cwd, **options) for cwd in (whole, broken)]
    return whole, runs


def test_spawned_workers_load_what_forked_ones_do(spawnedRuns):
    (folder, (spawned, _)) = spawnedRuns
    draw_class_folders(Path("dataset"))
    forked = run_forked(DRIVER, *FLAGS, settings=SPAWNING, env=train_env("fork"))
    for run in (spawned, forked):
        assert (run.returncode, run.stderr) == (0, "")
    outs = [
        re.sub("train the model: .*|.*overridden.*", "", run.stdout) for run in (spawned, forked)
    ]
    assert outs[0] == outs[1]
    for path in (config.MODEL_PATH, config.PREDICTIONS_PATH):
        assert Path(path).read_bytes() == Path(folder, path).read_bytes()


def test_an_error_in_a_spawned_worker_ends_in_one_line(spawnedRuns):
    (_, (_, run)) = spawnedRuns
    assert run.returncode == 1
    start = f"[ERROR] {Path('dataset/training/Egg/0.jpg')}: cannot be read as an image ("
    assert run.stderr.startswith(start)
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.5), (signal.SIGINT, 2), (signal.SIGTERM, 1)]
)
def test_a_signal_while_workers_are_spawned_prints_one_line(number, seconds):
    draw_class_folders(Path("dataset"))
    process = start_forked("train_distributed.py", *FLAGS, settings=SPAWNING, before=os.setsid)
    wait_for_line(process, "training the network")
    # in the middle of their imports
    time.sleep(seconds)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    run = read_forked(process)
    assert run.returncode == 128 + number
    lines = [line for line in run.stderr.splitlines() if line]
    assert lines == ["[INFO] interrupted; add --resume to continue after the last completed epoch"]


def test_the_dataset_is_an_image_folder_like_any_other():
    draw_class_folders(Path("dataset"))
    config.IMAGE_SIZE = 32
    (ds, _) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=5)
    assert [label for _, label in ds] == ds.targets
    assert not torch.equal(ds[0][0], ds[0][0])
    with pytest.raises(IndexError):
        ds[len(ds)]


def test_memory_is_pinned_for_cuda_and_for_nothing_else():
    draw_class_folders(Path("dataset"))
    for name in ("cuda", "cuda:1", "cpu", "mps"):
        config.DEVICE = torch.device(name)
        (_, loader) = get_dataloader(config.TRAIN, None, bs=1)
        assert loader.pin_memory == name.startswith("cuda")


def test_transforms_are_those_of_the_tutorial():
    config.IMAGE_SIZE = 48
    normalize = "Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
    # with all their parameters
    assert [str(t) for t in create_dataloaders.train_transform().transforms] == [
        "RandomResizedCrop(size=(48, 48), scale=(0.08, 1.0), ratio=(0.75, 1.3333), "
        "interpolation=bilinear, antialias=True)",
        "RandomHorizontalFlip(p=0.5)",
        "RandomRotation(degrees=[-90.0, 90.0], interpolation=nearest, expand=False, fill=0)",
        "ToTensor()",
        normalize,
    ]
    assert [str(t) for t in create_dataloaders.test_transform().transforms] == [
        "Resize(size=(48, 48), interpolation=bilinear, max_size=None, antialias=True)",
        "ToTensor()",
        normalize,
    ]


def test_validation_and_inference_see_an_image_alike(monkeypatch):
    draw_class_folders(Path("dataset"), counts=(1, 1, 1))
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    seen = []
    for module, name in ((train_distributed, "evaluate"), (distributed_inference, "predict")):
        monkeypatch.setattr(module, name, lambda model, images, *_: seen.append(images) or 1 / 0)
    (config.CLASSES, config.IMAGE_SIZE) = (["Bread", "Egg", "Soup"], 64)
    for module, flags in (
        (train_distributed, "--no-pretrained --num-workers 0"),
        (distributed_inference, ""),
        (distributed_inference, "dataset/evaluation"),
    ):
        checkpoint.save_state(FoodClassifier(TinyNet(), 3).state_dict(), config.MODEL_PATH)
        monkeypatch.setattr("sys.argv", ["script.py", *flags.split()])
        with pytest.raises(ZeroDivisionError):
            module.main()
    (valLoader, fromLoader, fromFiles) = seen
    ((validation, _),) = valLoader
    assert torch.equal(validation, fromFiles[:3])
    for image in validation:
        assert any(torch.equal(image, other) for other in fromLoader)


def test_get_classes_names_and_orders_as_image_folder_does():
    config.CLASSES = ["Soup", "Bread", "Noodles/Pasta"]
    for label in config.CLASSES:
        draw_image(Path("dataset/training") / label / "0.jpg", 0)
    assert create_dataloaders.get_classes() == datasets.ImageFolder(config.TRAIN).classes


def test_load_image_reads_every_mode_as_the_same_rgb():
    grey = np.arange(0, 256, 8, dtype=np.uint8).repeat(32).reshape(32, 32)
    image = Image.fromarray(grey)
    for name, variant in {
        "grey 1.PNG": image,
        "rgba.png": image.convert("RGBA"),
        "palette.png": image.convert("P"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "long.tif": Image.fromarray(grey.astype(np.int32)),
        "float.tif": Image.fromarray((grey / 255).astype(np.float32)),
        "cmyk.tif": image.convert("RGB").convert("CMYK"),
        "größe.bmp": image.convert("RGB"),
    }.items():
        variant.save(name)
        loaded = load_image(name)
        assert loaded.mode == "RGB", name
        assert np.abs(np.asarray(loaded)[:, :, 0].astype(int) - grey).max() <= 1, name


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_load_image_puts_transparent_parts_on_white(mode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((1, 2), (200, 0, 0, 0))
    image.convert(mode).save("part.png")
    loaded = load_image("part.png")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 2)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) != (255, 255, 255)


@pytest.mark.parametrize(
    ("size", "imageSize", "expected"),
    [
        # a phone's picture, at a quarter; its short side keeps 3 * 224 pixels
        ((4032, 3024), 224, (1008, 756)),
        ((1343, 2000), 224, (1343, 2000)),
        ((1344, 2000), 224, (672, 1000)),
        ((512, 384), 224, (512, 384)),
        ((4032, 3024), None, (4032, 3024)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(size, imageSize, expected):
    Image.new("RGB", size, "red").save("large.jpg")
    assert load_image("large.jpg", imageSize).size == expected


def test_the_loader_reads_large_photographs_at_the_scale_of_image_size():
    for name in ("Bread", "Egg"):
        draw_image(Path("dataset/training", name, "0.jpg"), 3, size=(1600, 1200))
    for imageSize, expected in ((64, (400, 300)), (200, (800, 600))):
        config.IMAGE_SIZE = imageSize
        (ds, _) = get_dataloader(config.TRAIN, None, bs=1)
        assert ds[0][0].size == expected


def test_load_image_turns_a_photograph_upright():
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    image.save("turned.jpg", exif=exif)
    assert load_image("turned.jpg").size == (20, 30)


def test_load_image_names_a_broken_file():
    draw_image(Path("whole.jpg"), 0)
    Path("half.jpg").write_bytes(Path("whole.jpg").read_bytes()[:500])
    Path("text.png").write_text("no image")
    Path("empty.png").write_bytes(b"")
    for name in ("half.jpg", "text.png", "empty.png"):
        with pytest.raises(UserError, match=name):
            load_image(name)


def test_a_lack_of_memory_is_not_called_a_broken_image(monkeypatch):
    def fail(path):
        raise MemoryError

    draw_image(Path("whole.jpg"), 0)
    monkeypatch.setattr(images.Image, "open", fail)
    with pytest.raises(MemoryError):
        load_image("whole.jpg")
