"""Step 3: look at predictions, for a batch of test images or for photographs of your own."""

# import the necessary packages
import os

import torch
from imutils import paths
from torchvision.models import densenet121

from pyimagesearch import cli, config, create_dataloaders, devices, files, reporting
from pyimagesearch.errors import UserError, run
from pyimagesearch.food_classifier import FoodClassifier


def load_model(numClasses):
    """Return the trained FoodClassifier, ready to predict, on all devices.

    Raises UserError if MODEL_PATH does not hold its weights.
    """
    # no ImageNet weights: the trained state overwrites them
    model = FoodClassifier(densenet121(weights=None), numClasses)
    state = files.load_state(config.MODEL_PATH)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config.MODEL_PATH}: not the weights of a FoodClassifier for {numClasses} classes "
            f"({str(error).splitlines()[-1].strip()}); train with this config.py and data set"
        ) from error
    return devices.wrap_model(model).eval()


def get_test_batch(batchSize):
    """Return images (N, 3, H, W) and class indices (N,) of a random test batch, and the class
    names; N is batchSize, or the number of test images if those are fewer."""
    (testDS, testLoader) = create_dataloaders.get_dataloader(
        config.TEST, transforms=create_dataloaders.test_transform(), bs=batchSize
    )
    (x, y) = next(iter(testLoader))
    return x, y, testDS.classes


def find_images(names):
    """Return the paths of all image files that names, files and folders, stand for.

    Raises UserError for a folder without images and for a name of nothing.
    """
    imagePaths = []
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder; name another")
        found = sorted(paths.list_images(name)) if os.path.isdir(name) else [name]
        if not found:
            kinds = " ".join(paths.image_types)
            raise UserError(f"{name}: no image in this folder ({kinds}); name another")
        imagePaths += found
    return imagePaths


def predict(model, x):
    """Return the probability of each class (N, numClasses) for images x (N, 3, H, W)."""
    with torch.inference_mode():
        return model(x.to(config.DEVICE)).softmax(1).cpu()


def classify_files(model, imagePaths, classes, batchSize):
    """Print the three likeliest classes of each image file.

    Returns images (N, 3, H, W) of as many as can be shown, and a title for each file.
    """
    transform = create_dataloaders.test_transform()
    loader = create_dataloaders.get_file_loader(imagePaths, transform, batchSize)
    (images, titles) = ([], [])
    for x, places, _, _ in devices.get_batches(loader):
        for image, place, row in zip(x.cpu(), places.tolist(), predict(model, x), strict=True):
            (top, indices) = row.topk(min(3, len(classes)))
            guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
            print(f"{imagePaths[place]}: {', '.join(guesses)}")
            titles.append(f"{os.path.basename(imagePaths[place])}\nPredicted: {guesses[0]}")
            if len(images) < reporting.MAX_PICTURES:
                images.append(image)
    return torch.stack(images), titles


def main():
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
    args = cli.parse_args(parser)
    if devices.count_processes() > 1:
        raise UserError("inference takes one process: start it with python, not with torchrun")
    files.make_folder(config.RESULTS_PATH)
    torch.manual_seed(config.SEED)

    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")
    print(f"[INFO] running on {devices.describe_devices()}...")

    if args.paths:
        imagePaths = find_images(args.paths)
        classes = create_dataloaders.get_classes()
        model = load_model(len(classes))
        (x, titles) = classify_files(model, imagePaths, classes, batchSize)
        reporting.plot_predictions(x, titles)
    else:
        (x, y, classes) = get_test_batch(batchSize)
        preds = predict(load_model(len(classes)), x).argmax(1)
        titles = [
            f"Ground Truth: {classes[truth]},\nPredicted: {classes[pred]}"
            for truth, pred in zip(y, preds, strict=True)
        ]
        reporting.plot_predictions(x, titles, hits=(y == preds).tolist())


if __name__ == "__main__":
    run(main, goOn="nothing was lost, run it again")
