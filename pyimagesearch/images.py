# Image files: which files are images, and how one is read.

import hashlib
import os
import warnings
from collections import Counter
from contextlib import suppress

import numpy as np
from PIL import Image, PngImagePlugin
from torchvision.datasets.folder import IMG_EXTENSIONS

from .cli import UserError, lacks_memory

# what is read, and pictures that are not
EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".avif")
UNREAD = (".heic", ".heif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf")
# of EXIF the orientation alone is needed, of a PNG's text nothing
ORIENTATION = 0x0112
turn = Image.Transpose
TURNS = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE)
TURNS = dict(enumerate((*TURNS, turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90), start=2))
(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) = (2**26, 2**30)
# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image(path):
    """Return whether path has the name of an image file; macOS's ._ files do not count."""
    return path.lower().endswith(EXTENSIONS) and not os.path.basename(path).startswith("._")


def list_files(rootDir):
    """Return the sorted paths of the files under rootDir, following links, without hidden folders;
    raise UserError if a link leads back to a folder above it."""
    found = []
    for folder, names, files in os.walk(rootDir, followlinks=True):
        (real, above) = (os.path.realpath(folder), os.path.realpath(os.path.dirname(folder)))
        if os.path.islink(folder) and os.path.commonpath([real, above]) == real:
            raise UserError(f"{folder}: this link leads back to a folder above it; remove the link")
        names[:] = [name for name in names if not name.startswith(".")]
        found += [os.path.normpath(os.path.join(folder, name)) for name in files]
    return sorted(found)


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return [path for path in list_files(rootDir) if is_image(path)]


def report_others(rootDir):
    """Print how many files under rootDir are not read; return the pictures among them."""
    (others, pictures, kinds) = (Counter(), [], Counter())
    for path in list_files(rootDir):
        (stem, extension) = os.path.splitext(os.path.basename(path).lower())
        if stem.startswith("._"):
            others["._*"] += 1
        elif extension in UNREAD:
            pictures.append(path)
            kinds[extension] += 1
        elif not is_image(path):
            others[extension or "without extension"] += 1
    advice = "; these pictures cannot be read: convert them to JPEG"
    for counts, text in ((others, ""), (kinds, advice)):
        parts = [f"{count} {kind}" for kind, count in counts.most_common(5)]
        parts += [f"{len(counts) - 5} other kinds"] * (len(counts) > 5)
        if parts:
            print(f"[INFO] non-image files in {rootDir}: {', '.join(parts)}{text}...")
    return pictures


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
    """Return the image file at path as an RGB PIL image, rotated as EXIF says, transparent parts
    white; raise UserError if it cannot be decoded to the end. A JPEG may be decoded at a half,
    quarter or eighth of its size, as long as its short side keeps 3 * imageSize pixels."""
    try:
        with Image.open(path) as image:
            if imageSize:
                image.draft(None, (3 * imageSize, 3 * imageSize))
            image.load()
            # malformed EXIF makes PIL raise nearly anything
            with suppress(Exception):
                image = image.transpose(TURNS[image.getexif()[ORIENTATION]])
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
            # convert() would copy an RGB image too
            return image if image.mode == "RGB" else image.convert("RGB")
    # a broken file makes PIL raise nearly anything
    except Exception as error:
        if lacks_memory(error):
            raise
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace it, or convert it to JPEG"
        ) from error


def try_image(path, imageSize=None):
    """Return what load_image() returns, or the UserError that it raises."""
    try:
        return load_image(path, imageSize)
    except UserError as error:
        return error
