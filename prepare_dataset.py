# USAGE
# python prepare_dataset.py
# python prepare_dataset.py --sample
"""Step 1: copy the photographs into one folder per class and split."""

# import the necessary packages
import filecmp
import hashlib
import os
import re
import shutil
import zlib
from collections import Counter, defaultdict

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from pyimagesearch import cli, config
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import list_images, load_image, tell_others
from pyimagesearch.sample_dataset import DISHES, draw_dataset

SPLITS = ("training", "validation", "evaluation")


def copy_images(rootDir, destiDir, targets=None):
    """Copy each image under rootDir to destiDir/<label>/<filename>.

    targets: {imagePath: destiPath} where they have been found already. Raises UserError where two
    labels share a folder or an image has no label.
    """
    # grab the path of each image, and the path to copy it to
    if targets is None:
        check_labels()
        (labels, bad) = find_labels(rootDir)
        if bad:
            raise UserError(group_problems(bad)[0])
        targets = find_targets(labels, destiDir)
    print(f"[INFO] total images found: {len(targets)}...")

    # loop over the image paths and copy each
    for imagePath, destiPath in tqdm(targets.items(), desc="copying", disable=None):
        copy_image(imagePath, destiPath)

    # count the images in the destination directory
    currentTotal = len(list_images(destiDir))
    print(f"[INFO] total images copied to {destiDir}: {currentTotal}...")


def copy_image(imagePath, destiPath):
    """Copy a file unless it is there already; destiPath never holds half a file."""
    if os.path.exists(destiPath) and filecmp.cmp(imagePath, destiPath):
        return
    os.makedirs(os.path.dirname(destiPath), exist_ok=True)
    # the time goes along, so that the next run sees at once that nothing changed; the
    # permissions do not, as they may forbid to write
    shutil.copyfile(imagePath, destiPath + ".partial")
    stat = os.stat(imagePath)
    os.utime(destiPath + ".partial", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(destiPath + ".partial", destiPath)


def simplify(name):
    """Return name as it is compared: Noodles/Pasta is also met as Noodles-Pasta."""
    return name.strip().lower().translate(str.maketrans("/\\- ", "____"))


def get_label(imagePath, rootDir):
    """Return the label of config.CLASSES that an image under rootDir belongs to, None if none.

    Either its folder is named so, rootDir/<label>/<any name>, or its name begins with the class
    index, rootDir/<class index>_<image number>.jpg.
    """
    folder = os.path.relpath(os.path.dirname(imagePath), rootDir)
    if folder != ".":
        labels = {simplify(label): label for label in config.CLASSES}
        return labels.get(simplify(folder))
    (index, underscore, _) = os.path.basename(imagePath).partition("_")
    if underscore and index.isdecimal() and int(index) < len(config.CLASSES):
        return config.CLASSES[int(index)]
    return None


def find_labels(rootDir):
    """Return {imagePath: label} for the images under rootDir, and {imagePath: what is wrong} for
    those without a label."""
    (labels, bad) = ({}, {})
    for imagePath in list_images(rootDir):
        label = get_label(imagePath, rootDir)
        if label:
            labels[imagePath] = label
        elif os.path.relpath(os.path.dirname(imagePath), rootDir) == ".":
            last = len(config.CLASSES) - 1
            bad[imagePath] = (
                f"the name does not begin with a class index from 0 to {last} and _; rename it"
            )
        else:
            bad[imagePath] = "the folder is not in CLASSES of config.py; add it there or remove it"
    return labels, bad


def find_targets(labels, destiDir):
    """Return {imagePath: destiPath} for {imagePath: label}."""
    return {
        path: os.path.normpath(os.path.join(destiDir, label, os.path.basename(path)))
        for path, label in labels.items()
    }


def group_problems(bad):
    """Return a line for each folder and kind of problem; bad: {imagePath: what is wrong}."""
    groups = defaultdict(list)
    for path, text in bad.items():
        # what stands in parentheses differs from image to image
        kind = re.sub(r" \(.*\)", "", text, flags=re.DOTALL)
        groups[os.path.dirname(path), kind].append(path)
    lines = []
    for (folder, _), found in groups.items():
        where = found[0]
        if len(found) > 1:
            where = f"{folder}: {len(found)} images, such as {os.path.basename(found[0])}"
        lines.append(f"{where}: {bad[found[0]]}")
    return lines


def check_labels():
    """Raise UserError if two of config.CLASSES would end up in one class folder."""
    seen = {}
    for label in config.CLASSES:
        # ImageFolder names a class after the outer folder
        folder = simplify(label.split("/")[0])
        if folder in seen:
            raise UserError(
                f"CLASSES in config.py: {seen[folder]!r} and {label!r} would share a class "
                "folder; rename one"
            )
        seen[folder] = label


def check_image(imagePath):
    """Return a digest of an image file, and what is wrong with it, None if nothing is."""
    try:
        load_image(imagePath, config.IMAGE_SIZE)
    except UserError as error:
        return None, str(error).removeprefix(f"{imagePath}: ")
    with open(imagePath, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest(), None


def hash_name(imagePath):
    """Return a number that follows from SEED and the file name alone."""
    name = f"{config.SEED} {os.path.basename(imagePath)}"
    # a file name may hold bytes that are no text
    return zlib.crc32(name.encode(errors="surrogateescape"))


def split_classes(labels):
    """Split {imagePath: label} into one for training, one for validation and one for evaluation.

    They get 70 %, 15 % and 15 % of each class, at least one image, by a hash of SEED and the file
    name: the same on every run.
    """
    splits = [{}, {}, {}]
    for label in config.CLASSES:
        images = [path for path in labels if labels[path] == label]
        images.sort(key=hash_name)
        held = max(1, round(0.15 * len(images)))
        for split, part in zip(
            splits, (images[2 * held :], images[:held], images[held : 2 * held]), strict=True
        ):
            split.update((path, label) for path in part)
    return [dict(sorted(split.items())) for split in splits]


def check_split(rootDir, destiDir, targets):
    """Return a list of what is wrong with one split, and with what is already in its
    destination; targets: {imagePath: destiPath}."""
    (seen, clashes) = ({}, {})
    for imagePath, destiPath in targets.items():
        # some file systems do not tell a.jpg from A.JPG
        other = seen.setdefault(destiPath.lower(), imagePath)
        if other != imagePath:
            clashes[imagePath] = f"same name and class as another image ({other}); rename one"
    problems = group_problems(clashes)
    folders = {os.path.dirname(destiPath) for destiPath in targets.values()}
    for index, label in enumerate(config.CLASSES):
        if os.path.normpath(os.path.join(destiDir, label)) not in folders:
            problems.append(
                f"{rootDir}: no image of class {index}, {label}, for {destiDir}; add one: each "
                "class needs an image in each of the three splits"
            )
    # leftovers of an earlier data set would be trained on, as ImageFolder takes all that it finds
    expected = set(targets.values())
    leftovers = [path for path in list_images(destiDir) if path not in expected]
    if leftovers:
        problems.append(
            f"{destiDir}: holds images of an earlier data set or split ({len(leftovers)}, such as "
            f"{leftovers[0]}); remove the folder {config.BASE_PATH} and run this script again"
        )
    return problems


def check_dataset(skipBad):
    """Check all images before anything is copied.

    Returns (rootDir, destiDir, {imagePath: destiPath}) for each split. Lists all problems and
    raises UserError if there are any; with skipBad, images that are unreadable or without a class
    are left out instead.
    """
    if not os.path.isdir(config.DATA_PATH):
        raise UserError(
            f"{config.DATA_PATH}: no such folder; put the data set there, set DATA_PATH in "
            "config.py to where it is, or draw one with --sample"
        )
    check_labels()
    rootDirs = [os.path.join(config.DATA_PATH, name) for name in SPLITS]
    isSplit = any(map(os.path.isdir, rootDirs))
    (labels, bad, problems) = ([], {}, [])
    for rootDir in rootDirs if isSplit else [config.DATA_PATH]:
        if not os.path.isdir(rootDir):
            raise UserError(f"{rootDir}: no such folder; each of the three splits needs one")
        (labelsHere, badHere) = find_labels(rootDir)
        labels.append(labelsHere)
        bad.update(badHere)
        tell_others(rootDir)

    # decode each image to the end
    imagePaths = [path for labelsHere in labels for path in labelsHere]
    answers = thread_map(check_image, imagePaths, desc="checking", disable=None)
    digests = {}
    for path, (digest, problem) in zip(imagePaths, answers, strict=True):
        digests[path] = digest
        if problem:
            bad[path] = problem
    labels = [{p: label for p, label in part.items() if p not in bad} for part in labels]
    if not isSplit:
        (rootDirs, labels) = ([config.DATA_PATH] * 3, split_classes(labels[0]))

    splits = []
    for rootDir, destiDir, labelsHere in zip(
        rootDirs, (config.TRAIN, config.VAL, config.TEST), labels, strict=True
    ):
        targets = find_targets(labelsHere, destiDir)
        problems += check_split(rootDir, destiDir, targets)
        splits.append((rootDir, destiDir, targets))
    if skipBad:
        for line in group_problems(bad):
            print(f"[INFO] left out: {line}")
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
    tell_copies([{digests[path] for path in part} for part in labels])
    return splits


def tell_copies(digests):
    """Say how many images are in more than one split; digests: those of each split."""
    counts = Counter(digest for part in digests for digest in part)
    copies = sum(count > 1 for count in counts.values())
    if copies:
        print(f"[INFO] images in more than one split: {copies}; accuracy will look too high...")


def tell_totals(splits):
    """Print a table of the images per class and split; splits: what check_dataset returned."""
    print(f"{'':20}{''.join(f'{name:>12}' for name in SPLITS)}")
    for label in config.CLASSES:
        counts = []
        for _, destiDir, targets in splits:
            folder = os.path.normpath(os.path.join(destiDir, label))
            counts.append(sum(os.path.dirname(path) == folder for path in targets.values()))
        print(f"{label:20}{''.join(f'{count:12}' for count in counts)}")
    totals = [len(targets) for *_, targets in splits]
    print(f"{'total':20}{''.join(f'{count:12}' for count in totals)}")


def make_sample():
    """Draw the sample at DATA_PATH, unless there is something already."""
    if os.path.exists(config.DATA_PATH):
        print(f"[INFO] {config.DATA_PATH} exists, no sample is drawn...")
    elif config.CLASSES != list(DISHES):
        raise UserError("the sample has the classes of Food-11: CLASSES in config.py must be those")
    else:
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)


def parse_args():
    """Return the parsed command line."""
    parser = cli.make_parser(__doc__, ["SEED"], example="python prepare_dataset.py --skip-bad")
    parser.add_argument(
        "--sample",
        action="store_true",
        help="first draw a small synthetic Food-11 at DATA_PATH, unless that exists (default: no)",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out unreadable images and those without a class (default: no)",
    )
    return cli.parse_args(parser)


def main():
    args = parse_args()
    if args.sample:
        make_sample()

    # look at all images before any is copied
    splits = check_dataset(args.skip_bad)

    # copy the images into their class folders
    print("[INFO] copying images...")
    for rootDir, destiDir, targets in splits:
        copy_images(rootDir, destiDir, targets)
    tell_totals(splits)


if __name__ == "__main__":
    cli.run(main)
