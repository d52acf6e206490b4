# What prepare_dataset.py looks at before it copies: the class and split of each image, and all that
# is wrong with the data set.

# import the necessary packages
import hashlib
import os
import random
import re
from collections import Counter, defaultdict

from tqdm.contrib.concurrent import thread_map

from . import config
from .cli import UserError, simplify
from .images import list_images, load_image, report_others

SPLITS = ("training", "validation", "evaluation")


def get_label(imagePath, rootDir):
    """Return the label of config.CLASSES that an image under rootDir belongs to.

    Either its folder is named so, rootDir/<label>/<any name>, or its name begins with the class
    index, rootDir/<class index>_<image number>.jpg. Raises UserError if neither does.
    """
    folder = os.path.relpath(os.path.dirname(imagePath), rootDir)
    if folder != ".":
        for label in config.CLASSES:
            if simplify(label) == simplify(folder):
                return label
        raise UserError("the folder is not in CLASSES of config.py; add it there or remove it")
    (index, underscore, _) = os.path.basename(imagePath).partition("_")
    if underscore and index.isdecimal() and int(index) < len(config.CLASSES):
        return config.CLASSES[int(index)]
    last = len(config.CLASSES) - 1
    raise UserError(f"the name does not begin with a class index from 0 to {last} and _; rename it")


def find_splits():
    """Return the folders to copy to TRAIN, VAL and TEST; DATA_PATH thrice if it has no splits."""
    rootDirs = [os.path.join(config.DATA_PATH, name) for name in SPLITS]
    return rootDirs if any(map(os.path.isdir, rootDirs)) else [config.DATA_PATH] * 3


def find_images(rootDir, destiDir, skip=()):
    """Return the paths of the images under rootDir to copy to destiDir, but those to skip.

    Class folders without splits are split here: of each class 15 % go to VAL and to TEST, at least
    one, and the others to TRAIN; SEED decides which.
    """
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
    """Look at all images before anything is copied; return those to leave out.

    Prints all problems and raises UserError if there are any; with skipBad, images that are
    unreadable or without a class are left out instead.
    """
    if not os.path.isdir(config.DATA_PATH):
        raise UserError(
            f"{config.DATA_PATH}: no such folder; put the data set there, set DATA_PATH in "
            "config.py to where it is, or draw one with --sample"
        )
    (labels, bad, rootDirs) = ({}, {}, find_splits())
    for rootDir in dict.fromkeys(rootDirs):
        if not os.path.isdir(rootDir):
            raise UserError(f"{rootDir}: no such folder; each of the three splits needs one")
        report_others(rootDir)
        for path in list_images(rootDir):
            try:
                labels[path] = get_label(path, rootDir)
            except UserError as error:
                bad[path] = str(error)
    # decode each image to the end
    answers = thread_map(digest_image, labels, desc="checking", disable=None)
    digests = dict(zip(labels, answers, strict=True))
    bad.update({path: str(d) for path, d in digests.items() if isinstance(d, UserError)})

    (problems, copies) = ([], Counter())
    for rootDir, destiDir in zip(rootDirs, (config.TRAIN, config.VAL, config.TEST), strict=True):
        imagePaths = find_images(rootDir, destiDir, bad)
        problems += check_split(rootDir, destiDir, {path: labels[path] for path in imagePaths})
        copies.update({digests[path] for path in imagePaths})
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
    count = sum(number > 1 for number in copies.values())
    if count:
        print(f"[INFO] images in more than one split: {count}; accuracy will look too high...")
    return bad


def digest_image(imagePath):
    """Return a digest of an image file, or the UserError if it cannot be read."""
    try:
        load_image(imagePath, config.IMAGE_SIZE)
    except UserError as error:
        return UserError(str(error).removeprefix(f"{imagePath}: "))
    with open(imagePath, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_split(rootDir, destiDir, labels):
    """Return a list of what is wrong with the images of one split, and with what is already in its
    destination; labels: {imagePath: label}."""
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
            problems.append(
                f"{rootDir}: no image of class {index}, {label}, for {destiDir}; add one: each "
                "class needs an image in each of the three splits"
            )
    # leftovers of an earlier data set would be trained on, as ImageFolder takes all that it finds
    leftovers = [path for path in list_images(destiDir) if path.lower() not in targets]
    if leftovers:
        problems.append(
            f"{destiDir}: holds images of an earlier data set or split ({len(leftovers)}, such as "
            f"{leftovers[0]}); remove the folder {config.BASE_PATH} and run this script again"
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
    for (folder, _), found in groups.items():
        where = found[0]
        if len(found) > 1:
            where = f"{folder}: {len(found)} images, such as {os.path.basename(found[0])}"
        lines.append(f"{where}: {bad[found[0]]}")
    return lines
