# USAGE
# python train_distributed.py
# torchrun --standalone --nproc-per-node=gpu train_distributed.py
"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import math
import time
from pathlib import Path

from pyimagesearch import checkpoint, cli, config, devices, food_classifier, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader, test_transform
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm, load_densenet
from pyimagesearch.reporting import progress

import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torchvision import transforms


def main(argv=None):
    # join the processes that torchrun started, if it did, and read the flags
    devices.join_processes()
    args = parse_args(argv)
    if args.evaluate:
        evaluate_weights(args.weights or config.MODEL_PATH)
        return

    # start a run or, with --resume, continue that in output/ with its settings
    run = checkpoint.start_run(args)
    torch.manual_seed(config.SEED)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size: it grows with the number of devices, GPUs or the CPU
    numDevices = devices.count_devices()
    batchSize = config.LOCAL_BATCH_SIZE * numDevices
    print(f"[INFO] using a batch size of {batchSize}...")

    # define the augmentation of the training images, and the preprocessing of all others
    trainTransform = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(90),
            transforms.ToTensor(),
            transforms.Normalize(mean=config.MEAN, std=config.STD),
        ]
    )
    testTransform = test_transform()

    # create the data loaders
    (trainDS, trainLoader) = get_dataloader(config.TRAIN, trainTransform, bs=batchSize)
    (valDS, valLoader) = get_dataloader(config.VAL, testTransform, bs=batchSize, shuffle=False)
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize, shuffle=False)

    # load up the DenseNet121 model; no ImageNet weights when resuming, as the checkpoint has ours
    baseModel = load_densenet(pretrained=config.PRETRAINED and "model" not in run)

    # freeze its batch normalization when fine-tuning: small batches have unreliable statistics
    if config.PRETRAINED:
        freeze_batch_norm(baseModel)

    # initialize our food classifier and move it to the device
    model = FoodClassifier(baseModel, len(trainDS.classes))
    model = model.to(config.DEVICE)

    # parallelize the model over several GPUs; torchrun's processes evaluate with the plain model
    trainModel = evalModel = model
    if devices.get_world_size() > 1:
        trainModel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    elif numGPU > 1:
        # its threads are new at each step, and cuDNN plans every convolution anew in each
        print("[INFO] nn.DataParallel is slow: README.md has the command that starts torchrun...")
        trainModel = evalModel = nn.DataParallel(model)

    # initialize the loss function, the optimizer (fused: one pass over all parameters, not one per
    # operation) and the gradient scaler, which keeps small gradients from becoming 0 in fp16
    lossFunc = nn.CrossEntropyLoss()
    opt = optim.Adam(model.parameters(), lr=config.LR * numDevices, fused=True)
    dtype = devices.compute_dtype()
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=dtype == torch.float16)

    # initialize a learning-rate scheduler that decays the rate by a factor of 0.1 every 10 epochs
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)

    # initialize a dictionary to store the training history
    H = {"train_loss": [], "train_acc": [], "val_loss": [], "val_acc": []}

    # when resuming, continue after the last completed epoch
    stateful = {"model": model, "opt": opt, "scaler": scaler, "lrScheduler": lrScheduler}
    done = checkpoint.restore_run(run, stateful, H, (trainDS, valDS, testDS))
    trainLoader.sampler.set_epoch(done)

    # loop over the epochs
    print("[INFO] training the network...")
    startTime = time.monotonic()
    epochs = progress(range(done, config.EPOCHS), initial=done, total=config.EPOCHS)
    for e in epochs:
        (trainLoss, trainAcc) = train_one_epoch(trainModel, trainLoader, lossFunc, opt, scaler)
        (valLoss, valAcc, _) = evaluate(evalModel, valLoader, lossFunc)
        if not math.isfinite(valLoss):
            raise UserError("training diverged: validation loss not finite; use a lower --lr")

        # update our learning rate and the training history
        rate = opt.param_groups[0]["lr"]
        lrScheduler.step()
        H["train_loss"].append(trainLoss)
        H["train_acc"].append(trainAcc)
        H["val_loss"].append(valLoss)
        H["val_acc"].append(valAcc)
        checkpoint.save_checkpoint(run, stateful, e + 1, H, trainDS.classes)

        # print the training and validation information; print() would break the progress bars
        epochs.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
        epochs.write(f"Train loss: {trainLoss:.6f}, Train accuracy: {trainAcc:.4f}")
        epochs.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")
        epochs.write(f"Learning rate: {rate:g}")
    print(f"[INFO] total time taken to train the model: {time.monotonic() - startTime:.2f}s")

    # save the weights first, so that an error in the report or the plot cannot lose them
    checkpoint.save_weights(model, trainDS.classes)

    # evaluate the network on the test set
    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(evalModel, testLoader, lossFunc)
    # generate a classification report, and plot the training loss and accuracy
    if devices.get_rank() == 0:
        reporting.save_report(testDS, preds)
        reporting.save_history(H)
    print(f"[INFO] saved {config.MODEL_PATH}; to use it: python distributed_inference.py")


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
    """Return mean loss and accuracy over loader, and for each of its images, in the order of the
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
            (p, label) = pred.softmax(1).max(1)
            totalLoss += lossFunc(pred, y) * len(y)
            correct += (label == y).sum()
            preds.append((label, p))
    preds = [pair for (label, p) in preds for pair in zip(label.tolist(), p.tolist(), strict=True)]
    return *devices.mean_over_images(totalLoss, correct, loader), devices.interleave(preds)


def evaluate_weights(path):
    """Report on the test set as at the end of a training, with the weights in the file at path."""
    (model, _, testTransform) = food_classifier.load_classifier(path)
    batchSize = config.LOCAL_BATCH_SIZE * devices.count_devices()
    (testDS, testLoader) = get_dataloader(config.TEST, testTransform, bs=batchSize, shuffle=False)
    # all processes have the same images and weights: a bias tells one training from another
    images = checkpoint.describe_images(testDS)
    checkpoint.compare_processes({path: model.classifier.bias[0].item(), "the test set": images})
    if devices.get_world_size() == 1 and devices.count_gpus() > 1:
        model = nn.DataParallel(model)
    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, nn.CrossEntropyLoss())
    if devices.get_rank() == 0:
        # beside the run's own report, not over it
        folder = Path(config.REPORT_PATH).with_name(time.strftime("evaluation-%Y-%m-%d-%H%M%S"))
        reporting.save_report(testDS, preds, folder)


def parse_args(argv):
    """Return the parsed command line, whose settings are then in config."""
    names = "IMAGE_SIZE LOCAL_BATCH_SIZE EPOCHS LR SEED NUM_WORKERS PRETRAINED".split()
    parser = cli.make_parser(__doc__, names, "python train_distributed.py --epochs 5 --lr 0.0005")
    parser.add_argument("--resume", action="store_true", help="continue a run, or begin one")
    parser.add_argument("--evaluate", action="store_true", help="train nothing, write the report")
    text = f"trained weights for --evaluate (default: {config.MODEL_PATH})"
    parser.add_argument("--weights", metavar="PATH", help=text)
    args = cli.parse_args(parser, argv)
    if args.weights and not args.evaluate:
        parser.error("--weights needs --evaluate")
    return args


if __name__ == "__main__":
    devices.keep_memory()
    cli.run(main, advice="--resume continues a training after its last completed epoch")
