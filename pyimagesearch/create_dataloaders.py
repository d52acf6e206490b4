# import the necessary packages
import warnings

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from . import config
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
            if image.mode.startswith("I"):
                # 16-bit grey, of which convert() would keep what fits into 8 bits
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            if "transparency" in image.info:
                # straight to RGB, a palette with transparent colours makes PIL warn
                image = image.convert("RGBA")
            return image.convert("RGB")
    # a broken file makes PIL raise nearly anything
    except Exception as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


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


def get_dataloader(rootDir, transforms, bs, shuffle=True):
    """Return (dataset, loader) over the class folders of rootDir.

    Args:
        rootDir: folder that holds one folder per class.
        transforms: callable from a PIL image to a tensor (3, H, W).
        bs: images per batch, over all devices together; the last batch may be smaller.
        shuffle: draw the images in random order, else in the order of their paths.

    Returns:
        A torchvision ImageFolder, and a DataLoader that yields float images (N, 3, H, W) and
        int64 class indices (N,).

    Raises UserError if rootDir does not hold class folders with images.
    """
    try:
        ds = datasets.ImageFolder(root=rootDir, transform=transforms, loader=load_image)
    except OSError as error:
        reason = str(error.strerror or error).rstrip(".")
        raise UserError(f"{rootDir}: {reason}; run prepare_dataset.py first") from error
    loader = DataLoader(
        ds,
        batch_size=bs,
        shuffle=shuffle,
        num_workers=config.NUM_WORKERS,
        # pinned memory speeds up the copy to a CUDA device, and exists for no other
        pin_memory=config.DEVICE.type == "cuda",
    )
    return (ds, loader)
