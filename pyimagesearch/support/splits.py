"""Which split a photograph belongs to."""

import os
import re
import unicodedata
from collections import Counter, defaultdict

from pyimagesearch import config

from .copies import check_seed
from .errors import UserError
from .images import list_folder
from .labels import get_classes, index_labels, normalize_name
from .seeding import hash_number

# the names that the folders of training, validation and test images have
NAMES = (("training", "train"), ("validation", "val", "valid"), ("evaluation", "test", "testing"))
# the share of each class that is held out for a split that is not there
SHARE = 0.15


def find_splits():
    """Return the folders of the training, validation and test images under DATA_PATH: the training
    images' for a split that is not there; the folder of the classes where no split is. Folders that
    only wrap others, as in many zip files, are looked through. Raises UserError if there are
    splits, but no training images, or if two folders may be the same split."""
    labels = index_labels() | index_labels(get_classes())
    root = find_root(labels)
    (folders, _) = list_folder(root)
    found = [find_split(folders, names, labels) for names in NAMES]
    if not any(found):
        return [root] * 3
    if not found[0]:
        names = " or ".join(NAMES[0])
        raise UserError(f"{root}: no folder of training images, {names}")
    return [look_through(folder or found[0], labels) for folder in found]


def find_root(labels):
    """Return the folder in which the splits or the classes are: DATA_PATH, or what it wraps. Raises
    UserError where several folders have splits in them."""
    root = config.DATA_PATH
    while True:
        (folders, _) = list_folder(root)
        if any(is_class(folder, labels) or name_split(folder, labels) for folder in folders):
            return root
        # the folder of the splits may lie beside others
        inner = [folder for folder in folders if holds_splits(folder, labels)]
        if len(inner) > 1:
            text = f"{inner[0]} and {inner[1]} both have splits in them"
            raise UserError(f"{text}; set DATA_PATH in config.py to one of them")
        following = inner[0] if inner else look_through(root, labels)
        if following == root:
            return root
        root = following


def look_through(folder, labels):
    """Return the innermost folder that folder wraps, folder itself if it wraps none. A folder wraps
    another if it holds that alone, which is no class, and which holds folders alone or has the same
    name."""
    while True:
        (folders, images) = list_folder(folder)
        if images or len(folders) != 1 or is_class(folders[0], labels):
            return folder
        inner = folders[0]
        (innerFolders, innerImages) = list_folder(inner)
        holdsFolders = bool(innerFolders) and not innerImages
        if not holdsFolders and get_name(inner) != get_name(folder):
            return folder
        folder = inner


def find_split(folders, names, labels):
    """Return which of folders has one of names, those of a split; else which has one of them as a
    word ("seg_train"), or None. Raises UserError if several have."""
    for name in names:
        for folder in folders:
            if get_name(folder) == name and not is_class(folder, labels):
                return folder
    # beside class folders such a folder may be anything
    if any(is_class(folder, labels) for folder in folders):
        return None
    found = [folder for folder in folders if name_split(folder, labels) == names]
    if len(found) > 1:
        text = f"{found[0]} and {found[1]} are both named like {names[0]} images"
        raise UserError(f"{text}; rename the right one to {names[0]}")
    return found[0] if found else None


def name_split(folder, labels):
    """Return the item of NAMES of which a folder's name has a word. Returns None if it has a word
    of none or of several, or if the folder is a class."""
    if is_class(folder, labels):
        return None
    # letters alone: "seg_train", "test set", "train2"
    words = set(re.split(r"[\W\d_]+", get_name(folder)))
    found = [names for names in NAMES if words.intersection(names)]
    return found[0] if len(found) == 1 else None


def holds_splits(folder, labels):
    """Return whether a folder in folder is named like a split."""
    (folders, _) = list_folder(folder)
    return any(name_split(inner, labels) for inner in folders)


def is_class(folder, labels):
    """Return whether a folder has the name of a class, or the outer name of one; labels: of both,
    of index_labels()."""
    return get_name(folder) in labels


def get_name(folder):
    """Return the name of a folder as names are compared."""
    return normalize_name(os.path.basename(os.path.normpath(folder)))


def assign_splits(plan):
    """Set the destiDir of each Photograph in plan: TRAIN, VAL or TEST.

    A split that has no folder is held out of the training images. A photograph that was copied
    before stays in its split; where a new one belongs follows from SEED and from its path in its
    class. So none moves when others come or go. Raises UserError if SEED is not that of the copies.
    """
    splits = (config.TRAIN, config.VAL, config.TEST)
    trainDir = plan.rootDirs[0]
    heldOut = []
    for rootDir, split in zip(plan.rootDirs[1:], splits[1:], strict=True):
        if rootDir == trainDir:
            heldOut.append(split)
    if heldOut:
        check_seed(plan.copies, plan.record)
        plan.seed = config.SEED
    classes = defaultdict(list)
    for photograph in plan.photographs:
        photograph.destiDir = splits[plan.rootDirs.index(photograph.rootDir)]
        if photograph.rootDir == trainDir and heldOut:
            photograph.destiDir = choose_split(photograph, heldOut, plan.copies)
            classes[photograph.label].append(photograph)
    for members in classes.values():
        fill_splits(members, [config.TRAIN, *heldOut], plan.copies)


def choose_split(photograph, heldOut, copies):
    """Return the split of a photograph from the training folder."""
    for split in (config.TRAIN, *heldOut):
        if photograph.get_place(split) in copies:
            return split
    number = draw_number(photograph)
    # each split has a range of its own, whether or not the other is held out
    if number < SHARE and config.VAL in heldOut:
        return config.VAL
    if SHARE <= number < 2 * SHARE and config.TEST in heldOut:
        return config.TEST
    return config.TRAIN


def draw_number(photograph):
    """Return a number from 0 to 1 that follows from SEED and the path of a photograph in its
    class, on any machine."""
    name = unicodedata.normalize("NFC", photograph.name.replace(os.sep, "/"))
    return hash_number("split", config.SEED, name) / 2**32


def fill_splits(members, splits, copies):
    """Move a photograph of a class into each split that has none, from a split that has several.
    One that is copied already stays where it is."""
    for split in splits:
        counts = Counter(member.destiDir for member in members)
        if counts[split] > 0:
            continue
        candidates = []
        for member in members:
            if counts[member.destiDir] > 1 and member.place not in copies:
                candidates.append(member)
        if candidates:
            moved = min(candidates, key=draw_number)
            moved.destiDir = split
