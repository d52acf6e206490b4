# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for your own photographs."""

# import the necessary packages
import glob
import math
import os
import random

from pyimagesearch import cli, config, devices, food_classifier, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader, test_transform
from pyimagesearch.files import get_products
from pyimagesearch.food_classifier import FoodClassifier, load_densenet, read_weights
from pyimagesearch.images import EXTENSIONS, list_images, load_image, report_others

import torch
from torch import nn
from torchvision import transforms


def main(argv=None):
    args = parse_args(argv)
    if args.paths:
        classify_files(args.paths, args.weights)
        return
    # read the trained weights, which know their classes, image size and normalization
    state = read_weights(args.weights)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size based on the number of devices
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")

    # define the preprocessing, and calculate the inverse mean and deviation, which undo it
    testTransform = test_transform()
    invMean = [-m / s for (m, s) in zip(config.MEAN, config.STD, strict=True)]
    invStd = [1 / s for s in config.STD]
    deNormalize = transforms.Normalize(mean=invMean, std=invStd)

    # create the test data loader; SEED selects the batch
    print(f"[INFO] seed of the test batch: {config.SEED}...")
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize)

    # load up the DenseNet121 model, and initialize our food classifier with the trained state
    model = FoodClassifier(load_densenet(pretrained=False), len(testDS.classes))
    model.load_state_dict(state)
    model = model.to(config.DEVICE)

    # if there is more than one GPU, parallelize the model
    if numGPU > 1:
        model = nn.DataParallel(model)

    # grab a batch of test data, and predict its classes
    (images, labels) = next(iter(testLoader))
    (probs, preds) = predict(model, images).max(1)

    # loop over the batch
    (pictures, titles) = ([], [])
    for image, label, pred, prob in zip(images, labels, preds, probs, strict=True):
        # undo the normalization, and grab the ground truth and the predicted label
        pictures.append(deNormalize(image).clip(0, 1).permute(1, 2, 0).numpy())
        (gtLabel, predLabel) = (testDS.classes[label], testDS.classes[pred])
        titles.append(f"Ground Truth: {gtLabel},\nPredicted: {predLabel} {prob:.2f}")

    # show the images, with a green title where the prediction is right
    hits = (preds == labels).tolist()
    print(f"[INFO] correct predictions: {sum(hits)} of {len(hits)}...")
    reporting.plot_pictures(config.RESULTS_PATH, pictures, titles, hits)


def predict(model, images):
    """Return the probability of each class (N, numClasses) for images (N, 3, H, W)."""
    # set the model in evaluation mode, and switch off autograd
    model.eval()
    with torch.inference_mode():
        return model(images.to(config.DEVICE)).softmax(1).cpu()


def classify_files(names, weights):
    """Print the three likeliest classes of each photograph in files and folders, and show them."""
    imagePaths = find_images(names)
    (model, classes, testTransform) = food_classifier.load_classifier(weights)
    (titles, numBad) = ({}, 0)
    for path in imagePaths:
        try:
            photo = load_image(path, config.IMAGE_SIZE)
        except (OSError, UserError) as error:
            print(f"[INFO] left out: {error}")
            numBad += 1
            continue
        (probs,) = predict(model, testTransform(photo).unsqueeze(0))
        (top, indices) = probs.topk(min(3, len(classes)))
        guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
        print(f"{path}: {', '.join(guesses)}")
        # with its folder, as two albums may have photographs of one name
        titles[path] = "\n".join([os.sep.join(path.split(os.sep)[-2:]), *guesses])
    if titles:
        # evenly over all folders
        shown = list(titles)[:: math.ceil(len(titles) / reporting.MAX_PICTURES)]
        print(f"[INFO] photographs in {config.RESULTS_PATH}: {len(shown)} of {len(titles)}...")
        pictures = [reporting.load_picture(path) for path in shown]
        reporting.plot_pictures(config.RESULTS_PATH, pictures, [titles[path] for path in shown])
    if numBad:
        raise UserError(f"photographs left out, as said above: {numBad} of {len(imagePaths)}")


def find_images(names):
    """Return the images in the given files and folders, but those named like the scripts' own."""
    imagePaths = []
    products = {os.path.basename(path) for path in get_products()}
    for name in names:
        # Windows leaves a star to the script
        for path in [name] if os.path.exists(name) else glob.glob(name) or [name]:
            found = [path]
            if os.path.isdir(path):
                report_others(path)
                found = [p for p in list_images(path) if os.path.basename(p) not in products]
            if not found:
                raise UserError(f"{path}: no image in this folder ({' '.join(EXTENSIONS)})")
            imagePaths += map(os.path.normpath, found)
    return imagePaths


def parse_args(argv):
    """Return the parsed command line, whose settings are then in config."""
    example = "python distributed_inference.py lunch.jpg holiday/"
    parser = cli.make_parser(__doc__, ["PRED_BATCH_SIZE"], example)
    text = "seed of the batch of test images (default: another one each time)"
    parser.add_argument("--seed", dest="SEED", metavar="N", type=int, help=text)
    text = "trained weights (default: %(default)s)"
    parser.add_argument("--weights", metavar="PATH", default=config.MODEL_PATH, help=text)
    text = "image files and folders to classify (default: a batch of test images)"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
    # a single batch needs no workers
    parser.set_defaults(SEED=random.randrange(10**6), NUM_WORKERS=0)
    return cli.parse_args(parser, argv)


if __name__ == "__main__":
    cli.run(main, advice="run the same command again")
