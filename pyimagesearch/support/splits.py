"""Which split a photograph belongs to."""

import os
import unicodedata
from collections import Counter, defaultdict

from pyimagesearch import config

from .copies import check_seed
from .errors import UserError
from .labels import index_labels, normalize_name
from .seeding import hash_number

# the names that the folders of training, validation and test images have
NAMES = (("training", "train"), ("validation", "val", "valid"), ("evaluation", "test", "testing"))
# the share of each class that is held out for a split that is not there
SHARE = 0.15


def find_splits():
    """Return the folders of the training, validation and test images under DATA_PATH: the training
    images' for a split that is not there, DATA_PATH where none is. Raises UserError if there are
    splits, but no training images."""
    labels = index_labels()
    folders = {}
    for name in sorted(os.listdir(config.DATA_PATH)):
        # a class may have the name of a split
        if normalize_name(name) not in labels:
            folders[name.lower()] = os.path.join(config.DATA_PATH, name)
    found = []
    for names in NAMES:
        present = [folders[name] for name in names if name in folders]
        found.append(present[0] if present else None)
    if not any(found):
        return [config.DATA_PATH] * 3
    if not found[0]:
        names = " or ".join(NAMES[0])
        raise UserError(f"{config.DATA_PATH}: no folder of training images, {names}")
    return [folder or found[0] for folder in found]


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
