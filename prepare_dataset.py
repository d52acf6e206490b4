# USAGE
# python prepare_dataset.py
# python prepare_dataset.py --sample
"""Step 1: copy the Food-11 photographs into one folder per class."""

# import the necessary packages
import filecmp
import os
import shutil
from collections import Counter

from imutils import paths
from torchvision.datasets.folder import is_image_file
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from pyimagesearch import cli, config
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import load_image
from pyimagesearch.sample_dataset import DISHES, draw_dataset

# pictures that a data set may hold and that the scripts do not read
OTHER_PICTURES = (
    *(".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm"),
    *(".svg", ".webp"),
)


def copy_images(rootDir, destiDir, targets=None):
    """Copy each image under rootDir to destiDir/<label>/<filename>.

    targets: {imagePath: destiPath} where they have been found already, by find_targets(). Raises
    UserError where two labels share a folder or an image has no label.
    """
    # get the path of each image, and the path to copy it to
    if targets is None:
        check_labels()
        (targets, bad) = find_targets(rootDir, destiDir)
        for problem in bad.values():
            raise UserError(problem)
    print(f"[INFO] total images found: {len(targets)}...")

    # loop over the image paths and copy each
    for imagePath, destiPath in tqdm(targets.items(), desc="copying"):
        copy_image(imagePath, destiPath)

    # count the images in the destination directory
    currentTotal = len(list(paths.list_images(destiDir)))
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
    """Return the label of config.CLASSES that an image under rootDir belongs to.

    Either its folder is named so, rootDir/<label>/<any name>, or its name begins with the class
    index, rootDir/<class index>_<image number>.jpg. Raises UserError for any other.
    """
    folder = os.path.relpath(os.path.dirname(imagePath), rootDir)
    if folder != ".":
        labels = {simplify(label): label for label in config.CLASSES}
        if simplify(folder) in labels:
            return labels[simplify(folder)]
        raise UserError(f"{imagePath}: the folder {folder!r} is not in CLASSES of config.py")
    (index, underscore, _) = os.path.basename(imagePath).partition("_")
    if underscore and index.isdecimal() and int(index) < len(config.CLASSES):
        return config.CLASSES[int(index)]
    raise UserError(
        f"{imagePath}: the name does not begin with a class index from 0 to "
        f"{len(config.CLASSES) - 1} and an underscore"
    )


def find_targets(rootDir, destiDir):
    """Return {imagePath: destiPath} for each image under rootDir with a label, and {imagePath:
    problem} for the others."""
    (targets, bad) = ({}, {})
    for imagePath in sorted(paths.list_images(rootDir)):
        try:
            label = get_label(imagePath, rootDir)
        except UserError as error:
            bad[imagePath] = str(error)
            continue
        path = os.path.join(destiDir, label, os.path.basename(imagePath))
        targets[imagePath] = os.path.normpath(path)
    return targets, bad


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
    """Return what is wrong with an image file, None if nothing is."""
    try:
        load_image(imagePath)
    except UserError as error:
        return str(error)
    return None


def check_split(rootDir, destiDir):
    """Check one split's images, and what is already in its destination.

    Returns {imagePath: destiPath} of the images to copy, {imagePath: problem} of those that could
    be left out, and a list of all other problems.
    """
    if not os.path.isdir(rootDir):
        return {}, {}, [f"{rootDir}: no such folder"]
    (targets, bad) = find_targets(rootDir, destiDir)
    answers = thread_map(check_image, targets, desc="checking")
    bad.update({path: answer for path, answer in zip(targets, answers, strict=True) if answer})
    targets = {path: destiPath for path, destiPath in targets.items() if path not in bad}

    (seen, problems) = ({}, [])
    for imagePath, destiPath in targets.items():
        # some file systems do not tell a.jpg from A.JPG
        other = seen.setdefault(destiPath.lower(), imagePath)
        if other != imagePath:
            problems.append(f"{imagePath}: would replace {other}; rename one")
    folders = {os.path.dirname(destiPath) for destiPath in targets.values()}
    for index, label in enumerate(config.CLASSES):
        if os.path.normpath(os.path.join(destiDir, label)) not in folders:
            problems.append(f"{rootDir}: no image of class {index}, {label}")
    # leftovers of an earlier data set would be trained on, as ImageFolder takes all that it finds
    expected = set(targets.values())
    found = filter(is_image_file, map(os.path.normpath, paths.list_files(destiDir)))
    leftovers = Counter(os.path.dirname(path) for path in found if path not in expected)
    for folder, count in leftovers.items():
        problems.append(f"{folder}: holds {count} images that {rootDir} does not; remove them")
    return targets, bad, problems


def check_dataset(splits, skipBad):
    """Check all splits before anything is copied; return {imagePath: destiPath} of each.

    Lists all problems and raises UserError if there are any; with skipBad, images that are
    unreadable or without a class are no problem but left out.
    """
    if not os.path.isdir(config.DATA_PATH):
        raise UserError(
            f"{config.DATA_PATH}: no such folder; put the data set there, set DATA_PATH in "
            "config.py to where it is, or draw one with --sample"
        )
    check_labels()
    (targets, bad, problems) = ([], {}, [])
    for rootDir, destiDir in splits:
        (targetsHere, badHere, problemsHere) = check_split(rootDir, destiDir)
        targets.append(targetsHere)
        bad.update(badHere)
        problems += problemsHere
        others = list(paths.list_files(rootDir, validExts=OTHER_PICTURES))
        if others:
            kinds = ", ".join(OTHER_PICTURES)
            print(f"[INFO] {len(others)} pictures in {rootDir} passed over ({kinds})...")
    if skipBad:
        for answer in bad.values():
            print(f"[INFO] left out: {answer}")
        print(f"[INFO] total images left out: {len(bad)}...")
    else:
        problems = [*bad.values(), *problems]
    if problems:
        print(*problems, sep="\n")
        advice = "; --skip-bad leaves out unreadable images and those without a class"
        raise UserError(
            f"nothing was copied; problems listed above: {len(problems)}, the first: "
            f"{problems[0]}{advice if bad and not skipBad else ''}"
        )
    return targets


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
        help="leave out images that are unreadable or whose name gives no class (default: no)",
    )
    return cli.parse_args(parser)


def main():
    args = parse_args()
    if args.sample:
        make_sample()

    # look at all images before any is copied
    splits = [
        (os.path.join(config.DATA_PATH, "training"), config.TRAIN),
        (os.path.join(config.DATA_PATH, "validation"), config.VAL),
        (os.path.join(config.DATA_PATH, "evaluation"), config.TEST),
    ]
    targets = check_dataset(splits, args.skip_bad)

    # copy the images into their class folders
    print("[INFO] copying images...")
    for (rootDir, destiDir), targetsHere in zip(splits, targets, strict=True):
        copy_images(rootDir, destiDir, targetsHere)


if __name__ == "__main__":
    cli.run(main, advice="run the same command again to continue")
