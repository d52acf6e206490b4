"""Image files: which files are images, and how one is read."""

import errno
import os
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.datasets.folder import IMG_EXTENSIONS

from .cli import ImageError

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".avif")
# PIL refuses a PNG with more text than this
(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) = (2**26, 2**30)
# a phone's photograph may have 200 megapixels
Image.MAX_IMAGE_PIXELS = None
# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image(path, rootDir=None):
    """Return whether path has the name of an image and no hidden part, below rootDir if given."""
    below = os.path.relpath(path, rootDir) if rootDir else os.path.basename(path)
    return path.lower().endswith(EXTENSIONS) and f"{os.sep}." not in os.sep + below


def list_files(rootDir, above=()):
    """Return the sorted paths of the files under rootDir but hidden ones, through links unless they
    lead back; raise OSError for a folder that cannot be read. imutils' paths does neither."""
    above = (*above, os.path.realpath(rootDir))
    found = []
    for name in os.listdir(rootDir):
        path = os.path.join(rootDir, name)
        if not name.startswith("."):
            if not os.path.isdir(path):
                found.append(path)
            elif os.path.realpath(path) not in above:
                found += list_files(path, above)
    return sorted(found)


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return [path for path in list_files(rootDir) if is_image(path)]


def report_others(rootDir):
    """Print how many files under rootDir are not read, by their endings."""
    others = [path for path in list_files(rootDir) if not is_image(path)]
    kinds = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others)
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"[INFO] not read in {rootDir}: {counts}; convert pictures among them to JPEG...")


def load_image(path, imageSize=None):
    """Return the image file at path as an RGB PIL image, rotated as EXIF says, transparent parts
    white. A JPEG may be decoded at a half, quarter or eighth of its size, as long as its short side
    keeps 3 * imageSize pixels. Raises ImageError for a broken image, OSError for a broken disk."""
    try:
        with Image.open(path) as image:
            if imageSize:
                image.draft(None, (3 * imageSize, 3 * imageSize))
            image.load()
            try:
                ImageOps.exif_transpose(image, in_place=True)
            except MemoryError:
                raise
            except Exception:
                # malformed EXIF makes PIL raise nearly anything
                pass
            if image.mode[0] in "IF":
                # more than 8 bits of grey, which convert() would clip
                pixels = np.asarray(image, np.float64)
                tops = (1, 255) if image.mode in "IF" else ()
                white = next((top for top in tops if pixels.max() <= top), 65535)
                pixels = (pixels.clip(0, white) * (255 / white)).round()
                image = Image.fromarray(pixels.astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    # a broken file makes PIL raise nearly anything, EINVAL where it leads PIL out of the file
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, path) from error
        advice = "replace it, or convert it to JPEG"
        raise ImageError(f"{path}: cannot be read as an image ({error}); {advice}") from error
