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
from pyimagesearch.create_dataloaders import load_image
from pyimagesearch.errors import UserError, run
from pyimagesearch.sample_dataset import DISHES, draw_dataset

# pictures that a data set may hold and that the scripts do not read
OTHER_PICTURES = (
    *(".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm"),
    *(".svg", ".webp"),
)


def simplify(name):
    """Return name as it is compared: Noodles/Pasta is also met as Noodles-Pasta."""
    return name.strip().lower().translate(str.maketrans("/\\- ", "____"))


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


def get_label(imagePath, rootDir):
    """Return the label of config.CLASSES that an image under rootDir belongs to.

    A folder says it by its name, rootDir/<label>/<any name>; directly in rootDir, the file name
    begins with the class index, <class index>_<image number>.jpg. Raises UserError for others.
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


def get_target(imagePath, rootDir, destiDir):
    """Return where an image under rootDir is copied to: destiDir/<label>/<filename>."""
    path = os.path.join(destiDir, get_label(imagePath, rootDir), os.path.basename(imagePath))
    return os.path.normpath(path)


def check_image(imagePath, rootDir):
    """Return what is wrong with an image of the source, None if nothing is."""
    try:
        get_label(imagePath, rootDir)
        load_image(imagePath)
    except UserError as error:
        return str(error)
    return None


def check_split(rootDir, destiDir):
    """Look at all that one split holds, and at what lies where it is copied to.

    Returns what is wrong with images that could be left out, {path: problem}, and a list of all
    other problems.
    """
    if not os.path.isdir(rootDir):
        return {}, [f"{rootDir}: no such folder"]
    imagePaths = sorted(paths.list_images(rootDir))
    answers = thread_map(lambda path: check_image(path, rootDir), imagePaths, desc="checking")
    bad = {path: answer for path, answer in zip(imagePaths, answers, strict=True) if answer}

    (sources, seen, problems) = ({}, {}, [])
    for imagePath in imagePaths:
        if imagePath not in bad:
            destiPath = get_target(imagePath, rootDir, destiDir)
            sources[destiPath] = imagePath
            # some file systems do not tell a.jpg from A.JPG
            other = seen.setdefault(destiPath.lower(), imagePath)
            if other != imagePath:
                problems.append(f"{imagePath}: would replace {other}; rename one")
    labels = {get_label(imagePath, rootDir) for imagePath in sources.values()}
    for index, label in enumerate(config.CLASSES):
        if label not in labels:
            problems.append(f"{rootDir}: no image of class {index}, {label}")
    # what lies there already would be trained on, as ImageFolder takes all that it finds
    found = filter(is_image_file, map(os.path.normpath, paths.list_files(destiDir)))
    leftovers = Counter(os.path.dirname(path) for path in found if path not in sources)
    for folder, count in leftovers.items():
        problems.append(f"{folder}: holds {count} images that {rootDir} does not; remove them")
    return bad, problems


def check_dataset(splits, skipBad):
    """Look at everything before anything is copied; return the images to leave out.

    Lists all problems and raises UserError if there are any; with skipBad, images that are
    unreadable or without a class are no problem but left out.
    """
    if not os.path.isdir(config.DATA_PATH):
        raise UserError(
            f"{config.DATA_PATH}: no such folder; put the data set there, name its place as "
            "DATA_PATH in config.py, or draw one with --sample"
        )
    check_labels()
    (bad, problems) = ({}, [])
    for rootDir, destiDir in splits:
        (badHere, problemsHere) = check_split(rootDir, destiDir)
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
    return bad


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


def copy_images(rootDir, destiDir, skip=()):
    """Copy each image under rootDir, but those in skip, to destiDir/<label>/<filename>.

    Raises UserError where two labels share a folder or an image has no label.
    """
    check_labels()
    imagePaths = sorted(paths.list_images(rootDir))
    print(f"[INFO] total images found: {len(imagePaths)}...")
    pairs = [(path, get_target(path, rootDir, destiDir)) for path in imagePaths if path not in skip]
    for imagePath, destiPath in tqdm(pairs, desc="copying"):
        copy_image(imagePath, destiPath)
    total = len(list(paths.list_images(destiDir)))
    print(f"[INFO] total images copied to {destiDir}: {total}...")


def make_sample():
    """Draw the sample at DATA_PATH, unless there is something already."""
    if os.path.exists(config.DATA_PATH):
        print(f"[INFO] {config.DATA_PATH} exists, no sample is drawn...")
    elif config.CLASSES != list(DISHES):
        raise UserError("the sample has the classes of Food-11: CLASSES in config.py must be those")
    else:
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)


def main():
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
    args = cli.parse_args(parser)
    if args.sample:
        make_sample()

    splits = [
        (os.path.join(config.DATA_PATH, "training"), config.TRAIN),
        (os.path.join(config.DATA_PATH, "validation"), config.VAL),
        (os.path.join(config.DATA_PATH, "evaluation"), config.TEST),
    ]
    bad = check_dataset(splits, args.skip_bad)
    print("[INFO] copying images...")
    for rootDir, destiDir in splits:
        copy_images(rootDir, destiDir, skip=bad)


if __name__ == "__main__":
    run(main, goOn="the same command goes on where it stopped")
