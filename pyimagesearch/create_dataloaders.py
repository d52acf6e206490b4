# import the necessary packages
import math
import os
import signal
import sys
import zlib
from functools import partial
from multiprocessing import parent_process

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

from . import config, devices
from .cli import UserError
from .images import is_image, load_image

# how workers start: fork is fastest; Windows has only spawn, and fork is unsafe on macOS
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# after a script that ended at once, Python frees its workers' semaphores, and would warn of them
sys.warnoptions.append("ignore:resource_tracker")


def train_transform():
    """Return the augmentation of training images: PIL image to float (3, H, W), normalized."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(config.IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(90),
            transforms.ToTensor(),
            transforms.Normalize(mean=config.MEAN, std=config.STD),
        ]
    )


def test_transform():
    """Return the preprocessing of all other images: PIL image to float (3, H, W), normalized."""
    resize = transforms.Resize((config.IMAGE_SIZE, config.IMAGE_SIZE))
    normalize = transforms.Normalize(mean=config.MEAN, std=config.STD)
    return transforms.Compose([resize, transforms.ToTensor(), normalize])


def get_dataloader(rootDir, transforms, bs, shuffle=True):
    """Return (dataset, loader) over the class folders of rootDir; raise UserError if it has none.

    The dataset is a torchvision ImageFolder; the loader yields float images (N, 3, H, W) and int64
    class indices (N,). transforms: callable from a PIL image to a tensor (3, H, W). bs: images per
    batch, which several processes split evenly; the last may be smaller. shuffle: in random order,
    else in the order of the paths; order and augmentation depend only on SEED, epoch and image;
    each pass advances the epoch, and loader.sampler.set_epoch() chooses another one."""
    # create a dataset, and use it to create a data loader
    try:
        loader = partial(load_image, imageSize=config.IMAGE_SIZE)
        ds = SeededImageFolder(rootDir, transforms, loader=loader, is_valid_file=is_image)
    except OSError as error:
        reason = str(error.strerror or error).rstrip(".")
        raise UserError(f"{rootDir}: {reason}; run prepare_dataset.py first") from error
    (rank, worldSize) = (devices.get_rank(), devices.get_world_size())
    if shuffle:
        sampler = EpochSampler(ds, worldSize, rank, seed=config.SEED)
    else:
        # every n-th image; DistributedSampler would repeat images where they do not divide evenly
        sampler = range(rank, len(ds), worldSize)
    bs = math.ceil(bs / worldSize)
    # no more workers than there are batches
    numWorkers = min(devices.share_out(config.NUM_WORKERS), math.ceil(len(sampler) / bs))
    loader = DataLoader(
        ds,
        batch_size=bs,
        sampler=sampler,
        num_workers=numWorkers,
        worker_init_fn=end_with_script,
        # keep the workers between epochs: forking new ones takes 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        multiprocessing_context=START_METHOD if numWorkers else None,
        # a separate generator, so that starting workers uses no global random numbers
        generator=torch.Generator(),
        # pinned memory speeds up the copy to a CUDA device; CUDA only
        pin_memory=config.DEVICE.type == "cuda",
    )
    return (ds, loader)


class EpochSampler(DistributedSampler):
    """A DistributedSampler of (augmentation seed, index) whose epoch advances at each pass."""

    def __iter__(self):
        (epoch, indices) = (self.epoch, super().__iter__())
        self.set_epoch(epoch + 1)
        # torch's CPU generator uses only 32 bits of a seed
        return ((zlib.crc32(f"{self.seed} {epoch} {i}".encode()), i) for i in indices)


class SeededImageFolder(datasets.ImageFolder):
    """An ImageFolder whose item (seed, i) is image i, augmented by that seed alone; item i is
    augmented at random, as in any ImageFolder. Hidden folders do not count as classes."""

    def find_classes(self, directory):
        (classes, _) = super().find_classes(directory)
        classes = [name for name in classes if not name.startswith(".")]
        return classes, {name: index for index, name in enumerate(classes)}

    def __getitem__(self, item):
        if not isinstance(item, tuple):
            return super().__getitem__(item)
        (seed, index) = item
        # leaves the global random state of a script that loads without workers as it was
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return super().__getitem__(index)


def end_with_script(workerId):
    """Have Linux end this worker with its script; elsewhere a worker looks every five seconds."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    # the script may have ended just before
    if os.getppid() != parent_process().pid:
        os._exit(1)


def get_classes():
    """Return the class names of config.CLASSES as an ImageFolder names and orders them."""
    return sorted({label.split("/")[0] for label in config.CLASSES})


def check_splits():
    """Print how many images each split has; raise UserError unless all have the classes of config:
    a class that one split lacks would shift every label after it."""
    for rootDir in (config.TRAIN, config.VAL, config.TEST):
        (ds, _) = get_dataloader(rootDir, None, bs=1, shuffle=False)
        print(f"[INFO] {rootDir}: {len(ds)} images of {len(ds.classes)} classes...")
        odd = sorted(set(ds.classes) ^ set(get_classes()))
        if odd:
            odd = f"(different: {', '.join(odd[:5])})"
            advice = "run prepare_dataset.py first"
            raise UserError(f"{rootDir}: classes differ from CLASSES in config.py {odd}; {advice}")
