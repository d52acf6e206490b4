# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for your own photographs."""

# import the necessary packages
import gc

if __name__ == "__main__":
    # a search for garbage, which these imports make little of, takes a quarter of their time;
    # script.run() turns it on again
    gc.disable()

import argparse
import math
import os
import random

from torchvision import transforms
from tqdm import tqdm

from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader
from pyimagesearch.food_classifier import (
    FoodClassifier,
    Normalize,
    load_classifier,
    load_densenet,
    predict,
)
from pyimagesearch.support import (
    devices,
    figures,
    photographs,
    processes,
    script,
    settings,
    tables,
    weights,
)
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.replicas import CoreParallel, DataParallel, parallelize

# classes that are printed for each photograph
MAX_GUESSES = 3


def main(argv=None):
    args = parse_args(argv)
    processes.refuse_several()
    if args.paths:
        classify_photographs(args.paths, args.weights)
        return

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size based on the number of GPUs, or one CPU
    batchSize = config.PRED_BATCH_SIZE * max(numGPU, 1)
    print(f"[INFO] using a batch size of {batchSize}...")

    # read the trained weights, which know their classes, image size and normalization
    (state, trainedOn) = weights.read_weights(args.weights)

    # define the preprocessing and the normalization, and calculate the inverse mean and deviation,
    # which undo it
    testTransform = eval_transform(trainedOn.imageSize)
    normalize = Normalize(trainedOn.mean, trainedOn.std)
    invMean = [-m / s for (m, s) in zip(trainedOn.mean, trainedOn.std, strict=True)]
    invStd = [1 / s for s in trainedOn.std]
    deNormalize = transforms.Normalize(mean=invMean, std=invStd)

    # create the test data loader; a single batch needs no workers
    (testDS, testLoader) = get_dataloader(
        config.TEST, testTransform, bs=batchSize, trainedOn=trainedOn, numWorkers=0
    )

    # load up the DenseNet121 model, and initialize our food classifier with the trained state
    model = FoodClassifier(load_densenet(pretrained=False), len(trainedOn.classes), trainedOn)
    model.load_state_dict(state)
    model = model.to(config.DEVICE)

    # if there is more than one GPU, or the cores of a CPU, parallelize the model
    if numGPU > 1:
        model = DataParallel(model)
    elif numGPU == 0:
        model = CoreParallel(model)

    # grab a batch of test data, another one for each seed, and predict its classes
    print(f"[INFO] seed of the test batch: {args.seed}...")
    testLoader.sampler.set_epoch(args.seed)
    (images, labels) = next(iter(testLoader))
    images = normalize(images)
    (probs, preds) = predict(model, images).max(1)

    # loop over the batch
    pictures = []
    titles = []
    for image, label, pred, prob in zip(images, labels, preds, probs, strict=True):
        # undo the normalization, and grab the ground truth and the predicted label
        pictures.append(deNormalize(image).clip(0, 1).permute(1, 2, 0).numpy())
        gtLabel = testDS.classes[label]
        predLabel = testDS.classes[pred]
        titles.append(f"Ground Truth: {gtLabel},\nPredicted: {predLabel} {prob:.2f}")

    # show the images, with a green title where the prediction is right
    hits = (preds == labels).tolist()
    print(f"[INFO] correct predictions: {sum(hits)} of {len(hits)}...")
    figures.plot_pictures(config.RESULTS_PATH, pictures, titles, hits, isShown=True)


def classify_photographs(names, weightsPath):
    """Print the three likeliest classes of each photograph in files and folders, write them into a
    table, and show some of the photographs."""
    imagePaths = photographs.find_photographs(names)
    numGPU = devices.count_gpus()
    batchSize = config.LOCAL_BATCH_SIZE * max(numGPU, 1)
    (model, classes, transform) = load_classifier(weightsPath)
    model = parallelize(model, numGPU)
    numGuesses = min(MAX_GUESSES, len(classes))

    titles = {}
    numBad = 0
    with tables.open_photographs(numGuesses) as table:
        # loop over the batches, which worker processes read
        for batch in photographs.load_batches(imagePaths, transform, batchSize):
            for error in batch.errors:
                tqdm.write(f"[INFO] left out: {error}")
            numBad += len(batch.errors)
            if not batch.paths:
                continue
            guesses = guess_classes(model, batch.images, classes, numGuesses)
            for path, best in zip(batch.paths, guesses, strict=True):
                lines = [f"{name} {prob:.2f}" for name, prob in best]
                tqdm.write(f"{path}: {', '.join(lines)}")
                # with its folder, as two albums may have photographs of one name
                name = os.sep.join(path.split(os.sep)[-2:])
                titles[path] = "\n".join([name, *lines])
            tables.append_photographs(table, batch.paths, guesses)

    print(f"[INFO] saved {table.name}: {len(titles)} photographs...")
    if titles:
        # every n-th, so that all folders are shown
        step = math.ceil(len(titles) / figures.MAX_PICTURES)
        shown = list(titles)[::step]
        print(f"[INFO] photographs in {config.RESULTS_PATH}: {len(shown)} of {len(titles)}...")
        pictures = [figures.load_picture(path) for path in shown]
        figures.plot_pictures(config.RESULTS_PATH, pictures, [titles[path] for path in shown])
    if numBad:
        raise UserError(f"photographs left out, as said above: {numBad} of {len(imagePaths)}")


def guess_classes(model, images, classes, numGuesses):
    """Return for each of images (N, 3, H, W) a list of its likeliest classes, as (name,
    probability)."""
    (probs, indices) = predict(model, images).topk(numGuesses)
    guesses = []
    for top, best in zip(probs.tolist(), indices.tolist(), strict=True):
        names = [classes[index] for index in best]
        guesses.append(list(zip(names, top, strict=True)))
    return guesses


def parse_args(argv):
    """Return the parsed command line, whose settings are then in config."""
    example = "example: python distributed_inference.py lunch.jpg holiday/"
    parser = argparse.ArgumentParser(description=__doc__, epilog=example)
    text = "seed of the batch of test images (default: another one each time)"
    parser.add_argument("--seed", metavar="N", type=int, help=text)
    text = "trained weights (default: %(default)s)"
    parser.add_argument("--weights", metavar="PATH", default=config.MODEL_PATH, help=text)
    text = "image files and folders to classify (default: a batch of test images)"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
    names = ["PRED_BATCH_SIZE", "LOCAL_BATCH_SIZE", "NUM_WORKERS"]
    args = settings.read_flags(parser, names, argv)
    given = settings.get_flags(args)
    if args.paths and (args.seed is not None or "PRED_BATCH_SIZE" in given):
        parser.error("photographs take --local-batch-size, not --seed or --pred-batch-size")
    if not args.paths and given.keys() - {"PRED_BATCH_SIZE"}:
        parser.error("a batch of test images takes --pred-batch-size alone")
    if args.seed is None:
        args.seed = random.randrange(10**6)
    return args


if __name__ == "__main__":
    devices.keep_memory()
    script.run(main, advice="run the same command again")
