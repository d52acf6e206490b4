# USAGE
# python train_distributed.py
# torchrun --standalone --nproc-per-node=gpu train_distributed.py
"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import gc

if __name__ == "__main__":
    # a search for garbage, which these imports make little of, takes a quarter of their time;
    # script.run() turns it on again
    gc.disable()

import argparse
import math
import time

import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torchvision import transforms

from pyimagesearch import config
from pyimagesearch.create_dataloaders import (
    eval_transform,
    gather_in_order,
    get_dataloader,
    mean_over_images,
)
from pyimagesearch.food_classifier import (
    FoodClassifier,
    freeze_batch_norm,
    load_densenet,
    load_trained,
    sync_batch_norm,
)
from pyimagesearch.support import (
    checkpoints,
    devices,
    figures,
    processes,
    reporting,
    runs,
    script,
    settings,
    weights,
)
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.progress import progress
from pyimagesearch.support.replicas import CoreParallel, DataParallel, parallelize


def main(argv=None):
    args = parse_args(argv)
    # join the processes that torchrun started, if it did
    worldSize = processes.join_processes()
    # start a run or, with --resume, continue the one in output/; config then has its settings
    run = runs.start_run(args)
    torch.manual_seed(config.SEED)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size: it grows with the devices, GPUs or the CPU of each process
    batchSize = config.LOCAL_BATCH_SIZE * run.numDevices
    print(f"[INFO] using a batch size of {batchSize}...")

    # with --evaluate, only report on weights that are trained
    if args.evaluate:
        evaluate_weights(run, numGPU, worldSize, batchSize)
        return

    # define the augmentation of the training images, and the preprocessing of all others; both end
    # with bytes, which the network normalizes on the device
    trainTransform = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(90),
            transforms.PILToTensor(),
        ]
    )
    testTransform = eval_transform(config.IMAGE_SIZE)

    # create the data loaders
    (trainDS, trainLoader) = get_dataloader(config.TRAIN, trainTransform, bs=batchSize)
    (valDS, valLoader) = get_dataloader(config.VAL, testTransform, bs=batchSize, shuffle=False)
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize, shuffle=False)

    # load up the DenseNet121 model; a resumed run, and one with --weights, has others
    isNew = run.checkpoint is None and run.start is None
    baseModel = load_densenet(pretrained=config.PRETRAINED and isNew)

    # freeze its batch normalization when fine-tuning
    if config.FREEZE_BATCH_NORM:
        freeze_batch_norm(baseModel)

    # initialize our food classifier, which normalizes its input, and move it to the device
    model = FoodClassifier(baseModel, len(trainDS.classes))
    model = model.to(config.DEVICE)

    # parallelize the model: over several GPUs (nn.DataParallel with threads that stay), or over the
    # cores of a CPU
    evalModel = model
    if numGPU > 1 and worldSize == 1:
        print("[INFO] start several GPUs with torchrun: README.md has the command...")
        evalModel = DataParallel(model)
    elif numGPU == 0:
        evalModel = CoreParallel(model)

    # have torchrun's processes average their gradients; each evaluates images of its own
    trainModel = evalModel
    if worldSize > 1:
        trainModel = DistributedDataParallel(evalModel, gradient_as_bucket_view=True)

    # initialize the loss function and the optimizer (fused: one pass over all parameters, not one
    # per operation)
    lossFunc = nn.CrossEntropyLoss()
    opt = optim.Adam(model.parameters(), lr=config.LR * run.numDevices, fused=True)

    # initialize the gradient scaler, which keeps small gradients from becoming 0 in fp16
    isFP16 = model.dtype == torch.float16
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isFP16)

    # initialize a learning-rate scheduler that decays the rate by a factor of 0.1 every 10 epochs
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)

    # initialize a dictionary to store the training history
    H = {
        "rate": [],
        "train_loss": [],
        "train_acc": [],
        "val_loss": [],
        "val_acc": [],
        "seconds": [],
    }

    # when resuming, continue after the last completed epoch; --weights is a beginning too
    parts = {"model": model, "opt": opt, "scaler": scaler, "lrScheduler": lrScheduler}
    done = checkpoints.restore_run(run, parts, H, (trainDS, valDS, testDS))
    trainLoader.sampler.set_epoch(done)

    # loop over the epochs
    print("[INFO] training the network...")
    startTime = time.monotonic()
    epochs = progress(
        range(done, config.EPOCHS), "all epochs", "epochs", initial=done, total=config.EPOCHS
    )
    for e in epochs:
        epochStart = time.monotonic()
        (trainLoss, trainAcc) = train_one_epoch(trainModel, trainLoader, lossFunc, opt, scaler)
        (valLoss, valAcc, _, _) = evaluate(evalModel, valLoader, lossFunc)
        if not math.isfinite(valLoss):
            raise UserError(
                "training diverged: the validation loss is not finite; use a lower --lr or, on a"
                ' GTX 16 card, PRECISION = "float32" in config.py'
            )

        # update our learning rate and the training history
        rate = opt.param_groups[0]["lr"]
        lrScheduler.step()
        H["rate"].append(rate)
        H["train_loss"].append(trainLoss)
        H["train_acc"].append(trainAcc)
        H["val_loss"].append(valLoss)
        H["val_acc"].append(valAcc)
        H["seconds"].append(round(time.monotonic() - epochStart, 2))
        checkpoints.save_checkpoint(run, parts, H, e + 1)
        weights.save_weights(model, trainDS.classes)

        # print the training and validation information; print() would break the progress bars
        epochs.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
        epochs.write(f"Train loss: {trainLoss:.6f}, Train accuracy: {trainAcc:.4f}")
        epochs.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")
        epochs.write(f"Learning rate: {rate:g}")
    print(f"[INFO] total time taken to train the model: {time.monotonic() - startTime:.2f}s")

    # serialize the model to disk: a run that was killed after its last checkpoint may lack it
    weights.save_weights(model, trainDS.classes)

    # evaluate the network on the test set
    print("[INFO] evaluating network...")
    (_, _, preds, probs) = evaluate(evalModel, testLoader, lossFunc)
    # generate a classification report
    reporting.save_report(testDS, preds, probs)
    # plot the training loss and accuracy
    figures.plot_history(H)
    print(f"[INFO] saved {config.MODEL_PATH}; to use it: python distributed_inference.py")


def train_one_epoch(model, loader, lossFunc, opt, scaler):
    """Train model for one epoch; return mean loss and accuracy over the images of loader."""
    # set the model in training mode
    model.train()
    # initialize the sums; they stay on the device, as .item() at every step would stall the GPU
    totalLoss = 0
    correct = 0
    # loop over the training set
    for (x, y) in progress(loader, "training", "batches", leave=False):  # fmt: skip
        # send the input to the device, from pinned memory without waiting for it
        x = x.to(config.DEVICE, non_blocking=loader.pin_memory)
        y = y.to(config.DEVICE, non_blocking=loader.pin_memory)
        # perform a forward pass and calculate the training loss
        pred = model(x)
        loss = lossFunc(pred, y)
        # calculate the gradients and update the weights
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        # add the loss to the total, and count the correct predictions
        totalLoss += loss.detach() * len(y)
        correct += (pred.argmax(1) == y).sum()
    sync_batch_norm(model)
    return mean_over_images(totalLoss, correct, loader)


def evaluate(model, loader, lossFunc):
    """Return mean loss and accuracy over the images of loader and, as lists in the order of the
    dataset, the predicted class index of each image and its probability."""
    # set the model in evaluation mode
    model.eval()
    totalLoss = 0
    correct = 0
    preds = []
    probs = []
    # switch off autograd
    with torch.inference_mode():
        # loop over the images
        for (x, y) in progress(loader, "evaluating", "batches", leave=False):  # fmt: skip
            x = x.to(config.DEVICE, non_blocking=loader.pin_memory)
            y = y.to(config.DEVICE, non_blocking=loader.pin_memory)
            # make the predictions and calculate the loss
            pred = model(x)
            totalLoss += lossFunc(pred, y) * len(y)
            # keep the likeliest class of each image, and count the correct ones
            (prob, label) = pred.softmax(1).max(1)
            correct += (label == y).sum()
            preds.append(label)
            probs.append(prob)
    (loss, accuracy) = mean_over_images(totalLoss, correct, loader)
    return loss, accuracy, gather_in_order(preds), gather_in_order(probs)


def evaluate_weights(run, numGPU, worldSize, batchSize):
    """Report on the test set as at the end of a training, with trained weights, on all devices."""
    (model, trainedOn) = load_trained(run.record["weights"])
    # torchrun gives each process a GPU of its own
    model = parallelize(model, numGPU if worldSize == 1 else min(numGPU, 1))
    testTransform = eval_transform(trainedOn.imageSize)
    (testDS, testLoader) = get_dataloader(
        config.TEST, testTransform, bs=batchSize, shuffle=False, trainedOn=trainedOn
    )
    print("[INFO] evaluating network...")
    (_, _, preds, probs) = evaluate(model, testLoader, nn.CrossEntropyLoss())
    reporting.save_report(testDS, preds, probs, run.folder)


def parse_args(argv):
    """Return the parsed command line."""
    example = "example: python train_distributed.py --epochs 5 --lr 0.0005"
    parser = argparse.ArgumentParser(description=__doc__, epilog=example)
    names = "IMAGE_SIZE LOCAL_BATCH_SIZE EPOCHS LR SEED NUM_WORKERS PRETRAINED"
    settings.add_flags(parser, names.split())
    text = "continue the run in output/, or begin one where there is none"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.add_argument("--evaluate", action="store_true", help="train nothing, write the report")
    text = f"weights to begin with, or to evaluate (the default there: {config.MODEL_PATH})"
    parser.add_argument("--weights", metavar="PATH", help=text)
    args = parser.parse_args(argv)
    if args.evaluate:
        ignored = ["--resume"] if args.resume else []
        for name in ("IMAGE_SIZE", "EPOCHS", "LR", "SEED", "PRETRAINED"):
            # a flag that is not given is not there
            if name in args:
                ignored.append("--" + name.lower().replace("_", "-"))
        if ignored:
            parser.error(f"--evaluate trains nothing; leave out {', '.join(ignored)}")
    return args


if __name__ == "__main__":
    devices.keep_memory()
    script.run(main, advice="--resume continues a training after its last completed epoch")
