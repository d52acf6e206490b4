# Image files: which files are images, and how one is read.

# import the necessary packages
import hashlib
import os
import warnings
from collections import Counter

import numpy as np
from imutils import paths
from PIL import Image, ImageOps
from torchvision.datasets.folder import is_image_file

from .cli import UserError, lacks_memory

# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image(path):
    """Return whether path has the name of an image file; macOS's ._ files do not count."""
    return is_image_file(path) and not os.path.basename(path).startswith("._")


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return sorted(os.path.normpath(path) for path in paths.list_files(rootDir) if is_image(path))


def report_others(rootDir):
    """Print how many files under rootDir are not images, by extension."""
    names = [os.path.basename(path) for path in paths.list_files(rootDir) if not is_image(path)]
    counts = Counter("._*" if n[:2] == "._" else os.path.splitext(n)[1].lower() or n for n in names)
    if counts:
        parts = [f"{count} {ending}" for ending, count in counts.most_common()]
        print(f"[INFO] non-image files in {rootDir}: {', '.join(parts)}...")


def describe_images(rootDir):
    """Return as text the number of images under rootDir and a digest of their paths and sizes."""
    lines = []
    for path in list_images(rootDir):
        # slashes on Windows too
        name = os.path.relpath(path, rootDir).replace(os.sep, "/")
        lines.append(f"{name} {os.path.getsize(path)}")
    text = "\n".join(sorted(lines)).encode(errors="surrogateescape")
    return f"{len(lines)} images ({hashlib.sha256(text).hexdigest()[:8]})"


def load_image(path, imageSize=None):
    """Return the image file at path as an RGB PIL image, rotated as its EXIF tag says.

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
                # more than 8 bits of grey, which convert() would clip
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
