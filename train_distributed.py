# USAGE
# python train_distributed.py
# torchrun --standalone --nproc-per-node=gpu train_distributed.py
"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import os
import time

from pyimagesearch import checkpoint, cli, config, create_dataloaders, devices, reporting
from pyimagesearch.create_dataloaders import get_dataloader, test_transform, train_transform
from pyimagesearch.food_classifier import (
    FoodClassifier,
    check_classes,
    freeze_batch_norm,
    load_classifier,
    load_densenet,
)
from pyimagesearch.reporting import progress

import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel


def main():
    # join the processes that torchrun started, if it did; start a new run, or open the old one
    (args, run) = start()
    if args.evaluate:
        evaluate_weights(args.weights or config.MODEL_PATH)
        return

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size: it grows with the number of devices, GPUs or the CPU
    numDevices = devices.count_devices()
    batchSize = config.LOCAL_BATCH_SIZE * numDevices
    print(f"[INFO] using a batch size of {batchSize}...")

    # define the augmentation of the training images, and the preprocessing of all others
    trainTransform = train_transform()
    testTransform = test_transform()

    # create the data loaders
    (trainDS, trainLoader) = get_dataloader(config.TRAIN, trainTransform, bs=batchSize)
    (valDS, valLoader) = get_dataloader(config.VAL, testTransform, bs=batchSize, shuffle=False)
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize, shuffle=False)

    # load up the DenseNet121 model; no ImageNet weights when resuming, as the checkpoint has ours
    baseModel = load_densenet(pretrained=config.PRETRAINED and "model" not in run)

    # freeze its batch normalization when fine-tuning, as the statistics of ImageNet are more
    # reliable than those of small batches
    if config.PRETRAINED:
        freeze_batch_norm(baseModel)

    # initialize our food classifier and move it to the device
    model = FoodClassifier(baseModel, len(trainDS.classes))
    model = model.to(config.DEVICE)
    plainModel = model

    # if there is more than one GPU, parallelize the model; under torchrun, each process has one
    if devices.get_world_size() > 1:
        model = DistributedDataParallel(model, **devices.DDP_OPTIONS)
    elif numGPU > 1:
        model = nn.DataParallel(model)
    # let cuDNN time its algorithms and keep the fastest, as training images have one size; but the
    # threads of nn.DataParallel are new at every step, and each would search again
    torch.backends.cudnn.benchmark = not isinstance(model, nn.DataParallel)

    # initialize the loss function, the optimizer (fused: one pass over all parameters, not one per
    # operation) and the gradient scaler, which keeps small gradients from becoming 0 in fp16
    lossFunc = nn.CrossEntropyLoss()
    opt = optim.Adam(model.parameters(), lr=config.LR * numDevices, fused=True)
    isHalf = devices.compute_dtype() == torch.float16
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isHalf)

    # initialize a learning-rate scheduler that decays the rate by a factor of 0.1 every 10 epochs:
    # large steps find a good region, small ones settle in it
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)

    # initialize a dictionary to store the training history
    H = {"train_loss": [], "train_acc": [], "val_loss": [], "val_acc": []}

    # when resuming, continue after the last completed epoch
    parts = {"model": plainModel, "opt": opt, "scaler": scaler, "lrScheduler": lrScheduler}
    done = 0
    if "model" in run:
        (done, H) = checkpoint.restore_checkpoint(run, parts)
        trainLoader.sampler.set_epoch(done)

    # loop over the epochs
    print("[INFO] training the network...")
    startTime = time.monotonic()
    epochs = progress(range(done, config.EPOCHS), initial=done, total=config.EPOCHS)
    for e in epochs:
        (trainLoss, trainAcc) = train_one_epoch(model, trainLoader, lossFunc, opt, scaler)
        (valLoss, valAcc, _) = evaluate(model, valLoader, lossFunc)

        # update our learning rate and the training history
        lrScheduler.step()
        H["train_loss"].append(trainLoss)
        H["train_acc"].append(trainAcc)
        H["val_loss"].append(valLoss)
        H["val_acc"].append(valAcc)
        checkpoint.save_checkpoint(parts, e + 1, H, run["record"])

        # print the training and validation information; print() would break the progress bars
        epochs.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
        epochs.write(f"Train loss: {trainLoss:.6f}, Train accuracy: {trainAcc:.4f}")
        epochs.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")

    # display the total time needed to perform the training
    print(f"[INFO] total time taken to train the model: {time.monotonic() - startTime:.2f}s")

    # save the weights first, so that an error in the report or the plot cannot lose them
    checkpoint.save_weights(plainModel, trainDS.classes)

    # evaluate the network on the test set
    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, lossFunc)

    # generate a classification report, and plot the training loss and accuracy
    if devices.get_rank() == 0:
        reporting.save_report(testDS, preds)
        reporting.save_history(H)
    print(f"[INFO] saved {config.MODEL_PATH}, {config.REPORT_PATH}, {config.PLOT_PATH}...")
    print("[INFO] to look at predictions: python distributed_inference.py")


def train_one_epoch(model, loader, lossFunc, opt, scaler):
    """Train model for one epoch; return mean loss and accuracy over the images of loader."""
    # set the model in training mode
    model.train()
    # initialize the sums; they stay on the device, as .item() at every step would stall the GPU
    (totalLoss, correct) = (0, 0)
    # loop over the training set
    for (x, y) in progress(loader, desc="training", leave=False):  # fmt: skip
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
    devices.sync_buffers(model)
    return devices.mean_over_images(totalLoss, correct, loader)


def evaluate(model, loader, lossFunc):
    """Return mean loss and accuracy over the images of loader, and for each, in the order of its
    dataset, the predicted class index and its probability."""
    # set the model in evaluation mode
    model.eval()
    (totalLoss, correct, preds) = (0, 0, [])
    # switch off autograd
    with torch.inference_mode():
        # loop over the images
        for (x, y) in progress(loader, desc="evaluating", leave=False):  # fmt: skip
            x = x.to(config.DEVICE, non_blocking=loader.pin_memory)
            y = y.to(config.DEVICE, non_blocking=loader.pin_memory)
            # make the predictions and calculate the loss
            pred = model(x)
            totalLoss += lossFunc(pred, y) * len(y)
            correct += (pred.argmax(1) == y).sum()
            preds.append((pred.argmax(1), pred.softmax(1).amax(1)))
    pairs = [pair for batch in preds for pair in zip(*(t.tolist() for t in batch), strict=True)]
    return *devices.mean_over_images(totalLoss, correct, loader), devices.gather(pairs)


def evaluate_weights(path):
    """Report on the test set as at the end of a training, with the weights in the file at path."""
    (model, classes, testTransform) = load_classifier(path)
    batchSize = config.LOCAL_BATCH_SIZE * devices.count_devices()
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize, shuffle=False)
    check_classes(path, classes, testDS)
    if devices.get_world_size() == 1 and devices.count_gpus() > 1:
        model = nn.DataParallel(model)
    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, nn.CrossEntropyLoss())
    if devices.get_rank() == 0:
        # the report of a run in output/ stays as it is
        folder = os.path.join(os.path.dirname(config.REPORT_PATH), "evaluation")
        folder += time.strftime("-%Y-%m-%d-%H%M%S")
        reporting.save_report(testDS, preds, folder)
        print(f"[INFO] saved the report in {folder}...")


def start():
    """Join the processes that torchrun started, read the command line, and start or resume a run;
    return (args, run): the parsed command line, and what checkpoint.start_run() returns."""
    devices.join_processes()
    names = "IMAGE_SIZE LOCAL_BATCH_SIZE EPOCHS LR SEED NUM_WORKERS PRETRAINED".split()
    parser = cli.make_parser(__doc__, names, "python train_distributed.py --epochs 5 --lr 0.0005")
    text = "continue the run in output/ after its last completed epoch (default: no)"
    parser.add_argument("--resume", action="store_true", help=text)
    text = "train nothing, and report on the test set with the trained weights (default: no)"
    parser.add_argument("--evaluate", action="store_true", help=text)
    text = f"trained weights for --evaluate (default: {config.MODEL_PATH})"
    parser.add_argument("--weights", metavar="PATH", help=text)
    args = cli.parse_args(parser)
    if args.weights and not args.evaluate:
        parser.error("--weights needs --evaluate")
    print(f"[INFO] running on {devices.describe_devices()}...")
    if args.evaluate:
        return args, None
    run = checkpoint.start_run(args)
    create_dataloaders.check_splits()
    torch.manual_seed(config.SEED)
    devices.keep_memory()
    return args, run


if __name__ == "__main__":
    cli.run(main)
