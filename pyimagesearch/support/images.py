"""Image files: which files are images, and how one is read."""

import errno
import os
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.datasets.folder import IMG_EXTENSIONS

from .errors import ImageError

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".avif")
# PIL refuses a PNG with more text than this
(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) = (2**26, 2**30)
# a phone's photograph may have 200 megapixels
Image.MAX_IMAGE_PIXELS = None
# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image(path, rootDir=None):
    """Return whether path has the name of an image and no hidden part, below rootDir if given."""
    if rootDir:
        parts = os.path.relpath(path, rootDir).split(os.sep)
    else:
        parts = [os.path.basename(path)]
    isHidden = any(part.startswith(".") for part in parts)
    return path.lower().endswith(EXTENSIONS) and not isHidden


def list_files(rootDir, above=()):
    """Return the sorted paths of the files under rootDir but hidden ones, through links unless they
    lead back; raise OSError for a folder that cannot be read. imutils' paths does neither."""
    above = (*above, os.path.realpath(rootDir))
    found = []
    for name in os.listdir(rootDir):
        path = os.path.join(rootDir, name)
        if name.startswith("."):
            continue
        if not os.path.isdir(path):
            found.append(path)
        elif os.path.realpath(path) not in above:
            found += list_files(path, above)
    return sorted(found)


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return [path for path in list_files(rootDir) if is_image(path)]


def print_others(rootDir, paths):
    """Print how many of the files under rootDir, at paths, are no images, by their endings."""
    others = Counter()
    for path in paths:
        if not is_image(path):
            others[os.path.splitext(path)[1].lower() or "no ending"] += 1
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        print(f"[INFO] not read in {rootDir}: {counts}; convert pictures among them to JPEG...")


def list_sizes(rootDir, paths):
    """Return a list of (path below rootDir, size in bytes) of the images at paths."""
    return [(os.path.relpath(path, rootDir), os.path.getsize(path)) for path in paths]


def load_image(path, imageSize=None):
    """Return the image file at path as an RGB PIL image, rotated as EXIF says, transparent parts
    white. A JPEG may be decoded at a half, quarter or eighth of its size, as long as its short side
    keeps 3 * imageSize pixels. Raises ImageError for a broken image, OSError for a broken disk."""
    try:
        with Image.open(path) as image:
            if imageSize:
                image.draft(None, (3 * imageSize, 3 * imageSize))
            image.load()
            rotate_by_exif(image)
            if image.mode[0] in "IF":
                image = scale_to_8_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        # a broken file makes PIL raise nearly anything
        if is_disk_error(error):
            raise OSError(error.errno, error.strerror, path) from error
        advice = "replace it, or convert it to JPEG"
        raise ImageError(f"{path}: cannot be read as an image ({error}); {advice}") from error


def rotate_by_exif(image):
    """Rotate a PIL image as its EXIF says, unless that is malformed."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        # malformed EXIF makes PIL raise nearly anything
        pass


def is_disk_error(error):
    """Return whether an exception is of the disk. PIL raises OSError for a broken file too: without
    an errno, or with EINVAL where an offset in the file points outside it."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def scale_to_8_bits(image):
    """Return a PIL image of more than 8 bits of grey as one of 8; convert() would clip them."""
    pixels = np.asarray(image, np.float64)
    white = 65535
    if image.mode in ("I", "F"):
        # 32 bits do not say how bright white is
        if pixels.max() <= 1:
            white = 1
        elif pixels.max() <= 255:
            white = 255
    pixels = (pixels.clip(0, white) * (255 / white)).round()
    return Image.fromarray(pixels.astype(np.uint8))
