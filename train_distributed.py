"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import time

import torch
from torch import nn, optim
from torchvision.models import DenseNet121_Weights, densenet121
from tqdm import tqdm

from pyimagesearch import cli, config, create_dataloaders, devices, files, reporting
from pyimagesearch.errors import UserError, run
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm


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
            raise UserError(f"{trainDS.root} and {ds.root} differ in their classes: {odd}")
    if not config.PRETRAINED and config.IMAGE_SIZE < 61 and len(trainDS) % batchSize == 1:
        # such images leave DenseNet121 as one value per channel, which has no variance
        raise UserError(
            f"the last training batch has a single image, and batch normalization cannot train on "
            f"that at IMAGE_SIZE {config.IMAGE_SIZE}; change LOCAL_BATCH_SIZE, or take 61 or more"
        )
    return (trainDS, trainLoader), (valDS, valLoader), (testDS, testLoader)


def build_model(numClasses):
    """Return the FoodClassifier to train, on config.DEVICE and wrapped for all its devices."""
    weights = DenseNet121_Weights.IMAGENET1K_V1 if config.PRETRAINED else None
    baseModel = densenet121(weights=weights)
    if config.PRETRAINED:
        # the statistics of ImageNet serve better than those of small batches
        freeze_batch_norm(baseModel)
    return devices.wrap_model(FoodClassifier(baseModel, numClasses))


def train_one_epoch(model, loader, lossFunc, opt, scaler):
    """Take one pass over loader; return mean loss and accuracy over its images."""
    model.train()
    (totalLoss, correct, count) = (0, 0, 0)
    for x, y in loader:
        (x, y) = (x.to(config.DEVICE), y.to(config.DEVICE))
        pred = model(x)
        loss = lossFunc(pred, y)
        # scaled, as small gradients would vanish in half precision
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        # the sums stay on the device: to read them out at each step would make it wait
        totalLoss += loss.detach() * len(y)
        correct += (pred.argmax(1) == y).sum()
        count += len(y)
    return float(totalLoss) / count, float(correct) / count


def evaluate(model, loader, lossFunc):
    """Return mean loss and accuracy over the images of loader, and the predicted classes."""
    model.eval()
    (totalLoss, correct, preds) = (0, 0, [])
    with torch.inference_mode():
        for x, y in loader:
            (x, y) = (x.to(config.DEVICE), y.to(config.DEVICE))
            pred = model(x)
            totalLoss += lossFunc(pred, y) * len(y)
            correct += (pred.argmax(1) == y).sum()
            preds.append(pred.argmax(1))
    preds = torch.cat(preds).cpu()
    return float(totalLoss) / len(preds), float(correct) / len(preds), preds


def train(model, trainLoader, valLoader, lossFunc, learningRate):
    """Train model for config.EPOCHS epochs; return the history H, a value per epoch each of
    train_loss, train_acc, val_loss and val_acc."""
    opt = optim.Adam(model.parameters(), lr=learningRate)
    # fp16 alone needs its gradients scaled
    scaler = torch.amp.GradScaler(
        config.DEVICE.type, enabled=devices.compute_dtype(config.DEVICE) == torch.float16
    )
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)
    H = {"train_loss": [], "train_acc": [], "val_loss": [], "val_acc": []}
    for e in tqdm(range(config.EPOCHS)):
        (trainLoss, trainAcc) = train_one_epoch(model, trainLoader, lossFunc, opt, scaler)
        (valLoss, valAcc, _) = evaluate(model, valLoader, lossFunc)
        lrScheduler.step()
        for name, value in zip(H, (trainLoss, trainAcc, valLoss, valAcc), strict=True):
            H[name].append(value)
        # print() would break the progress bar
        tqdm.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
        tqdm.write(f"Train loss: {trainLoss:.6f}, Train accuracy: {trainAcc:.4f}")
        tqdm.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")
    return H


def main():
    cli.parse_args(
        cli.make_parser(
            __doc__,
            ["IMAGE_SIZE", "LOCAL_BATCH_SIZE", "EPOCHS", "LR", "SEED", "NUM_WORKERS", "PRETRAINED"],
        )
    )
    torch.manual_seed(config.SEED)

    print(f"[INFO] number of GPUs found: {devices.count_gpus()}...")
    batchSize = config.LOCAL_BATCH_SIZE * devices.count_devices()
    print(f"[INFO] using a batch size of {batchSize}...")
    ((trainDS, trainLoader), (_, valLoader), (testDS, testLoader)) = get_dataloaders(batchSize)

    model = build_model(len(trainDS.classes))
    lossFunc = nn.CrossEntropyLoss()

    print("[INFO] training the network...")
    startTime = time.time()
    H = train(model, trainLoader, valLoader, lossFunc, config.LR * devices.count_devices())
    print(f"[INFO] total time taken to train the model: {time.time() - startTime:.2f}s")
    # first of all, so that no error in what follows can lose them
    files.save_state(devices.unwrap_model(model).state_dict(), config.MODEL_PATH)

    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, lossFunc)
    reporting.save_report(testDS.targets, preds, testDS.classes)
    reporting.plot_confusion(testDS.targets, preds, testDS.classes)
    reporting.plot_history(H)


if __name__ == "__main__":
    run(main)
