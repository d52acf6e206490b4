# import the necessary packages
import math
import os
import signal
import sys
import warnings
import zlib
from collections import Counter
from functools import partial
from multiprocessing import resource_tracker

import numpy as np
import torch
from imutils import paths
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms
from torchvision.datasets.folder import is_image_file

from . import cli, config, devices
from .cli import UserError, lacks_memory

# how workers start: fork needs no main guard and no second import of torch; Windows has only spawn,
# and fork is unsafe on macOS
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

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
    loader = QuietDataLoader(
        ds,
        batch_size=bs,
        sampler=sampler,
        num_workers=numWorkers,
        worker_init_fn=silence_worker,
        # keep the workers between epochs: forking new ones takes 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        multiprocessing_context=START_METHOD if numWorkers else None,
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
        # torch's CPU generator uses only 32 bits of a seed
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


class QuietDataLoader(DataLoader):
    """A DataLoader whose workers ignore Ctrl-C from their start (on Windows once they run): the
    script ends them."""

    def __iter__(self):
        # with persistent workers, they start at the first pass
        if self.num_workers == 0 or self._iterator is not None:
            return super().__iter__()
        # forked workers would keep it, and the script would write to copies
        devices.release_memory()
        with cli.interrupts.hold():
            if not hasattr(signal, "pthread_sigmask"):
                return super().__iter__()
            if START_METHOD == "spawn":
                # its start, in the middle of the first worker's, would unblock the signal
                resource_tracker.ensure_running()
            # workers inherit that the signal is blocked: spawned ones would print tracebacks while
            # they import torch
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                return super().__iter__()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def silence_worker(workerId):
    """Leave Ctrl-C to the script, and errors too: the thread of a worker that passes tensors on
    prints a traceback when the script ends first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *error: None


def get_classes():
    """Return the class names of config.CLASSES as an ImageFolder names and orders them."""
    return sorted({label.split("/")[0] for label in config.CLASSES})


def is_image(path):
    """Return whether the file name of path is that of an image; macOS's ._ files are none."""
    return is_image_file(path) and not os.path.basename(path).startswith("._")


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return sorted(os.path.normpath(path) for path in paths.list_files(rootDir) if is_image(path))


def tell_others(rootDir):
    """Say how many files under rootDir are no images, by their endings."""
    names = [os.path.basename(path) for path in paths.list_files(rootDir) if not is_image(path)]
    counts = Counter("._*" if n[:2] == "._" else os.path.splitext(n)[1].lower() or n for n in names)
    if counts:
        parts = [f"{count} {ending}" for ending, count in counts.most_common()]
        print(f"[INFO] files in {rootDir} that are no images: {', '.join(parts)}...")


def load_image(path, imageSize=None):
    """Return the image file at path as an RGB PIL image, the way up that its EXIF tag says.

    A JPEG may be decoded at a half, quarter or eighth of its size, as long as its short side keeps
    3 * imageSize pixels; None keeps all. Transparent parts become white. Raises UserError if the
    file cannot be decoded to the end.
    """
    try:
        with Image.open(path) as image:
            if imageSize:
                image.draft(None, (3 * imageSize, 3 * imageSize))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode[0] in "IF":
                # more than 8 bits of grey, of which convert() would cut off what exceeds 255
                pixels = np.asarray(image, np.float64)
                white = next((top for top in (1, 255) if pixels.max() <= top), 65535)
                if image.mode.startswith("I;16"):
                    white = 65535
                pixels = (pixels.clip(0, white) * (255 / white)).round()
                image = Image.fromarray(pixels.astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            # what has been loaded outlives the open file; convert() would copy an RGB image too
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    # a broken file makes PIL raise nearly anything
    except Exception as error:
        if lacks_memory(error):
            raise
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or remove it"
        ) from error
