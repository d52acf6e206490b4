"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import math
import os
import time

import torch
from torch import nn, optim
from torchvision.models import DenseNet121_Weights, densenet121

from pyimagesearch import checkpoint, cli, config, create_dataloaders, devices, files, reporting
from pyimagesearch.errors import UserError, run
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm
from pyimagesearch.reporting import Progress

DIVERGED = "the checkpoint of the last good epoch is kept; start again with a lower --lr"


def check_batches(numImages, batchSize):
    """Raise UserError if batch normalization cannot train on the smallest batch of numImages."""
    sizes = {min(batchSize, numImages), numImages % batchSize} - {0}
    alone = any(devices.smallest_share(size) == 1 for size in sizes)
    if alone and not config.PRETRAINED and config.IMAGE_SIZE < 61:
        # such images leave DenseNet121 as one value per channel, which has no variance
        raise UserError(
            f"a training batch leaves a device a single image, and batch normalization cannot "
            f"train on that at IMAGE_SIZE {config.IMAGE_SIZE}; change LOCAL_BATCH_SIZE, or take "
            "61 or more"
        )


def get_dataloaders(batchSize):
    """Return (dataset, loader) of the training, the validation and the test split.

    Raises UserError unless all three have the same classes.
    """
    trainTransform = create_dataloaders.train_transform()
    testTransform = create_dataloaders.test_transform()
    (trainDS, trainLoader) = create_dataloaders.get_dataloader(
        config.TRAIN, transforms=trainTransform, bs=batchSize
    )
    (valDS, valLoader) = create_dataloaders.get_dataloader(
        config.VAL, transforms=testTransform, bs=batchSize, shuffle=False
    )
    (testDS, testLoader) = create_dataloaders.get_dataloader(
        config.TEST, transforms=testTransform, bs=batchSize, shuffle=False
    )
    for ds in (valDS, testDS):
        # a class that one split lacks would shift every label after it
        if ds.classes != trainDS.classes:
            odd = ", ".join(sorted(set(ds.classes) ^ set(trainDS.classes)))
            raise UserError(
                f"{trainDS.root} and {ds.root} differ in their classes: {odd}; "
                "prepare both from the same classes"
            )
    return (trainDS, trainLoader), (valDS, valLoader), (testDS, testLoader)


def load_imagenet_model():
    """Return DenseNet121 with the ImageNet weights. Raises UserError if they cannot be had."""
    weights = DenseNet121_Weights.IMAGENET1K_V1
    try:
        return densenet121(weights=weights)
    # no network, no room, a damaged file: each raises something else
    except Exception as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the ImageNet weights cannot be downloaded or read ({reason}); place {weights.url} "
            f"in {folder} by hand, or start from random weights with --no-pretrained"
        ) from error


def load_base_model():
    """Return the DenseNet121 to train: with ImageNet weights and frozen batch normalization, or
    with random weights if PRETRAINED is False."""
    if not config.PRETRAINED:
        return densenet121(weights=None)
    baseModel = devices.first_per_machine(load_imagenet_model)
    # its statistics serve better than those of small batches
    freeze_batch_norm(baseModel)
    return baseModel


def train_one_epoch(model, loader, lossFunc, opt, scaler, epoch):
    """Take one pass over loader; return mean loss and accuracy over its images.

    Raises UserError if the loss stops being a number; epoch, from 1, is for that message.
    """
    model.train()
    (losses, correct, total) = ([], 0, 0)
    with Progress(desc="training", total=len(loader), leave=False) as bar:
        for x, y, count, weight in devices.get_batches(loader):
            pred = model(x)
            loss = lossFunc(pred, y)
            # scaled, as small gradients would vanish in half precision
            scaler.scale(loss * weight).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
            # all sums stay on the device: to read them out at each step would make it wait
            losses.append(loss.detach() * count)
            correct += (pred.argmax(1) == y)[:count].sum()
            total += count
            bar.count_batch(losses, correct, total)
    losses = torch.stack(losses)
    if not losses.isfinite().all():
        step = int(losses.isfinite().int().argmin()) + 1
        raise UserError(f"the loss is not a number at step {step} of epoch {epoch}; {DIVERGED}")
    (totalLoss, correct, total) = devices.add_up(losses.sum(), correct, total)
    return totalLoss / total, correct / total


def evaluate(model, loader, lossFunc):
    """Return mean loss and accuracy over the images of loader, and the predicted classes."""
    model.eval()
    (losses, correct, total, preds) = ([], 0, 0, [])
    bar = Progress(desc="evaluating", total=len(loader), leave=False)
    with bar, torch.inference_mode():
        for x, y, count, _ in devices.get_batches(loader):
            pred = model(x)
            losses.append(lossFunc(pred, y) * count)
            correct += (pred.argmax(1) == y)[:count].sum()
            preds.append(pred.argmax(1)[:count])
            total += count
            bar.count_batch(losses, correct, total)
    preds = devices.collect(torch.cat(preds), loader)
    (totalLoss, correct) = devices.add_up(torch.stack(losses).sum(), correct)
    return totalLoss / len(preds), correct / len(preds), preds


def get_parts(model):
    """Return by name what has a state while model trains, and a checkpoint therefore holds."""
    learningRate = config.LR * devices.count_devices()
    # fused: one pass over all parameters, not one per operation
    opt = optim.Adam(model.parameters(), lr=learningRate, fused=True)
    # of all precisions, fp16 alone needs scaled gradients
    scaler = torch.amp.GradScaler(
        config.DEVICE.type, enabled=devices.compute_dtype(config.DEVICE) == torch.float16
    )
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)
    plainModel = devices.unwrap_model(model)
    return {"model": plainModel, "opt": opt, "scaler": scaler, "lrScheduler": lrScheduler}


def train(model, trainLoader, valLoader, lossFunc, resume):
    """Train model until config.EPOCHS epochs are done, with a checkpoint after each.

    Returns the history H: a list with a value per epoch for each of train_loss, train_acc,
    val_loss and val_acc. With resume, the epochs of the checkpoint are not done again.
    """
    parts = get_parts(model)
    (opt, scaler) = (parts["opt"], parts["scaler"])
    classes = trainLoader.dataset.classes
    (done, H) = checkpoint.begin_training(parts, classes, resume)
    # order and augmentation of the images go on where the checkpoint was written
    trainLoader.batch_sampler.sampler.epoch = done
    with Progress(range(done, config.EPOCHS), initial=done, total=config.EPOCHS) as epochs:
        for e in epochs:
            trained = train_one_epoch(model, trainLoader, lossFunc, opt, scaler, e + 1)
            (valLoss, valAcc, _) = evaluate(model, valLoader, lossFunc)
            if not math.isfinite(valLoss):
                raise UserError(f"the validation loss of epoch {e + 1} is not a number; {DIVERGED}")
            parts["lrScheduler"].step()
            for name, value in zip(H, (*trained, valLoss, valAcc), strict=True):
                H[name].append(value)
            checkpoint.save_checkpoint(parts, e + 1, H, classes)
            # print() would break the progress bars
            epochs.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
            epochs.write("Train loss: {:.6f}, Train accuracy: {:.4f}".format(*trained))
            epochs.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")
    return H


def main():
    parser = cli.make_parser(
        __doc__,
        ["IMAGE_SIZE", "LOCAL_BATCH_SIZE", "EPOCHS", "LR", "SEED", "NUM_WORKERS", "PRETRAINED"],
        example="python train_distributed.py --epochs 5 --lr 0.0005",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last epoch of an unfinished run (default: no)",
    )
    args = cli.parse_args(parser)
    files.make_folder(config.CHECKPOINT_PATH)
    torch.manual_seed(config.SEED)

    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")
    batchSize = config.LOCAL_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")
    print(f"[INFO] running on {devices.describe_devices()}...")
    ((trainDS, trainLoader), (valDS, valLoader), (testDS, testLoader)) = get_dataloaders(batchSize)
    for ds in (trainDS, valDS, testDS):
        print(f"[INFO] {ds.root}: {len(ds)} images of {len(ds.classes)} classes...")
    check_batches(len(trainDS), batchSize)
    if trainDS.classes != create_dataloaders.get_classes():
        print("[INFO] those are not the CLASSES of config.py, which prepare_dataset.py copies...")

    model = devices.wrap_model(FoodClassifier(load_base_model(), len(trainDS.classes)))
    lossFunc = nn.CrossEntropyLoss()

    print("[INFO] training the network...")
    startTime = time.time()
    H = train(model, trainLoader, valLoader, lossFunc, args.resume)
    print(f"[INFO] total time taken to train the model: {time.time() - startTime:.2f}s")
    # first of all, so that no error in what follows can lose them
    files.save_state(devices.unwrap_model(model).state_dict(), config.MODEL_PATH)

    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, lossFunc)
    reporting.save_report(testDS.targets, preds, testDS.classes)
    reporting.plot_confusion(testDS.targets, preds, testDS.classes)
    reporting.save_history(H)
    reporting.plot_history(H)
    saved = [config.MODEL_PATH, config.REPORT_PATH, config.CONFUSION_PATH, config.PLOT_PATH]
    print(f"[INFO] saved {', '.join(saved)}...")


if __name__ == "__main__":
    run(
        main,
        goOn="if it finished an epoch, the same command with --resume goes on; else run it again",
    )
