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

    # determine the number of GPUs we have
    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")

    # determine the batch size based on the number of devices
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")
    print(f"[INFO] running on {devices.describe_devices()}...")

    # define the preprocessing of an image
    testTransform = create_dataloaders.test_transform()

    # photographs of the user's own need no data set
    if args.paths:
        imagePaths = find_images(args.paths)
        classes = create_dataloaders.get_classes()
        model = load_model(len(classes))
        classify_files(model, imagePaths, classes, testTransform, batchSize)
        return

    # calculate the inverse mean and standard deviation, and define our denormalization transform
    invMean = [-mean / std for (mean, std) in zip(config.MEAN, config.STD, strict=True)]
    invStd = [1 / std for std in config.STD]
    deNormalize = transforms.Normalize(mean=invMean, std=invStd)

    # create the test data loader
    (testDS, testLoader) = create_dataloaders.get_dataloader(
        config.TEST, transforms=testTransform, bs=batchSize
    )

    # load our trained food classifier
    model = load_model(len(testDS.classes))

    # grab a batch of test data, and predict its classes
    (images, labels) = next(iter(testLoader))
    preds = predict(model, images).argmax(1)

    # loop over the batch
    (pictures, titles) = ([], [])
    for image, label, pred in zip(images, labels, preds, strict=True):
        # undo the normalization, and put the channels last for display
        pictures.append(deNormalize(image).clip(0, 1).permute(1, 2, 0).numpy())
        # grab the ground truth and the predicted label
        (gtLabel, predLabel) = (testDS.classes[label], testDS.classes[pred])
        titles.append(f"Ground Truth: {gtLabel},\nPredicted: {predLabel}")

    # show the pictures
    reporting.plot_predictions(pictures, titles, (preds == labels).tolist())


def load_model(numClasses):
    """Return the trained FoodClassifier, ready to predict, on all devices.

    Raises UserError if MODEL_PATH does not hold its weights.
    """
    # load up the DenseNet121 model, and initialize our food classifier
    model = FoodClassifier(load_densenet(pretrained=False), numClasses)

    # load the model state
    state = checkpoint.load_state(config.MODEL_PATH)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config.MODEL_PATH}: not the weights of a FoodClassifier for {numClasses} classes "
            f"({str(error).splitlines()[-1].strip()}); train with this config.py and data set"
        ) from error

    # move the model to the device; nn.DataParallel if there is more than one GPU
    model = devices.parallelize(model.to(config.DEVICE))
    # set the model in evaluation mode
    return model.eval()


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


def classify_files(model, imagePaths, classes, testTransform, batchSize):
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
        ["IMAGE_SIZE", "PRED_BATCH_SIZE", "SEED", "NUM_WORKERS"],
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
