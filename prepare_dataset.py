# USAGE
# python prepare_dataset.py
# python prepare_dataset.py --sample
"""Step 1: copy the photographs into one folder per class and split."""

# import the necessary packages
import os
import platform
import shutil

from pyimagesearch import cli, config
from pyimagesearch.dataset_checks import check_dataset, find_splits, select_images, split_label
from pyimagesearch.images import is_image, list_images
from pyimagesearch.sample_dataset import draw_dataset

from imutils import paths
from tqdm import tqdm


def copy_images(rootDir, destiDir, skip=()):
    """Copy each image of one split, but those to skip, to destiDir/<label>/<filename>."""
    # grab the paths of all images of this split
    imagePaths = select_images(rootDir, destiDir, skip)
    print(f"[INFO] total images found: {len(imagePaths)}...")

    # loop over the image paths
    for imagePath in tqdm(imagePaths, desc="copying", disable=None):
        # extract the class label: Food-11's file names begin with its index, others have folders
        filename = os.path.relpath(imagePath, rootDir)
        if os.sep in filename:
            (label, filename) = split_label(filename)
        else:
            label = config.CLASSES[int(filename.split("_")[0])]

        # construct the path of the output image, and create its folder
        destiPath = os.path.join(destiDir, label, filename)
        os.makedirs(os.path.dirname(destiPath), exist_ok=True)
        # copy the file under a name of this process alone, so that no half image is ever there
        partialPath = os.path.join(destiDir, f".{platform.node()}-{os.getpid()}.partial")
        shutil.copyfile(imagePath, partialPath)
        os.replace(partialPath, destiPath)

    # count the images in the destination directory
    currentTotal = list(filter(is_image, paths.list_files(destiDir)))
    print(f"[INFO] total images copied to {destiDir}: {len(currentTotal)}...")


def main(argv=None):
    args = parse_args(argv)
    if args.sample and os.path.exists(config.DATA_PATH):
        print(f"[INFO] {config.DATA_PATH} exists, and no sample is drawn...")
    elif args.sample:
        print(f"[INFO] drawing a sample of Food-11 at {config.DATA_PATH}...")
        draw_dataset(config.DATA_PATH, config.SEED)

    # look at all images before any is copied
    skip = check_dataset(args.skip_bad)

    # copy the images of each split into their class folders
    print("[INFO] copying images...")
    (trainDir, valDir, testDir) = find_splits()
    copy_images(trainDir, config.TRAIN, skip)
    copy_images(valDir, config.VAL, skip)
    copy_images(testDir, config.TEST, skip)
    report_totals()


def report_totals():
    """Print a table of the images per class and split."""
    splits = (config.TRAIN, config.VAL, config.TEST)
    print(f"{'':20}{''.join(f'{os.path.basename(rootDir):>12}' for rootDir in splits)}")
    for label in [*config.CLASSES, ""]:
        counts = [len(list_images(os.path.join(rootDir, label))) for rootDir in splits]
        print(f"{label or 'total':20}{''.join(f'{count:12}' for count in counts)}")


def parse_args(argv):
    """Return the parsed command line, whose settings are then in config."""
    parser = cli.make_parser(__doc__, ["SEED"], example="python prepare_dataset.py --skip-bad")
    parser.add_argument("--sample", action="store_true", help="draw a small Food-11 at DATA_PATH")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what cannot be copied")
    return cli.parse_args(parser, argv)


if __name__ == "__main__":
    cli.run(main, advice="run the same command again")
