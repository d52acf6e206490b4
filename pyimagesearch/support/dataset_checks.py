"""What is wrong with a data set, said before anything is copied."""

import os
import re
from collections import defaultdict
from contextlib import suppress

from pyimagesearch import config

from .errors import UserError
from .files import digest_file, write_file
from .images import is_image

# each image with what is wrong with it
PROBLEMS_PATH = os.path.join("output", "bad_images.txt")


def check_plan(plan, skipBad):
    """Print what is wrong with a data set, a line for each folder and kind, and list each image
    with a problem in a file. Raises UserError if the plan cannot be copied, but for images that
    skipBad, a truth value, leaves out."""
    print_held_out(plan)
    print_strays(plan.rootDirs)
    same = find_same_images(plan.photographs)
    foreign = find_foreign_files(plan) | find_leftovers(plan)
    write_problems(same | plan.problems | foreign)
    lacking = find_lacking_classes(plan.photographs)
    lines = [*group_problems(same), *group_problems(plan.problems), *group_problems(foreign)]
    for line in [*lines, *lacking]:
        print(f"[INFO] {line}")
    advice = "fix the problems above"
    isBad = bool(plan.problems) and not skipBad
    if isBad:
        advice += ", or leave images out with --skip-bad"
    if isBad or foreign or lacking:
        raise UserError(f"nothing was copied; {advice}")
    print(f"[INFO] total images left out: {len(plan.problems)}...")


def print_held_out(plan):
    """Print how many training images are held out for the splits that are not there."""
    trainDir = plan.rootDirs[0]
    for destiDir in (config.VAL, config.TEST):
        numHeldOut = len(plan.list_images(trainDir, destiDir))
        if numHeldOut:
            print(f"[INFO] held out of {trainDir} for {destiDir}: {numHeldOut} images...")


def print_strays(rootDirs):
    """Print how many images and folders beside the splits are in none of them."""
    if rootDirs[0] == config.DATA_PATH:
        return
    strays = []
    for name in sorted(os.listdir(config.DATA_PATH)):
        path = os.path.join(config.DATA_PATH, name)
        isPart = os.path.isdir(path) or is_image(path)
        if isPart and not name.startswith(".") and path not in rootDirs:
            strays.append(path)
    if strays:
        print(f"[INFO] in no split, not copied: {len(strays)}, such as {strays[0]}...")


def find_same_images(photographs):
    """Return {path: text} of the photographs whose bytes are also in another class or split."""
    groups = defaultdict(list)
    for photograph in photographs:
        groups[photograph.digest].append(photograph)
    problems = {}
    for group in groups.values():
        for photograph in group:
            place = (photograph.destiDir, photograph.label)
            others = [other for other in group if (other.destiDir, other.label) != place]
            if others:
                text = f"also in another class or split ({others[0].path})"
                problems[photograph.path] = f"{text}: test scores will be too high"
    return problems


def find_foreign_files(plan):
    """Return {path: text} of the files that a copy would overwrite, but that were not copied: they
    are the user's own."""
    problems = {}
    for photograph in plan.photographs:
        found = photograph.copyDigest
        if found in (None, photograph.digest, plan.record["copies"].get(photograph.place)):
            continue
        text = f"not copied from {config.DATA_PATH}, and {photograph.path} would overwrite it"
        problems[plan.copies[photograph.place]] = f"{text}; move it away, or rename one"
    return problems


def find_leftovers(plan):
    """Return {path: text} of the images in TRAIN, VAL and TEST that the plan does not put there,
    but that the scripts would use. Only one that is also in DATA_PATH is said to be deleted."""
    planned = {photograph.place for photograph in plan.photographs}
    originals = {photograph.digest: photograph.path for photograph in plan.photographs}
    problems = {}
    for place, path in plan.copies.items():
        if place in planned:
            continue
        original = originals.get(digest_file(path))
        if original:
            text = f"a copy of an image that belongs elsewhere now ({original}); delete the copy"
        else:
            text = f"no copy of an image in {config.DATA_PATH}, but the scripts would use it"
            text += f"; move it to {config.DATA_PATH}, or away from here"
        problems[path] = text
    return problems


def find_lacking_classes(photographs):
    """Return a line for each group of classes of which the same splits have no image."""
    splits = defaultdict(set)
    for photograph in photographs:
        splits[photograph.label].add(photograph.destiDir)
    groups = defaultdict(list)
    for label in config.CLASSES:
        lacking = [s for s in (config.TRAIN, config.VAL, config.TEST) if s not in splits[label]]
        if lacking:
            groups[", ".join(lacking)].append(label)
    lines = []
    for lacking, labels in groups.items():
        lines.append(f"{lacking}: no image of {', '.join(labels)}; each class needs one")
    return lines


def write_problems(problems):
    """List {path: what is wrong with it} in a file, which is not there where nothing is wrong."""
    with suppress(FileNotFoundError):
        os.remove(PROBLEMS_PATH)
    lines = [f"{path}: {text}\n" for path, text in sorted(problems.items())]
    if lines:
        write_file(PROBLEMS_PATH, "".join(lines).encode(errors="surrogateescape"))
        print(f"[INFO] each image and what is wrong with it: {PROBLEMS_PATH}...")


def group_problems(problems):
    """Return a line for each folder and kind of problem; problems: {path: what is wrong}."""
    groups = defaultdict(list)
    for path, text in problems.items():
        # what is in parentheses differs from image to image
        kind = re.sub(r" \(.*\)", "", text, flags=re.DOTALL)
        groups[os.path.dirname(path), kind].append(path)
    lines = []
    for (folder, _), paths in groups.items():
        where = paths[0]
        if len(paths) > 1:
            where = f"{folder}: {len(paths)} images, such as {os.path.basename(paths[0])}"
        lines.append(f"{where}: {problems[paths[0]]}")
    return lines
