# USAGE
# python distributed_inference.py
# python distributed_inference.py lunch.jpg holiday/
"""Step 3: look at predictions, for a batch of test images or for photographs of your own."""

# import the necessary packages
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from imutils import paths
from torchvision import transforms

from pyimagesearch import checkpoint, cli, config, create_dataloaders, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier, load_densenet


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

    # load our trained food classifier; it knows its classes, and how it wants to see an image
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

    # create the test data loader
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
    reporting.plot_predictions(pictures, titles, (preds == labels).tolist())


def list_names(classes):
    """Return class names with their number, to be read."""
    more = ", ..." if len(classes) > 20 else ""
    return f"{len(classes)} classes: {', '.join(classes[:20])}{more}"


def load_model():
    """Return the trained FoodClassifier, ready to predict, on all devices, and its class names.

    Sets config's IMAGE_SIZE, MEAN and STD to those that the weights were trained with; weights that
    do not know theirs, nor their classes, take config's. Raises UserError if MODEL_PATH does not
    hold the weights of a FoodClassifier.
    """
    state = checkpoint.load_state(config.MODEL_PATH)
    try:
        facts = getattr(state, "_metadata", {}).get("", {})
        classes = facts.get("classes", create_dataloaders.get_classes())
        config.IMAGE_SIZE = facts.get("imageSize", config.IMAGE_SIZE)
        (config.MEAN, config.STD) = (facts.get("mean", config.MEAN), facts.get("std", config.STD))
        numClasses = len(state["classifier.bias"])
        if numClasses != len(classes):
            raise UserError(
                f"{config.MODEL_PATH}: the weights know {numClasses} classes, and CLASSES in "
                f"config.py has {list_names(classes)}; make them the same"
            )
        # load up the DenseNet121 model, and initialize our food classifier with the model state
        model = FoodClassifier(load_densenet(pretrained=False), numClasses)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
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

    Raises UserError for a folder without images and for a name of nothing.
    """
    imagePaths = []
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder; check the path")
        found = sorted(paths.list_images(name)) if os.path.isdir(name) else [name]
        if not found:
            kinds = " ".join(paths.image_types)
            raise UserError(f"{name}: no image in this folder ({kinds}); check the path")
        imagePaths += found
    return imagePaths


def classify_files(model, classes, imagePaths, testTransform, batchSize):
    """Print the three likeliest classes of each image file, and show the photographs."""
    (pictures, titles) = ([], [])
    with ThreadPoolExecutor(max(config.NUM_WORKERS, 1)) as pool:
        for start in range(0, len(imagePaths), batchSize):
            batch = imagePaths[start : start + batchSize]
            photos = list(pool.map(create_dataloaders.load_image, batch))
            images = torch.stack([testTransform(photo) for photo in photos])
            for path, photo, row in zip(batch, photos, predict(model, images), strict=True):
                (top, indices) = row.topk(min(3, len(classes)))
                guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
                print(f"{path}: {', '.join(guesses)}")
                titles.append(f"{os.path.basename(path)}\nPredicted: {guesses[0]}")
                if len(pictures) < reporting.MAX_PICTURES:
                    photo.thumbnail([reporting.PICTURE_SIZE] * 2)
                    pictures.append(photo)
    reporting.plot_predictions(pictures, titles)


def parse_args():
    """Return the parsed command line."""
    parser = cli.make_parser(
        __doc__,
        ["PRED_BATCH_SIZE", "SEED", "NUM_WORKERS"],
        example="python distributed_inference.py lunch.jpg holiday/",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image files, and folders of such, to classify (default: a batch of test images)",
    )
    return cli.parse_args(parser)


if __name__ == "__main__":
    cli.run(main, advice="nothing is lost; run it again")
