"""The class and split of each image, and all that is wrong with a data set before it is copied."""

import functools
import hashlib
import os
import random
import re
from collections import defaultdict
from contextlib import suppress

from tqdm.contrib.concurrent import thread_map

from . import config
from .cli import UserError, normalize_name
from .files import write_file
from .images import is_image, list_images, load_image, report_others

# the list of images with a problem, and the names of the folders of each split
PROBLEMS_PATH = os.path.join("output", "bad_images.txt")
SPLITS = (("training", "train"), ("validation", "val", "valid"), ("evaluation", "test", "testing"))


def find_splits():
    """Return the folders to copy to TRAIN, VAL and TEST: the training folder for one that is not
    there, DATA_PATH if there are none. Raises UserError if the copies would mix with DATA_PATH."""
    root = config.DATA_PATH
    for destiDir in (config.BASE_PATH, config.TRAIN, config.VAL, config.TEST):
        # some file systems are case-insensitive
        (source, copy) = (os.path.realpath(path).lower() + os.sep for path in (root, destiDir))
        if source.startswith(copy) or copy.startswith(source):
            raise UserError(f"{root} would mix with {destiDir}; set another BASE_PATH in config.py")
    # a class may have the name of a split
    labels = index_labels(tuple(config.CLASSES))
    names = [name for name in os.listdir(root) if normalize_name(name) not in labels]
    folders = {name.lower(): os.path.join(root, name) for name in names}
    found = [[folders[name] for name in names if name in folders] for names in SPLITS]
    if any(found) and not found[0]:
        raise UserError(f"{root}: no folder of training images, {' or '.join(SPLITS[0])}")
    return [(*paths, *found[0], root)[0] for paths in found]


def select_images(rootDir, destiDir, skip=()):
    """Return the images under rootDir to copy to destiDir, but those to skip. A split without a
    folder is held out of the training images: 15 % of each class, at least one, by SEED."""
    imagePaths = [path for path in list_images(rootDir) if path not in skip]
    (trainDir, *others) = find_splits()
    heldOut = [d for d, r in zip((config.VAL, config.TEST), others, strict=True) if r == trainDir]
    if rootDir != trainDir or not heldOut:
        return imagePaths
    classes = defaultdict(list)
    for path in imagePaths:
        classes[get_target(path, rootDir)[0]].append(path)
    selected = []
    for paths in classes.values():
        random.Random(config.SEED).shuffle(paths)
        count = max(1, round(0.15 * len(paths)))
        shares = {split: paths[i * count : (i + 1) * count] for i, split in enumerate(heldOut)}
        selected += shares.get(destiDir, paths[len(heldOut) * count :])
    return sorted(selected)


@functools.cache
def index_labels(labels):
    """Return {folder name as it is compared: label} for a tuple of labels."""
    return {normalize_name(label): label for label in labels}


def split_label(path):
    """Return (label, filename) of an image in a class folder, from its path in the split's folder:
    ("Bread", "2023/0.jpg") for "bread/2023/0.jpg". Raises UserError for another folder."""
    (labels, folders) = (index_labels(tuple(config.CLASSES)), path.split(os.sep))
    # the folder of Noodles/Pasta may be one in another
    for count in range(1, len(folders)):
        label = labels.get(normalize_name(os.sep.join(folders[:count])))
        if label:
            return label, os.path.join(*folders[count:])
    raise UserError("the folder is not in CLASSES of config.py; add it there or move it away")


def get_target(imagePath, rootDir):
    """Return (label, filename) of an image: its folder under rootDir is named after the class, or
    its name is <class index>_<image number>.jpg. Raises UserError if neither holds."""
    filename = os.path.relpath(imagePath, rootDir)
    if os.sep in filename:
        return split_label(filename)
    index = filename.partition("_")[0]
    if index.isdecimal() and int(index) < len(config.CLASSES):
        return config.CLASSES[int(index)], filename
    limits = f"from 0 to {len(config.CLASSES) - 1} and _"
    raise UserError(f"the name does not begin with a class index {limits}; rename it")


def check_dataset(skipBad):
    """Look at all images before anything is copied; return those that skipBad leaves out. Prints
    the problems, lists each image with its own in a file, and raises UserError if there are any."""
    with suppress(FileNotFoundError):
        os.remove(PROBLEMS_PATH)
    rootDirs = find_splits()
    (targets, bad) = find_targets(rootDirs)
    answers = thread_map(digest_image, targets, desc="checking", disable=None)
    digests = dict(zip(targets, answers, strict=True))
    bad.update({path: str(d) for path, d in digests.items() if isinstance(d, UserError)})
    (problems, copies, labels) = ([], defaultdict(dict), {})
    for rootDir, destiDir in zip(rootDirs, (config.TRAIN, config.VAL, config.TEST), strict=True):
        split = {path: targets[path] for path in select_images(rootDir, destiDir, bad)}
        if rootDir == rootDirs[0] and destiDir != config.TRAIN:
            print(f"[INFO] held out of {rootDir} for {destiDir}: {len(split)} images...")
        problems += find_leftovers(destiDir, split)
        labels[destiDir] = {label for label, _ in split.values()}
        for path, (label, _) in split.items():
            copies[digests[path]][path] = (destiDir, label)
    lacking = defaultdict(list)
    for label in config.CLASSES:
        lacking[", ".join(split for split in labels if label not in labels[split])].append(label)
    lacking.pop("", None)
    for splits, lacked in lacking.items():
        problems.append(f"{splits}: no image of {', '.join(lacked)}; each class needs one")
    twice = {}
    for places in copies.values():
        for path, place in places.items():
            other = next((p for p in places if places[p] != place), None)
            if other:
                twice[path] = f"the same image in another class or split, which flatters ({other})"

    # each image and its problem in a file, a line per folder and kind here
    lines = [f"{path}: {text}\n" for path, text in sorted([*bad.items(), *twice.items()])]
    if lines:
        write_file(PROBLEMS_PATH, "".join(lines).encode(errors="surrogateescape"))
        print(f"[INFO] each image and what is wrong with it: {PROBLEMS_PATH}...")
    for line in [*group_problems(twice), *group_problems(bad), *problems]:
        print(f"[INFO] {line}")
    advice = ", or leave out images with --skip-bad" if bad and not skipBad else ""
    if problems or advice:
        raise UserError(f"nothing was copied; mend the above{advice}")
    print(f"[INFO] total images left out: {len(bad)}...")
    return bad


def find_targets(rootDirs):
    """Return {imagePath: (label, filename)}, and {imagePath: what is wrong} for the others."""
    (targets, bad) = ({}, {})
    # the training folder last, which has all classes
    for rootDir in dict.fromkeys(reversed(rootDirs)):
        report_others(rootDir)
        (imagePaths, places) = (list_images(rootDir), {})
        for path in imagePaths:
            try:
                targets[path] = get_target(path, rootDir)
                other = places.setdefault(os.path.join(*targets[path]).lower(), path)
                if other != path:
                    bad[path] = f"same name and class as another image ({other}); rename one"
            except UserError as error:
                bad[path] = str(error)
        inFolders = {path for path in imagePaths if os.sep in os.path.relpath(path, rootDir)}
        if inFolders & targets.keys():
            # beside class folders a name is no class index
            bad.update(dict.fromkeys(set(imagePaths) - inFolders, "in no class folder; move it"))
    if inFolders - targets.keys():
        names = sorted({os.path.relpath(path, rootDir).split(os.sep)[0] for path in inFolders})
        print(f"[INFO] to take all folders in {rootDir} as classes: CLASSES = {names}")
    if inFolders and not targets:
        raise UserError("no folder is in CLASSES of config.py; replace it by the list above")
    paths = [os.path.join(config.DATA_PATH, name) for name in os.listdir(config.DATA_PATH)]
    others = sorted(p for p in paths if p not in rootDirs and (os.path.isdir(p) or is_image(p)))
    others = [path for path in others if os.path.basename(path)[0] != "."]
    if others and rootDirs[0] != config.DATA_PATH:
        print(f"[INFO] in no split, not copied: {len(others)}, such as {others[0]}...")
    return targets, bad


def digest_image(path):
    """Return a digest of an image file, or the UserError if it cannot be read."""
    try:
        load_image(path, config.IMAGE_SIZE)
    except UserError as error:
        return UserError(str(error).removeprefix(f"{path}: "))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def find_leftovers(destiDir, targets):
    """Return what to say of images in destiDir that are not in targets, but would be trained on."""
    places = {os.path.normpath(os.path.join(destiDir, *t)).lower() for t in targets.values()}
    present = list_images(destiDir) if os.path.exists(destiDir) else []
    present = {os.path.normpath(path).lower(): path for path in present}
    (gone, new) = (sorted(present.keys() - places), len(places - present.keys()))
    text = f"{destiDir} holds {len(gone)} images that are not in the data set or split any more"
    text += f", and lacks {new} new ones; delete {destiDir} and run again"
    return [f"{text} ({present[gone[0]]})"] if gone else []


def group_problems(bad):
    """Yield a line for each folder and kind of problem; bad: {imagePath: what is wrong}."""
    groups = defaultdict(list)
    for path, text in bad.items():
        kind = re.sub(r" \(.*\)", "", text, flags=re.DOTALL)
        groups[os.path.dirname(path), kind].append(path)
    for (folder, _), paths in groups.items():
        where = f"{folder}: {len(paths)} images, such as {os.path.basename(paths[0])}"
        yield f"{where if len(paths) > 1 else paths[0]}: {bad[paths[0]]}"
