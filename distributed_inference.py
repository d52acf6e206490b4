# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for your own photographs."""

# import the necessary packages
import os
import random
from concurrent.futures import ThreadPoolExecutor

from pyimagesearch import cli, config, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader, test_transform
from pyimagesearch.food_classifier import (
    FoodClassifier,
    list_names,
    load_classifier,
    load_densenet,
    read_weights,
)
from pyimagesearch.images import list_images, load_image, report_others

import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS


def main():
    args = parse_args()
    if args.paths:
        classify_files(args.paths)
        return
    # read the trained weights, which know their classes, image size and normalization
    (state, classes) = read_weights(config.MODEL_PATH)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size based on the number of devices
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")

    # define the preprocessing
    testTransform = test_transform()

    # calculate the inverse mean and standard deviation, and define our denormalization transform
    invMean = [-mean / std for (mean, std) in zip(config.MEAN, config.STD, strict=True)]
    invStd = [1 / std for std in config.STD]
    deNormalize = transforms.Normalize(mean=invMean, std=invStd)

    # create the test data loader; SEED selects the batch
    print(f"[INFO] seed of the test batch: {config.SEED}...")
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize)
    if testDS.classes != classes:
        raise UserError(
            f"{config.MODEL_PATH}: the weights were trained on {list_names(classes)}; "
            f"{testDS.root} has {list_names(testDS.classes)}; train again, or prepare the data set "
            "of these weights"
        )

    # load up the DenseNet121 model, initialize our food classifier with the trained state, and
    # move it to the device
    model = FoodClassifier(load_densenet(pretrained=False), len(classes))
    model.load_state_dict(state)
    model = model.to(config.DEVICE)

    # if there is more than one GPU, parallelize the model
    if numGPU > 1:
        model = nn.DataParallel(model)

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


def predict(model, images):
    """Return the probability of each class (N, numClasses) for images (N, 3, H, W)."""
    # set the model in evaluation mode, and switch off autograd
    model.eval()
    with torch.inference_mode():
        return model(images.to(config.DEVICE)).softmax(1).cpu()


def classify_files(names):
    """Print the three likeliest classes of each image in the given files and folders, and show the
    photographs; raise UserError at the end if some cannot be read."""
    imagePaths = find_images(names)
    (model, classes, testTransform) = load_classifier(config.MODEL_PATH)
    if devices.count_gpus() > 1:
        model = nn.DataParallel(model)
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    (pictures, titles, bad) = ([], [], [])
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(imagePaths), batchSize):
            photos = {}
            batch = imagePaths[start : start + batchSize]
            for path, photo in zip(batch, pool.map(load_photo, batch), strict=True):
                if isinstance(photo, UserError):
                    bad.append(photo)
                    print(f"[INFO] left out: {photo}")
                else:
                    photos[path] = photo
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


def load_photo(path):
    """Return the photograph at path as a PIL image, or the UserError if it cannot be read."""
    try:
        return load_image(path, config.IMAGE_SIZE)
    except UserError as error:
        return error


def find_images(names):
    """Return the paths of all images in the given files and folders; raise UserError for a folder
    without images and for a missing path."""
    imagePaths = []
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder; check the path")
        found = list_images(name) if os.path.isdir(name) else [name]
        if os.path.isdir(name):
            report_others(name)
        if not found:
            kinds = " ".join(IMG_EXTENSIONS)
            raise UserError(f"{name}: no image in this folder ({kinds}); check the path")
        imagePaths += found
    return imagePaths


def parse_args():
    """Take the device, and return the parsed command line."""
    devices.join_processes()
    if devices.get_world_size() > 1:
        raise UserError("inference runs in one process; start it with python, not with torchrun")
    # another batch of test images each time, and a single one needs no workers
    (config.SEED, config.NUM_WORKERS) = (random.randrange(10**6), 0)
    example = "python distributed_inference.py lunch.jpg holiday/"
    parser = cli.make_parser(__doc__, ["PRED_BATCH_SIZE", "SEED"], example)
    text = "image files, and folders of such, to classify (default: a batch of test images)"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
    return cli.parse_args(parser)


if __name__ == "__main__":
    cli.run(main)
