"""Step 3: look at predictions, for a batch of test images or for image files of your own."""

# import the necessary packages
import torch
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


def read_images(imagePaths):
    """Return the images at imagePaths as one batch (N, 3, H, W)."""
    transform = create_dataloaders.test_transform()
    return torch.stack([transform(create_dataloaders.load_image(path)) for path in imagePaths])


def predict(model, x, batchSize):
    """Return the probability of each class (N, numClasses) for images x (N, 3, H, W)."""
    with torch.inference_mode():
        return torch.cat(
            [model(batch.to(config.DEVICE)).softmax(1).cpu() for batch in x.split(batchSize)]
        )


def main():
    parser = cli.make_parser(__doc__, ["IMAGE_SIZE", "PRED_BATCH_SIZE", "SEED", "NUM_WORKERS"])
    parser.add_argument(
        "imagePaths", nargs="*", metavar="IMAGE", help="files to classify instead of test images"
    )
    args = cli.parse_args(parser)
    files.make_folder(config.RESULTS_PATH)
    torch.manual_seed(config.SEED)

    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")
    batchSize = config.PRED_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")

    if args.imagePaths:
        classes = create_dataloaders.get_classes()
        x = read_images(args.imagePaths)
    else:
        (x, y, classes) = get_test_batch(batchSize)
    probabilities = predict(load_model(len(classes)), x, batchSize)

    if args.imagePaths:
        titles = []
        for imagePath, row in zip(args.imagePaths, probabilities, strict=True):
            (top, indices) = row.topk(min(3, len(classes)))
            guesses = [f"{classes[i]} {p:.2f}" for p, i in zip(top, indices, strict=True)]
            print(f"{imagePath}: {', '.join(guesses)}")
            titles.append(f"Predicted: {guesses[0]}")
    else:
        preds = probabilities.argmax(1)
        titles = [
            f"Ground Truth: {classes[truth]}, Predicted: {classes[pred]}"
            for truth, pred in zip(y, preds, strict=True)
        ]
    reporting.plot_predictions(x, titles)


if __name__ == "__main__":
    run(main, goOn="nothing was lost, run it again")
