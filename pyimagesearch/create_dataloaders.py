# import the necessary packages
import signal
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset, Sampler, SequentialSampler
from torchvision import datasets, transforms

from . import config, devices
from .errors import UserError

# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


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
    # a broken file makes PIL raise nearly anything
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or remove it"
        ) from error


def get_classes():
    """Return the class names of config.CLASSES as an ImageFolder names and orders them."""
    return sorted({label.split("/")[0] for label in config.CLASSES})


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


def ignore_interrupt(workerId):
    """Leave Ctrl-C to the script, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def draw_seed(*numbers):
    """Return a seed of 32 bits, all that torch's generator takes in, mixed from whole numbers."""
    return zlib.crc32(repr(numbers).encode())


class EpochFolder(datasets.ImageFolder):
    """An ImageFolder whose augmentation can be repeated: item (k, i) is image i as augmented in
    epoch k, whatever process reads it and whatever was read before; item i is augmented at
    random, as in any ImageFolder."""

    seed = 0

    def __getitem__(self, item):
        if isinstance(item, tuple):
            torch.default_generator.manual_seed(draw_seed(self.seed, *item))
            (_, item) = item
        return super().__getitem__(item)


class EpochSampler(Sampler):
    """All items of an EpochFolder once per epoch, shuffled by its seed and the epoch alone."""

    def __init__(self, ds):
        self.ds = ds
        # the epoch that was last begun
        self.epoch = 0

    def __len__(self):
        return len(self.ds)

    def __iter__(self):
        self.epoch += 1
        generator = torch.Generator().manual_seed(draw_seed(self.ds.seed, self.epoch))
        order = torch.randperm(len(self.ds), generator=generator)
        return ((self.epoch, index) for index in order.tolist())


class ImageFiles(Dataset):
    """Image files in the order given; item i is the image, as transforms makes it, and i."""

    def __init__(self, imagePaths, transforms):
        self.imagePaths = imagePaths
        self.transforms = transforms

    def __len__(self):
        return len(self.imagePaths)

    def __getitem__(self, index):
        return self.transforms(load_image(self.imagePaths[index])), index


def make_loader(ds, sampler, bs):
    """Return a DataLoader over ds in batches of bs images, in the order of sampler."""
    numWorkers = devices.share_out(config.NUM_WORKERS)
    return devices.make_shared_loader(
        ds,
        sampler,
        bs,
        # no more than there are batches
        num_workers=min(numWorkers, -(-len(ds) // bs)),
        worker_init_fn=ignore_interrupt,
        # workers that stay: to fork new ones each epoch copies what memory the training uses,
        # 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        # of its own, so that starting workers does not change what else is drawn at random
        generator=torch.Generator().manual_seed(torch.initial_seed()),
        # pinned memory speeds up the copy to a CUDA device, and exists for no other
        pin_memory=config.DEVICE.type == "cuda",
    )


def get_dataloader(rootDir, transforms, bs, shuffle=True):
    """Return (dataset, loader) over the class folders of rootDir.

    Args:
        rootDir: folder that holds one folder per class.
        transforms: callable from a PIL image to a tensor (3, H, W).
        bs: images per batch, over all devices together; the last batch may be smaller. Where
            torchrun started several processes, the loader of each yields its share.
        shuffle: draw the images in random order, else in the order of their paths. Order and
            augmentation of the loader's k-th pass depend on config.SEED and k alone.

    Returns:
        A torchvision ImageFolder, and a DataLoader that yields float images (N, 3, H, W) and
        int64 class indices (N,).

    Raises UserError if rootDir does not hold class folders with images.
    """
    try:
        ds = EpochFolder(root=rootDir, transform=transforms, loader=load_image)
    except OSError as error:
        reason = str(error.strerror or error).rstrip(".")
        raise UserError(f"{rootDir}: {reason}; run prepare_dataset.py first") from error
    ds.seed = config.SEED
    loader = make_loader(ds, EpochSampler(ds) if shuffle else SequentialSampler(ds), bs)
    return (ds, loader)


def get_file_loader(imagePaths, transforms, bs):
    """Return a DataLoader over the image files at imagePaths, in this order.

    It yields float images (N, 3, H, W), and their places in imagePaths as int64 (N,); see
    get_dataloader for the arguments.
    """
    ds = ImageFiles(imagePaths, transforms)
    return make_loader(ds, SequentialSampler(ds), bs)
