"""Photographs of the user's own, to be classified."""

import glob
import os

from .errors import UserError
from .images import EXTENSIONS, is_image, list_files, print_others
from .outputs import is_output


def find_photographs(names):
    """Return the paths of the photographs in the given files and folders. Pictures that the scripts
    drew are left out, unless they are given by name."""
    imagePaths = []
    for name in names:
        # Windows leaves a star to the script
        found = [name] if os.path.exists(name) else glob.glob(name)
        for path in found or [name]:
            if os.path.isdir(path):
                imagePaths += find_in_folder(path)
            else:
                imagePaths.append(os.path.normpath(path))
    # a photograph may be named twice, alone and in its folder
    return list(dict.fromkeys(imagePaths))


def find_in_folder(folder):
    """Return the paths of the photographs in a folder; print what else is there."""
    paths = list_files(folder)
    print_others(folder, paths)
    photographs = []
    drawn = []
    for path in filter(is_image, paths):
        place = drawn if is_output(path) else photographs
        place.append(os.path.normpath(path))
    if drawn:
        print(f"[INFO] passed over what the scripts drew: {', '.join(drawn)}...")
    if not photographs:
        raise UserError(f"{folder}: no image in this folder ({' '.join(EXTENSIONS)})")
    return photographs
