"""Image files: which files are images, and how one is read."""

import errno
import io
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from .errors import ImageError
from .files import find_stranger

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".avif")
# folders that systems and programs make for themselves, in lower case: thumbnails, deleted files,
# earlier states of a disk
SYSTEM_FOLDERS = {
    # disks on a network: Synology, QNAP, NetApp
    "@eadir",
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "@__thumb",
    "~snapshot",
    # disks of Windows, of Linux, and of a Mac's network
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    # zip files that a Mac packed
    "__macosx",
    # cameras (Sony, Canon) and music players
    "thmbnl",
    "avf_info",
    "canonmsc",
    "ipod photo cache",
    # programs for photographs, web galleries
    "thumbs",
    "_thumbs",
    "thumbnails",
    "_thumbnails",
}
# files that Windows hides, though their names do not say so
HIDDEN_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
# of the small files that stand for photographs in the cloud: iCloud, Nextcloud and its kin, odrive
STUB_ENDINGS = {".icloud", ".nextcloud", ".owncloud", ".opencloud", ".cloud"}
# PIL refuses a PNG with more text than this
(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) = (2**26, 2**30)
# a phone's photograph may have 200 megapixels
Image.MAX_IMAGE_PIXELS = None
# PIL warns of oddities, such as a broken EXIF tag, in images that it reads all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_hidden(name):
    """Return whether a file or folder is hidden by its name."""
    return name.startswith(".") or name.lower() in HIDDEN_FILES


def is_passed_over(name):
    """Return whether a file or folder is hidden, or a folder is one of the system's own."""
    return is_hidden(name) or name.lower() in SYSTEM_FOLDERS


def is_image(path, rootDir=None):
    """Return whether path has the name of an image and no part that is hidden or a system folder's,
    below rootDir if given."""
    if rootDir:
        parts = os.path.relpath(path, rootDir).split(os.sep)
    else:
        parts = [os.path.basename(path)]
    return path.lower().endswith(EXTENSIONS) and not any(map(is_passed_over, parts))


def is_stub(name):
    """Return whether a file name stands for a photograph that a cloud program has not downloaded,
    as .1.jpg.icloud and 1.jpg.nextcloud do."""
    (photograph, ending) = os.path.splitext(name.lower())
    return ending in STUB_ENDINGS and photograph.endswith((*EXTENSIONS, ".heic", ".heif"))


@dataclass
class Tree:
    """What lies under a folder.

    files: the paths of the files. stubs: those of photographs that are not downloaded.
    systemFolders: those of the system's own, which are not looked into. repeated: those of links to
    what is there already. All are sorted.
    """

    files: list
    stubs: list
    systemFolders: list
    repeated: list


def walk(rootDir):
    """Return the Tree of a folder, without what is hidden. Links are followed; each real file and
    folder is there once, by its own path where it has one under rootDir. Raises OSError for a
    folder that cannot be read."""
    tree = Tree([], [], [], [])
    # a link to a folder around rootDir leads back
    seen = {str(parent) for parent in Path(os.path.realpath(rootDir)).parents}
    links = [rootDir]
    while links:
        # links after all that is there without them
        found = []
        for path in sorted(links):
            if os.path.isdir(path):
                add_folder(tree, path, seen, found)
            else:
                add_file(tree, path, os.path.realpath(path), seen)
        links = found
    for paths in (tree.files, tree.stubs, tree.systemFolders, tree.repeated):
        paths.sort()
    return tree


def add_folder(tree, folder, seen, links):
    """Add what lies in a folder to a Tree, and its real path to seen, a set. One that is in seen is
    only noted as repeated. Links in the folder are not followed, but appended to links."""
    # of each folder, as Windows has links (junctions) that os.scandir() does not call so
    realFolder = os.path.realpath(folder)
    if realFolder in seen:
        tree.repeated.append(folder)
        return
    seen.add(realFolder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_stub(entry.name):
                tree.stubs.append(entry.path)
            elif is_hidden(entry.name):
                continue
            elif entry.name.lower() in SYSTEM_FOLDERS and os.path.isdir(entry.path):
                tree.systemFolders.append(entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                add_folder(tree, entry.path, seen, links)
            else:
                add_file(tree, entry.path, os.path.join(realFolder, entry.name), seen)


def add_file(tree, path, realPath, seen):
    """Add a file to a Tree, and its real path to seen, a set. One that is in seen is only noted as
    repeated."""
    if realPath in seen:
        tree.repeated.append(path)
    else:
        seen.add(realPath)
        tree.files.append(path)


def list_folder(folder):
    """Return the sorted paths of the folders and of the images that lie directly in folder."""
    folders = []
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # a link that leads in a circle is an error for is_dir()
            isFolder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if isFolder:
                if not is_passed_over(entry.name):
                    folders.append(entry.path)
            elif is_image(entry.path):
                images.append(entry.path)
    return sorted(folders), sorted(images)


def list_images(rootDir):
    """Return the sorted paths of the image files under rootDir."""
    return [path for path in walk(rootDir).files if is_image(path)]


def find_images(rootDir):
    """Return the sorted paths of the image files under rootDir; print what else is there."""
    tree = walk(rootDir)
    print_passed_over(rootDir, tree)
    print_others(rootDir, tree.files)
    return [path for path in tree.files if is_image(path)]


def print_passed_over(rootDir, tree):
    """Print how much of the Tree of rootDir is passed over, a line for each kind."""
    system = []
    for systemFolder in tree.systemFolders:
        # which may not let itself be read
        for folder, _, names in os.walk(systemFolder):
            system += [os.path.join(folder, name) for name in names]
    if system:
        print(f"[INFO] passed over {len(system)} files in system folders, such as {min(system)}...")
    if tree.repeated:
        text = f"passed over {len(tree.repeated)} links in {rootDir} to what is read anyway"
        print(f"[INFO] {text}, such as {tree.repeated[0]}...")
    if tree.stubs:
        text = f"{len(tree.stubs)} photographs in {rootDir} are not downloaded, such as"
        print(f"[INFO] {text} {tree.stubs[0]}: have the cloud program download them...")


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


def load_image(path, imageSize=None, data=None):
    """Return the image file at path as an RGB PIL image, rotated as EXIF says, transparent parts
    white. A JPEG may be decoded at a half, quarter or eighth of its size, as long as its short side
    keeps 3 * imageSize pixels. data: the bytes of the file, if they are read already. Raises
    ImageError for a broken image, OSError for a broken disk."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            if imageSize:
                image.draft(None, (3 * imageSize, 3 * imageSize))
            image.load()
            rotate_by_exif(image)
            return make_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        # a broken file makes PIL raise nearly anything
        if is_disk_error(error):
            raise OSError(error.errno, error.strerror, path) from error
        raise ImageError(f"{path}: {describe_broken(path, error)}") from error


def make_rgb(image):
    """Return a PIL image as RGB: more than 8 bits of grey scaled to 8, transparent parts white."""
    if image.mode[0] in "IF":
        image = scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def describe_broken(path, error):
    """Return what is wrong with the image file at path, and what to do. error: what PIL raised when
    it read the file."""
    stranger = find_stranger(path)
    if stranger:
        return stranger
    reason = error
    if isinstance(error, UnidentifiedImageError):
        reason = "no known format" if os.path.getsize(path) else "the file is empty"
    return f"cannot be read as an image ({reason}); replace it, or convert it to JPEG"


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
