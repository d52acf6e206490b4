# USAGE
# python prepare_dataset.py
# python prepare_dataset.py --sample
"""Step 1: copy the photographs into one folder per class and split."""

# import the necessary packages
import filecmp
import os
import shutil
from contextlib import suppress

from pyimagesearch import cli, config
from pyimagesearch.cli import UserError
from pyimagesearch.dataset_checks import check_dataset, find_images, find_splits, get_label
from pyimagesearch.images import list_images
from pyimagesearch.sample_dataset import DISHES, MARK, draw_dataset

from tqdm import tqdm


def copy_images(rootDir, destiDir, skip=()):
    """Copy each image under rootDir, but those to skip, to destiDir/<label>/<filename>; raise
    UserError for one that has no label."""
    # grab the paths of all images of this split
    imagePaths = find_images(rootDir, destiDir, skip)
    print(f"[INFO] total images found: {len(imagePaths)}...")

    # loop over the image paths
    for imagePath in tqdm(imagePaths, desc="copying", disable=None):
        # extract the class label, and create its folder if there is none
        label = get_label(imagePath, rootDir)
        dirPath = os.path.join(destiDir, label)
        os.makedirs(dirPath, exist_ok=True)

        # construct the path of the output image and copy the file
        copy_image(imagePath, os.path.join(dirPath, os.path.basename(imagePath)))

    # count the images in the destination directory
    currentTotal = list_images(destiDir)
    print(f"[INFO] total images copied to {destiDir}: {len(currentTotal)}...")


def main():
    args = parse_args()
    if args.sample:
        make_sample()

    # look at all images before any is copied
    skip = check_dataset(args.skip_bad)

    # copy the images of each split into their class folders
    print("[INFO] copying images...")
    (trainDir, valDir, testDir) = find_splits()
    copy_images(trainDir, config.TRAIN, skip)
    copy_images(valDir, config.VAL, skip)
    copy_images(testDir, config.TEST, skip)
    report_totals()


def copy_image(imagePath, destiPath):
    """Copy a file unless it is there already; destiPath never holds a partial file."""
    if os.path.exists(destiPath) and filecmp.cmp(imagePath, destiPath):
        return
    # not a longer name, which the system may refuse
    partialPath = os.path.join(os.path.dirname(destiPath), ".partial")
    shutil.copyfile(imagePath, partialPath)
    # the time goes along, where the disk allows it: the next run sees that nothing changed
    with suppress(OSError):
        stat = os.stat(imagePath)
        os.utime(partialPath, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(partialPath, destiPath)


def report_totals():
    """Print a table of the images per class and split."""
    splits = (config.TRAIN, config.VAL, config.TEST)
    print(f"{'':20}{''.join(f'{os.path.basename(rootDir):>12}' for rootDir in splits)}")
    for name, folder in [*((label, label) for label in config.CLASSES), ("total", "")]:
        counts = [len(list_images(os.path.join(rootDir, folder))) for rootDir in splits]
        print(f"{name:20}{''.join(f'{count:12}' for count in counts)}")


def make_sample():
    """Draw the sample at DATA_PATH, unless it is there; raise UserError if something else is."""
    if os.path.exists(os.path.join(config.DATA_PATH, MARK)):
        print(f"[INFO] the sample is at {config.DATA_PATH} already...")
    elif os.path.exists(config.DATA_PATH):
        advice = "leave out --sample to prepare it, or generate the sample in another directory"
        raise UserError(f"{config.DATA_PATH} exists and is not the sample; {advice}")
    elif config.CLASSES != list(DISHES):
        raise UserError("the sample has the classes of Food-11: CLASSES in config.py must be those")
    else:
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)


def parse_args():
    """Return the parsed command line."""
    parser = cli.make_parser(__doc__, ["SEED"], example="python prepare_dataset.py --skip-bad")
    text = "first generate a small synthetic Food-11 at DATA_PATH, unless it is there (default: no)"
    parser.add_argument("--sample", action="store_true", help=text)
    text = "leave out unreadable images and those without a class (default: no)"
    parser.add_argument("--skip-bad", action="store_true", help=text)
    return cli.parse_args(parser)


if __name__ == "__main__":
    cli.run(main)
