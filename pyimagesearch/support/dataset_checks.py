"""What is wrong with a data set, said before anything is copied."""

import os
import re
from collections import defaultdict

from pyimagesearch import config

from .copies import is_own, normalize_path
from .errors import UserError
from .files import digest_file, remove_result, write_result
from .images import list_folder

# each image with what is wrong with it
PROBLEMS_PATH = os.path.join("output", "bad_images.txt")
# what to do about a photograph of the user's own among the copies
MOVE = "move it to your photographs, under a name that is free there, or away from here"


def check_plan(plan, skipBad):
    """Print what is wrong with a data set, a line for each folder and kind, and list each image
    with a problem in a file. Raises UserError if the plan cannot be copied, but for images that
    skipBad, a truth value, leaves out."""
    print_held_out(plan)
    print_strays(plan.rootDirs)
    same = find_same_images(plan.photographs)
    foreign = find_foreign_files(plan) | find_leftovers(plan) | find_renamed_classes(plan)
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
    strays = find_strays(config.DATA_PATH, rootDirs)
    if strays:
        print(f"[INFO] in no split, not copied: {len(strays)}, such as {strays[0]}...")


def find_strays(folder, rootDirs):
    """Return the paths of the images and folders under folder that are in none of the splits'
    folders."""
    if folder in rootDirs:
        return []
    (folders, strays) = list_folder(folder)
    for inner in folders:
        if any(f"{rootDir}{os.sep}".startswith(f"{inner}{os.sep}") for rootDir in rootDirs):
            strays += find_strays(inner, rootDirs)
        else:
            strays.append(inner)
    return sorted(strays)


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
        if found is None or photograph.isCopied or is_own(plan.record, photograph.place, found):
            continue
        path = plan.copies[photograph.place]
        text = f"not copied from {config.DATA_PATH}, and {photograph.path} would overwrite it"
        problems[path] = f"{text}; {advise(path, MOVE)}"
    return problems


def find_leftovers(plan):
    """Return {path: text} of the images in TRAIN, VAL and TEST that the plan does not put there,
    but that the scripts would use. Only what prepare has copied, and what is in DATA_PATH as well,
    is said to be deleted."""
    planned = {photograph.place for photograph in plan.photographs}
    originals = {photograph.digest: photograph.path for photograph in plan.photographs}
    problems = {}
    for place, path in plan.copies.items():
        if place in planned:
            continue
        digest = digest_file(path)
        original = originals.get(digest)
        isOwn = is_own(plan.record, place, digest)
        if original and isOwn:
            text = f"a copy of an image that belongs elsewhere now ({original}); delete the copy"
        elif original:
            text = f"not copied by prepare_dataset.py, and the same image as another ({original})"
            text += f"; {advise(path, 'move it away from here')}"
        else:
            text = f"no copy of an image in {config.DATA_PATH}, but the scripts would use it; "
            text += MOVE if isOwn else advise(path, MOVE)
        problems[path] = text
    return problems


def find_renamed_classes(plan):
    """Return {path: text} of the class folders whose label has other capitals in CLASSES now: new
    copies would go into a second folder."""
    folders = {}
    for photograph in plan.photographs:
        if photograph.isCopied:
            wanted = os.path.join(photograph.destiDir, photograph.label)
            folders[wanted] = os.path.dirname(plan.copies[photograph.place])
    problems = {}
    for wanted, folder in folders.items():
        # the same folder, where the file system is case-insensitive
        if not os.path.exists(wanted):
            text = f"CLASSES in config.py spells it otherwise; rename it to {wanted}"
            problems[folder] = text
    return problems


def advise(path, move):
    """Return what to do about a file of the user's own in TRAIN, VAL or TEST: move, a text, or not
    to have copies in a folder that is not in BASE_PATH, but the user's."""
    base = normalize_path(os.path.abspath(config.BASE_PATH)) + os.sep
    for name in ("TRAIN", "VAL", "TEST"):
        folder = normalize_path(os.path.abspath(getattr(config, name))) + os.sep
        isInside = normalize_path(os.path.abspath(path)).startswith(folder)
        if isInside and not folder.startswith(base):
            return f"set {name} in config.py to another folder while you prepare"
    return move


def find_lacking_classes(photographs):
    """Return a line for each group of classes of which the same splits have no image."""
    splits = defaultdict(set)
    for photograph in photographs:
        splits[photograph.label].add(photograph.destiDir)
    groups = defaultdict(list)
    for label in config.CLASSES:
        lacking = []
        for split in (config.TRAIN, config.VAL, config.TEST):
            if split not in splits[label]:
                lacking.append(split)
        if lacking:
            groups[", ".join(lacking)].append(label)
    lines = []
    for lacking, labels in groups.items():
        lines.append(f"{lacking}: no image of {', '.join(labels)}; each class needs one")
    return lines


def write_problems(problems):
    """List {path: what is wrong with it} in a file, which is not there where nothing is wrong."""
    remove_result(PROBLEMS_PATH)
    lines = [f"{path}: {text}\n" for path, text in sorted(problems.items())]
    if lines:
        data = "".join(lines).encode(errors="surrogateescape")
        path = write_result(PROBLEMS_PATH, data)
        print(f"[INFO] each image and what is wrong with it: {path}...")


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
