# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for photographs of your own."""

# import the necessary packages
import os
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from pyimagesearch import checkpoint, cli, config, create_dataloaders, devices, reporting
from pyimagesearch.cli import UserError, lacks_memory
from pyimagesearch.food_classifier import FoodClassifier, load_densenet, read_label


def main():
    args = parse_args()
    if devices.get_world_size() > 1:
        raise UserError("inference runs in one process; start it with python, not with torchrun")
    checkpoint.make_folder(config.RESULTS_PATH)
    imagePaths = find_images(args.paths)

    # determine the number of GPUs we have
    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")

    # determine the batch size based on the number of devices
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")
    print(f"[INFO] running on {devices.describe_devices()}...")

    # load our trained food classifier, which knows its classes, image size and normalization
    (model, classes) = load_model()
    testTransform = create_dataloaders.test_transform()

    # photographs of the user's own need no data set
    if args.paths:
        classify_files(model, classes, imagePaths, testTransform, batchSize)
        return

    # calculate the inverse mean and standard deviation, and define our denormalization transform
    invMean = [-mean / std for (mean, std) in zip(config.MEAN, config.STD, strict=True)]
    invStd = [1 / std for std in config.STD]
    deNormalize = transforms.Normalize(mean=invMean, std=invStd)

    # create the test data loader, whose first batch the seed chooses
    print(f"[INFO] seed of the test batch: {config.SEED}...")
    (testDS, testLoader) = create_dataloaders.get_dataloader(
        config.TEST, transforms=testTransform, bs=batchSize
    )
    if testDS.classes != classes:
        raise UserError(
            f"{config.MODEL_PATH}: the weights know {list_names(classes)}; {testDS.root} has "
            f"{list_names(testDS.classes)}; train again, or prepare the data set of these weights"
        )

    # grab a batch of test data, and predict its classes
    (images, labels) = next(iter(testLoader))
    preds = predict(model, images).argmax(1)

    # loop over the batch
    (pictures, titles) = ([], [])
    for image, label, pred in zip(images, labels, preds, strict=True):
        # undo the normalization, and put the channels last for display
        pictures.append(deNormalize(image).clip(0, 1).permute(1, 2, 0).numpy())
        # grab the ground truth and the predicted label
        (gtLabel, predLabel) = (classes[label], classes[pred])
        titles.append(f"Ground Truth: {gtLabel},\nPredicted: {predLabel}")

    # show the pictures
    hits = (preds == labels).tolist()
    print(f"[INFO] correct predictions: {sum(hits)} of {len(hits)}...")
    reporting.plot_predictions(pictures, titles, hits)


def list_names(classes):
    """Return as text the number of classes and their names."""
    more = ", ..." if len(classes) > 20 else ""
    return f"{len(classes)} classes: {', '.join(classes[:20])}{more}"


def load_model():
    """Return the trained FoodClassifier, ready to predict, on all devices, and its class names.

    Sets config's IMAGE_SIZE, MEAN and STD to those that the weights were trained with; weights
    without metadata use config's values. Raises UserError if MODEL_PATH does not hold the weights
    of a FoodClassifier.
    """
    state = checkpoint.load_state(config.MODEL_PATH)
    try:
        (classes, config.IMAGE_SIZE, config.MEAN, config.STD) = read_label(state)
        numClasses = len(state["classifier.bias"])
        if numClasses != len(classes):
            raise UserError(
                f"{config.MODEL_PATH}: the weights know {numClasses} classes without their names, "
                f"and CLASSES in config.py has {list_names(classes)}; make them the same"
            )
        # load up the DenseNet121 model, and initialize our food classifier with the model state
        model = FoodClassifier(load_densenet(pretrained=False), numClasses)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
        if lacks_memory(error):
            raise
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{config.MODEL_PATH}: not the weights of a FoodClassifier over DenseNet121 "
            f"({reason}); train_distributed.py writes such weights"
        ) from error

    # move the model to the device; nn.DataParallel if there is more than one GPU
    model = devices.parallelize(model.to(config.DEVICE))
    # set the model in evaluation mode
    return model.eval(), classes


def predict(model, images):
    """Return the probability of each class (N, numClasses) for images (N, 3, H, W)."""
    # switch off autograd
    with torch.inference_mode():
        return model(images.to(config.DEVICE)).softmax(1).cpu()


def find_images(names):
    """Return the paths of all image files that names, files and folders, stand for.

    Says how many other files the folders hold. Raises UserError for a folder without images and for
    a name of nothing.
    """
    imagePaths = []
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder; check the path")
        found = [name]
        if os.path.isdir(name):
            found = create_dataloaders.list_images(name)
            create_dataloaders.tell_others(name)
        if not found:
            kinds = " ".join(IMG_EXTENSIONS)
            raise UserError(f"{name}: no image in this folder ({kinds}); check the path")
        imagePaths += found
    return imagePaths


def load_photo(path):
    """Return the photograph at path as a PIL image, or the UserError if it cannot be read."""
    try:
        return create_dataloaders.load_image(path, config.IMAGE_SIZE)
    except UserError as error:
        return error


def classify_files(model, classes, imagePaths, testTransform, batchSize):
    """Print the three likeliest classes of each image file, and show the photographs.

    Raises UserError at the end if some cannot be read.
    """
    (pictures, titles, bad) = ([], [], [])
    with ThreadPoolExecutor(max(config.NUM_WORKERS, 1)) as pool:
        for start in range(0, len(imagePaths), batchSize):
            batch = imagePaths[start : start + batchSize]
            photos = dict(zip(batch, pool.map(load_photo, batch), strict=True))
            for path in [path for path in batch if isinstance(photos[path], UserError)]:
                bad.append(photos.pop(path))
                print(f"[INFO] left out: {bad[-1]}")
            if not photos:
                continue
            images = torch.stack([testTransform(photo) for photo in photos.values()])
            for (path, photo), row in zip(photos.items(), predict(model, images), strict=True):
                (top, indices) = row.topk(min(3, len(classes)))
                guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
                print(f"{path}: {', '.join(guesses)}")
                titles.append("\n".join([os.path.basename(path), *guesses]))
                if len(pictures) < reporting.MAX_PICTURES:
                    photo.thumbnail([reporting.PICTURE_SIZE] * 2)
                    pictures.append(photo)
    if pictures:
        reporting.plot_predictions(pictures, titles)
    if bad:
        raise UserError(f"photographs left out: {len(bad)} of {len(imagePaths)}; {bad[0]}")


def parse_args():
    """Return the parsed command line."""
    example = "python distributed_inference.py lunch.jpg holiday/"
    parser = cli.make_parser(__doc__, ["PRED_BATCH_SIZE", "NUM_WORKERS"], example)
    config.SEED = random.randrange(10**6)
    parser.add_argument(
        "--seed",
        dest="SEED",
        metavar="N",
        type=partial(cli.read_setting, "SEED"),
        default=config.SEED,
        help="seed that chooses the batch of test images (default: another one each time)",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image files, and folders of such, to classify (default: a batch of test images)",
    )
    return cli.parse_args(parser)


if __name__ == "__main__":
    cli.run(main)
