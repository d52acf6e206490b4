"""The transform that training and inference share, and the data loaders."""

import math
import os
import sys
import tempfile
import zlib
from functools import partial
from multiprocessing import parent_process

import torch
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

from . import config, devices
from .cli import UserError, in_all_processes, normalize_name
from .images import is_image, load_image

# how workers start: fork is fastest; Windows has only spawn, and fork is unsafe on macOS
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# the sockets through which workers send images have names of at most 107 characters
if START_METHOD == "fork" and len(tempfile.gettempdir()) > 70:
    tempfile.tempdir = "/tmp"


def test_transform():
    """Return the preprocessing of all but training images: PIL image to float (3, H, W)."""
    resize = transforms.Resize((config.IMAGE_SIZE, config.IMAGE_SIZE))
    normalize = transforms.Normalize(mean=config.MEAN, std=config.STD)
    return transforms.Compose([resize, transforms.ToTensor(), normalize])


@in_all_processes
def get_dataloader(rootDir, transforms, bs, shuffle=True):
    """Return (dataset, loader) over the class folders of rootDir.

    The dataset is a torchvision ImageFolder; the loader yields float images (N, 3, H, W) and int64
    class indices (N,). transforms: callable from a PIL image to a tensor (3, H, W). bs: images per
    batch of all processes together. shuffle: in an order and with an augmentation that depend on
    SEED, epoch and image alone, another one in each pass; else in the order of the paths. Raises
    UserError if the class folders are not those of CLASSES."""
    if not os.path.isdir(rootDir):
        raise UserError(f"no {os.path.abspath(rootDir)}; run prepare_dataset.py or set BASE_PATH")
    # create a dataset, and use it to create a data loader
    imageLoader = partial(load_image, imageSize=config.IMAGE_SIZE)
    isValid = partial(is_image, rootDir=rootDir)
    ds = SeededImageFolder(rootDir, transforms, loader=imageLoader, is_valid_file=isValid)
    # a class that one split lacks would shift every label after it
    (found, expected) = (list(map(normalize_name, c)) for c in (ds.classes, get_classes()))
    if found != expected:
        text = f"{rootDir} has the classes {', '.join(ds.classes)}; config.py or the weights have "
        text += f"{', '.join(get_classes())}; prepare into another BASE_PATH, or take other weights"
        raise UserError(text)
    (rank, worldSize) = (devices.get_rank(), devices.get_world_size())
    if shuffle:
        sampler = EpochSampler(ds, worldSize, rank, seed=config.SEED)
    else:
        # every n-th image; DistributedSampler would repeat images where they do not divide evenly
        sampler = range(rank, len(ds), worldSize)
    bs = math.ceil(bs / worldSize)
    # no more workers than there are batches
    numWorkers = min(devices.divide_by_processes(config.NUM_WORKERS), math.ceil(len(sampler) / bs))
    loader = DataLoader(
        ds,
        batch_size=bs,
        sampler=sampler,
        num_workers=numWorkers,
        worker_init_fn=end_without_parent,
        # keep the workers between epochs: forking new ones takes 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        multiprocessing_context=START_METHOD if numWorkers else None,
        # a separate generator, so that starting workers uses no global random numbers
        generator=torch.Generator(),
        # pinned memory speeds up the copy to a CUDA device; CUDA only
        pin_memory=config.DEVICE.type == "cuda",
    )
    return (ds, loader)


def end_without_parent(workerId):
    """End a worker whose script ended while it was started; PyTorch's would wait for ever."""
    if os.getppid() != parent_process().pid:
        os._exit(1)


def get_classes():
    """Return the class names of config.CLASSES as an ImageFolder names and orders them."""
    return sorted({label.split("/")[0] for label in config.CLASSES})


class EpochSampler(DistributedSampler):
    """A DistributedSampler of (augmentation seed, index) whose epoch advances at each pass."""

    def __iter__(self):
        (epoch, indices) = (self.epoch, super().__iter__())
        self.set_epoch(epoch + 1)
        # torch's CPU generator uses only 32 bits of a seed
        return ((zlib.crc32(f"{self.seed} {epoch} {i}".encode()), i) for i in indices)


class SeededImageFolder(datasets.ImageFolder):
    """An ImageFolder whose item (seed, i) is image i, augmented by that seed alone."""

    def __getitem__(self, item):
        if not isinstance(item, tuple):
            return super().__getitem__(item)
        (seed, index) = item
        # leaves the global random state of a script that loads without workers as it was
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return super().__getitem__(index)
