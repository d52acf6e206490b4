# USAGE
# python prepare_dataset.py
# python prepare_dataset.py --sample
"""Step 1: copy the photographs into one folder per class and split."""

# import the necessary packages
import gc

if __name__ == "__main__":
    # a search for garbage, which these imports make little of, takes a quarter of their time;
    # script.run() turns it on again
    gc.disable()

import argparse
import os
import shutil

from imutils import paths

from pyimagesearch import config
from pyimagesearch.support import script, settings
from pyimagesearch.support.copies import record_copies
from pyimagesearch.support.dataset_checks import check_plan
from pyimagesearch.support.files import replace_file
from pyimagesearch.support.images import EXTENSIONS, is_image
from pyimagesearch.support.plan import plan_copies
from pyimagesearch.support.progress import progress
from pyimagesearch.support.sample_dataset import draw_dataset


def copy_images(rootDir, destiDir, plan):
    """Copy the images in rootDir that the plan has in destiDir to destiDir/<label>/<filename>."""
    # grab the images of this split
    images = plan.list_images(rootDir, destiDir)
    print(f"[INFO] total images found: {len(images)}...")

    # loop over the images
    for image in progress(images, "copying", "images"):
        # an earlier run may have copied it
        if image.isCopied:
            continue
        # the plan has the class label: read_label(), below, or the class folder says it
        label = image.label
        # construct the path of the output image, and create its folder
        destiPath = os.path.join(destiDir, label, image.filename)
        os.makedirs(os.path.dirname(destiPath), exist_ok=True)
        # copy the image, under another name until it is whole
        partialPath = plan.get_partial(destiDir)
        shutil.copyfile(image.path, partialPath)
        replace_file(partialPath, destiPath)

    # count the images in the destination directory
    currentTotal = list_images(destiDir)
    print(f"[INFO] total images copied to {destiDir}: {len(currentTotal)}...")


def read_label(filename):
    """Return the class label of an image of Food-11, whose file name begins with its index. Raises
    ValueError or IndexError for another name."""
    index = filename.split("_")[0]
    if not index.isdecimal():
        raise ValueError(f"no class index: {filename}")
    return config.CLASSES[int(index)]


def main(argv=None):
    args = parse_args(argv)
    if args.sample and os.path.exists(config.DATA_PATH):
        print(f"[INFO] using the existing {config.DATA_PATH}; no sample drawn...")
    elif args.sample:
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)

    # plan where each image is copied to, and look at all of them before any is copied
    plan = plan_copies(read_label)
    check_plan(plan, args.skip_bad)

    # copy the images of each split into their class folders
    print("[INFO] copying images...")
    (trainDir, valDir, testDir) = plan.rootDirs
    with record_copies(plan):
        copy_images(trainDir, config.TRAIN, plan)
        copy_images(valDir, config.VAL, plan)
        copy_images(testDir, config.TEST, plan)
    print_totals()


def list_images(folder):
    """Return the paths of the images in folder and below, but what training passes over too."""
    imagePaths = []
    for path in paths.list_files(folder, validExts=EXTENSIONS):
        if is_image(path, folder):
            imagePaths.append(path)
    return imagePaths


def print_totals():
    """Print a table of the images per class and split."""
    splits = (config.TRAIN, config.VAL, config.TEST)
    print_row("", [os.path.basename(destiDir) for destiDir in splits])
    for label in [*config.CLASSES, ""]:
        counts = [len(list_images(os.path.join(destiDir, label))) for destiDir in splits]
        print_row(label or "total", counts)


def print_row(title, cells):
    """Print a row of a table."""
    line = f"{title:20}"
    for cell in cells:
        line += f"{cell:>12}"
    print(line)


def parse_args(argv):
    """Return the parsed command line, whose settings are then in config."""
    example = "example: python prepare_dataset.py --skip-bad"
    parser = argparse.ArgumentParser(description=__doc__, epilog=example)
    parser.add_argument("--sample", action="store_true", help="draw a small Food-11 at DATA_PATH")
    text = "leave out images that cannot be read, are in no class or share a name"
    parser.add_argument("--skip-bad", action="store_true", help=text)
    return settings.read_flags(parser, ["SEED"], argv)


if __name__ == "__main__":
    script.run(main, advice="run the same command again")
