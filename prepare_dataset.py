"""Step 1: copy the Food-11 photographs into one folder per class."""

# import the necessary packages
import filecmp
import os
import shutil

from imutils import paths
from tqdm import tqdm

from pyimagesearch import cli, config
from pyimagesearch.errors import UserError, run
from pyimagesearch.sample_dataset import draw_dataset


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


def copy_images(rootDir, destiDir):
    """Copy each image under rootDir to destiDir/<label>/<filename>.

    Raises UserError where two labels share a folder or an image has no label.
    """
    check_labels()
    imagePaths = sorted(paths.list_images(rootDir))
    print(f"[INFO] total images found: {len(imagePaths)}...")
    labels = [get_label(imagePath, rootDir) for imagePath in imagePaths]
    for imagePath, label in zip(tqdm(imagePaths), labels, strict=True):
        copy_image(imagePath, os.path.join(destiDir, label, os.path.basename(imagePath)))
    total = len(list(paths.list_images(destiDir)))
    print(f"[INFO] total images copied to {destiDir}: {total}...")


def main():
    parser = cli.make_parser(__doc__, ["SEED"])
    parser.add_argument(
        "--sample",
        action="store_true",
        help="first draw a small synthetic Food-11 at DATA_PATH, unless that exists",
    )
    args = cli.parse_args(parser)
    if args.sample and not os.path.exists(config.DATA_PATH):
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)

    print("[INFO] copying images...")
    copy_images(os.path.join(config.DATA_PATH, "training"), config.TRAIN)
    copy_images(os.path.join(config.DATA_PATH, "validation"), config.VAL)
    copy_images(os.path.join(config.DATA_PATH, "evaluation"), config.TEST)


if __name__ == "__main__":
    run(main)
