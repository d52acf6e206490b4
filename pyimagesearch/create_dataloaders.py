# import the necessary packages
import math
import signal
import sys
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

from . import config, devices
from .cli import UserError

# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


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
    return transforms.Compose(
        [
            transforms.Resize((config.IMAGE_SIZE, config.IMAGE_SIZE)),
            transforms.ToTensor(),
            transforms.Normalize(mean=config.MEAN, std=config.STD),
        ]
    )


def get_dataloader(rootDir, transforms, bs, shuffle=True):
    """Return (dataset, loader) over the class folders of rootDir.

    Args:
        rootDir: folder that holds one folder per class.
        transforms: callable from a PIL image to a tensor (3, H, W).
        bs: images per batch, over all devices together; the last batch may be smaller. Of several
            processes each loads its equal part.
        shuffle: draw the images in random order, else in the order of their paths. Order and
            augmentation follow from config.SEED, the epoch and the image alone; each pass over the
            loader is the next epoch, and loader.sampler.set_epoch() chooses another one.

    Returns:
        A torchvision ImageFolder, and a DataLoader that yields float images (N, 3, H, W) and
        int64 class indices (N,).

    Raises UserError if rootDir does not hold class folders with images.
    """
    # create a dataset, and use it to create a data loader
    try:
        ds = SeededImageFolder(root=rootDir, transform=transforms, loader=load_image)
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
        worker_init_fn=ignore_interrupt,
        # keep the workers between epochs: forking new ones takes 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        # fork needs no main guard and starts at once; the default on Linux until Python 3.14
        multiprocessing_context="fork" if numWorkers and sys.platform == "linux" else None,
        # a separate generator, so that starting workers uses no global random numbers
        generator=torch.Generator(),
        # pinned memory speeds up the copy to a CUDA device, and exists for no other
        pin_memory=config.DEVICE.type == "cuda",
    )
    return (ds, loader)


class EpochSampler(DistributedSampler):
    """A DistributedSampler whose epoch advances by itself at each pass.

    It yields (augmentation seed, index) for a SeededImageFolder.
    """

    def __iter__(self):
        (epoch, indices) = (self.epoch, super().__iter__())
        self.set_epoch(epoch + 1)
        # mixed to 32 bits, all that torch's CPU generator takes in
        return ((zlib.crc32(f"{self.seed} {epoch} {i}".encode()), i) for i in indices)


class SeededImageFolder(datasets.ImageFolder):
    """An ImageFolder whose item (seed, i) is image i, augmented by that seed alone; item i is
    augmented at random, as in any ImageFolder."""

    def __getitem__(self, item):
        if not isinstance(item, tuple):
            return super().__getitem__(item)
        (seed, index) = item
        # leaves the global random state of a script that loads without workers as it was
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return super().__getitem__(index)


def ignore_interrupt(workerId):
    """Leave Ctrl-C to the script, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def get_classes():
    """Return the class names of config.CLASSES as an ImageFolder names and orders them."""
    return sorted({label.split("/")[0] for label in config.CLASSES})


def load_image(path):
    """Return the image file at path as an RGB PIL image, the way up that its EXIF tag says.

    Raises UserError if it cannot be decoded to the end.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":
                # more than 8 bits of grey, of which convert() would cut off what exceeds 255
                pixels = np.asarray(image, np.float64)
                white = next((top for top in (1, 255) if pixels.max() <= top), 65535)
                if image.mode.startswith("I;16"):
                    white = 65535
                pixels = (pixels.clip(0, white) * (255 / white)).round()
                image = Image.fromarray(pixels.astype(np.uint8))
            if "transparency" in image.info:
                # straight to RGB, a palette with transparent colours makes PIL warn
                image = image.convert("RGBA")
            return image.convert("RGB")
    except MemoryError:
        raise
    # a broken file makes PIL raise nearly anything
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or remove it"
        ) from error
