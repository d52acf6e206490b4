# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for your own photographs."""

# import the necessary packages
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyimagesearch import cli, config, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader, test_transform
from pyimagesearch.food_classifier import (
    FoodClassifier,
    check_classes,
    load_classifier,
    load_densenet,
    read_weights,
)
from pyimagesearch.images import EXTENSIONS, list_images, report_others, try_image

import torch
from torch import nn


def main():
    args = parse_args()
    if args.paths:
        classify_files(args.paths, args.weights)
        return
    # read the trained weights, which know their classes, image size and normalization
    (state, classes) = read_weights(args.weights)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size based on the number of devices
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")

    # define the preprocessing; nothing has to undo it, as the photographs themselves are shown
    testTransform = test_transform()

    # create the test data loader; SEED selects the batch
    print(f"[INFO] seed of the test batch: {config.SEED}...")
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize)
    check_classes(args.weights, classes, testDS)

    # load up the DenseNet121 model, and initialize our food classifier with the trained state
    model = FoodClassifier(load_densenet(pretrained=False), len(classes))
    model.load_state_dict(state)
    model = model.to(config.DEVICE)

    # if there is more than one GPU, parallelize the model
    if numGPU > 1:
        model = nn.DataParallel(model)

    # grab a batch of test data, and predict its classes
    (images, labels) = next(iter(testLoader))
    (probs, preds) = predict(model, images).max(1)

    # loop over the batch, in the order in which the loader drew it
    testLoader.sampler.set_epoch(0)
    (imagePaths, titles) = ([], [])
    for (_, index), label, pred, prob in zip(
        testLoader.sampler, labels, preds, probs, strict=False
    ):
        # grab the photograph, the ground truth and the predicted label
        imagePaths.append(testDS.samples[index][0])
        (gtLabel, predLabel) = (classes[label], classes[pred])
        name = os.path.basename(imagePaths[-1])
        titles.append(f"Ground Truth: {gtLabel},\nPredicted: {predLabel} {prob:.2f}\n{name}")

    # show the photographs
    hits = (preds == labels).tolist()
    print(f"[INFO] correct predictions: {sum(hits)} of {len(hits)}...")
    reporting.plot_pictures(config.RESULTS_PATH, imagePaths, titles, hits)


def predict(model, images):
    """Return the probability of each class (N, numClasses) for images (N, 3, H, W)."""
    # set the model in evaluation mode, and switch off autograd
    model.eval()
    with torch.inference_mode():
        return model(images.to(config.DEVICE)).softmax(1).cpu()


def classify_files(paths, weights):
    """Print the three likeliest classes of each image in the given files and folders, and show the
    photographs; raise UserError at the end if some cannot be read."""
    imagePaths = find_images(paths)
    names = Counter(map(os.path.basename, imagePaths))
    (model, classes, testTransform) = load_classifier(weights)
    if devices.count_gpus() > 1:
        model = nn.DataParallel(model)
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    (titles, bad) = ({}, [])
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(imagePaths), batchSize):
            batch = imagePaths[start : start + batchSize]
            found = pool.map(partial(try_image, imageSize=config.IMAGE_SIZE), batch)
            photos = dict(zip(batch, found, strict=True))
            for path in [path for path in batch if isinstance(photos[path], UserError)]:
                bad.append(photos.pop(path))
                print(f"[INFO] left out: {bad[-1]}")
            if not photos:
                continue
            images = torch.stack([testTransform(photo) for photo in photos.values()])
            for path, row in zip(photos, predict(model, images), strict=True):
                (top, indices) = row.topk(min(3, len(classes)))
                guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
                print(f"{path}: {', '.join(guesses)}")
                # with its folder where two photographs have one name
                numParts = 1 if names[os.path.basename(path)] == 1 else 2
                title = os.sep.join(path.split(os.sep)[-numParts:])
                titles[path] = "\n".join([title, *guesses])
    if titles:
        # as many as there is room for, evenly over all folders
        (found, room) = (list(titles), min(len(titles), reporting.MAX_PICTURES))
        shown = [found[i * len(found) // room] for i in range(room)]
        texts = [titles[path] for path in shown] + [""] * (len(found) - room)
        reporting.plot_pictures(config.RESULTS_PATH, shown, texts)
    if bad:
        raise UserError(f"photographs left out: {len(bad)} of {len(imagePaths)}; {bad[0]}")


def find_images(names):
    """Return all images in the given files and folders; raise UserError where there is none."""
    imagePaths = []
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder; check the path")
        found = [name]
        if os.path.isdir(name):
            report_others(name)
            found = list_images(name)
        if not found:
            kinds = " ".join(EXTENSIONS)
            raise UserError(f"{name}: no image in this folder ({kinds}); check the path")
        imagePaths += found
    # one that is named twice is one photograph
    return list(dict.fromkeys(imagePaths))


def parse_args():
    """Take the device, and return the parsed command line."""
    devices.join_processes()
    if devices.get_world_size() > 1:
        raise UserError("inference runs in one process; start it with python, not with torchrun")
    # another batch of test images each time, and a single one needs no workers
    (config.SEED, config.NUM_WORKERS) = (random.randrange(10**6), 0)
    example = "python distributed_inference.py lunch.jpg holiday/"
    parser = cli.make_parser(__doc__, ["PRED_BATCH_SIZE", "SEED"], example)
    text = "trained weights (default: %(default)s)"
    parser.add_argument("--weights", metavar="PATH", default=config.MODEL_PATH, help=text)
    text = "image files and folders to classify (default: a batch of test images)"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
    return cli.parse_args(parser)


if __name__ == "__main__":
    cli.run(main)
