# Checks before copying: the class and split of each image, and all that is wrong with the data set.

import hashlib
import os
import random
import re
from collections import defaultdict
from contextlib import suppress

from tqdm.contrib.concurrent import thread_map

from . import config
from .checkpoint import write_file
from .cli import UserError, simplify
from .images import list_images, report_others, try_image

# a list of the images that cannot be used, with the reasons
BAD_PATH = os.path.join("output", "bad_images.txt")
# the names of the folders of each split
SPLITS = (("training", "train"), ("validation", "val", "valid"), ("evaluation", "test", "testing"))


def get_label(imagePath, rootDir):
    """Return the label of an image under rootDir: either its folder is named so, or its name begins
    with the class index, <class index>_<image number>.jpg. Raises UserError if neither does."""
    folder = os.path.relpath(os.path.dirname(imagePath), rootDir)
    if folder == ".":
        (index, underscore, _) = os.path.basename(imagePath).partition("_")
        if underscore and index.isdecimal() and int(index) < len(config.CLASSES):
            return config.CLASSES[int(index)]
        limits = f"from 0 to {len(config.CLASSES) - 1} and _"
        raise UserError(f"the name does not begin with a class index {limits}; rename it")
    labels = {simplify(label): label for label in config.CLASSES}
    if simplify(folder) in labels:
        return labels[simplify(folder)]
    outer = folder.split(os.sep)[0]
    if simplify(outer) in labels:
        raise UserError(f"in a folder inside the class folder {outer}; move its images up")
    raise UserError("the folder is not in CLASSES of config.py; add it there or move it away")


def find_splits():
    """Return the folders to copy to TRAIN, VAL and TEST; DATA_PATH thrice if it has no splits.
    Raises UserError if there is no DATA_PATH, or if the copies would mix with it."""
    root = config.DATA_PATH
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; put the data set there, set DATA_PATH in config.py to where "
            "it is, or draw one with --sample"
        )
    for destiDir in (config.TRAIN, config.VAL, config.TEST):
        (source, copy) = (os.path.realpath(path) + os.sep for path in (root, destiDir))
        if source.startswith(copy) or copy.startswith(source):
            raise UserError(
                f"DATA_PATH in config.py is {root}, and the copies in {destiDir} would mix with "
                "it; set another BASE_PATH"
            )
    labels = [simplify(label) for label in config.CLASSES]
    folders = {name.lower(): name for name in os.listdir(root) if simplify(name) not in labels}
    found = [[folders[name] for name in names if name in folders] for names in SPLITS]
    if not any(found):
        return [root] * 3
    return [os.path.join(root, (*a, *b)[0]) for a, b in zip(found, SPLITS, strict=True)]


def find_images(rootDir, destiDir, skip=()):
    """Return the images under rootDir to copy to destiDir, but those to skip. Class folders without
    splits are split here: 15 % of each class, at least one, for VAL and for TEST, by SEED."""
    imagePaths = [path for path in list_images(rootDir) if path not in skip]
    if rootDir != config.DATA_PATH:
        return imagePaths
    classes = defaultdict(list)
    for path in imagePaths:
        classes[get_label(path, rootDir)].append(path)
    share = []
    for paths in classes.values():
        random.Random(config.SEED).shuffle(paths)
        held = max(1, round(0.15 * len(paths)))
        parts = {config.VAL: paths[:held], config.TEST: paths[held : 2 * held]}
        share += parts.get(destiDir, paths[2 * held :])
    return sorted(share)


def check_dataset(skipBad):
    """Look at all images before anything is copied; return those that skipBad leaves out. Prints
    all problems and raises UserError if there are any."""
    rootDirs = find_splits()
    (labels, bad, unread) = find_labels(rootDirs)
    # decode each image to the end
    answers = thread_map(digest_image, labels, desc="checking", disable=None)
    digests = dict(zip(labels, answers, strict=True))
    bad.update({path: str(d) for path, d in digests.items() if isinstance(d, UserError)})

    (problems, copies) = ([], defaultdict(dict))
    for rootDir, destiDir in zip(rootDirs, (config.TRAIN, config.VAL, config.TEST), strict=True):
        here = {path: labels[path] for path in find_images(rootDir, destiDir, bad)}
        problems += check_split(rootDir, destiDir, here, unread)
        for path, label in here.items():
            copies[digests[path]][path] = (destiDir, label)
    if bad:
        # each reason can be read there, and the summary stays short
        text = "".join(f"{path}: {reason}\n" for path, reason in sorted(bad.items()))
        write_file(BAD_PATH, text.encode(errors="surrogateescape"))
        print(f"[INFO] each image and what is wrong with it: {BAD_PATH}...")
    if skipBad:
        print(*(f"[INFO] left out: {line}\n" for line in group_problems(bad)), sep="", end="")
        print(f"[INFO] total images left out: {len(bad)}...")
    else:
        problems = [*group_problems(bad), *problems]
    if problems:
        print(*problems, sep="\n")
        advice = "; --skip-bad leaves out unreadable images and those without a class"
        raise UserError(
            f"nothing was copied; problems listed above: {len(problems)}, the first: "
            f"{problems[0]}{advice if bad and not skipBad else ''}"
        )
    for place, noun in enumerate(("split", "class")):
        # one path for each split or class
        found = [{p[place]: path for path, p in c.items()}.values() for c in copies.values()]
        found = [paths for paths in found if len(paths) > 1]
        if found:
            example = f"{len(found)}, such as {' and '.join(list(found[0])[:2])}"
            effect = "; accuracy will look too high" if noun == "split" else ""
            print(f"[INFO] images in more than one {noun}: {example}{effect}...")
    return bad


def find_labels(rootDirs):
    """Return {imagePath: label} for the images under rootDirs, {imagePath: what is wrong} for those
    without a label, and the labels with pictures that cannot be read. Raises UserError if a split
    is missing, or if no folder has the name of a class."""
    (labels, bad, unread) = ({}, {}, set())
    for rootDir in dict.fromkeys(rootDirs):
        if not os.path.isdir(rootDir):
            names = ", ".join(names[0] for names in SPLITS)
            raise UserError(f"{rootDir}: no such folder; there must be three: {names}")
        for path in report_others(rootDir):
            with suppress(UserError):
                unread.add(get_label(path, rootDir))
        for path in list_images(rootDir):
            try:
                labels[path] = get_label(path, rootDir)
            except UserError as error:
                bad[path] = str(error)
    root = rootDirs[0]
    folders = {
        os.path.relpath(path, root).split(os.sep)[0] for path in bad if path.startswith(root)
    }
    if not labels and any(os.path.isdir(os.path.join(root, name)) for name in folders):
        raise UserError(
            f"{root}: no folder has a name in CLASSES of config.py; to take them all: CLASSES = "
            f"{sorted(folders)}"
        )
    for name in sorted(os.listdir(config.DATA_PATH)) if root != config.DATA_PATH else ():
        path = os.path.join(config.DATA_PATH, name)
        if os.path.isdir(path) and path not in rootDirs and not name.startswith("."):
            print(f"[INFO] {path} is not one of the three splits and is not copied...")
    return labels, bad, unread


def digest_image(path):
    """Return a digest of an image file, or the UserError if it cannot be read."""
    image = try_image(path, config.IMAGE_SIZE)
    if isinstance(image, UserError):
        return UserError(str(image).removeprefix(f"{path}: "))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_split(rootDir, destiDir, labels, unread):
    """Return a list of what is wrong with the images of one split, and with what is already in its
    destination; labels: {imagePath: label}, unread: labels with pictures that cannot be read."""
    (targets, clashes) = ({}, {})
    for path, label in labels.items():
        target = os.path.normpath(os.path.join(destiDir, label, os.path.basename(path)))
        # some file systems are case-insensitive
        other = targets.setdefault(target.lower(), path)
        if other != path:
            clashes[path] = f"same name and class as another image ({other}); rename one"
    problems = group_problems(clashes)
    for index, label in enumerate(config.CLASSES):
        if label not in labels.values():
            advice = "convert its pictures to JPEG" if label in unread else "add one"
            problems.append(
                f"{rootDir}: no image of class {index}, {label}, for {destiDir}; {advice}: each "
                "class needs an image in each of the three splits"
            )
    # leftovers of an earlier data set would be trained on, as ImageFolder takes all that it finds
    leftovers = [path for path in list_images(destiDir) if path.lower() not in targets]
    if leftovers:
        problems.append(
            f"{destiDir}: holds images of an earlier data set or split ({len(leftovers)}, such as "
            f"{leftovers[0]}); move {config.BASE_PATH} away, or set another BASE_PATH in config.py"
        )
    return problems


def group_problems(bad):
    """Return a line for each folder and kind of problem; bad: {imagePath: what is wrong}."""
    groups = defaultdict(list)
    for path, text in bad.items():
        # ignore details in parentheses
        kind = re.sub(r" \(.*\)", "", text, flags=re.DOTALL)
        groups[os.path.dirname(path), kind].append(path)
    lines = []
    for (folder, _), (first, *others) in groups.items():
        name = f"{folder}: {len(others) + 1} images, such as {os.path.basename(first)}"
        lines.append(f"{name if others else first}: {bad[first]}")
    return lines
