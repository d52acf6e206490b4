# USAGE
# python train_distributed.py
# torchrun --standalone --nproc-per-node=gpu train_distributed.py
"""Step 2: fine-tune DenseNet121 on the prepared photographs, and report on the test set."""

# import the necessary packages
import math
import time

import torch
from torch import nn, optim

from pyimagesearch import checkpoint, cli, config, create_dataloaders, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import (
    FoodClassifier,
    freeze_batch_norm,
    label_weights,
    load_densenet,
)
from pyimagesearch.reporting import BatchProgress, Progress


def main():
    args = parse_args()
    torch.manual_seed(config.SEED)
    # all processes need the same settings and images; a resumed run needs those of the first run
    record = checkpoint.get_record()
    checkpoint.compare_processes(record)

    # determine the number of GPUs we have
    numGPU = devices.count_gpus()
    print(f"[INFO] number of GPUs found: {numGPU}...")

    # determine the batch size: it grows with the number of devices, at least one: the CPU
    numDevices = devices.count_devices()
    batchSize = config.LOCAL_BATCH_SIZE * numDevices
    print(f"[INFO] using a batch size of {batchSize}...")
    print(f"[INFO] running on {devices.describe_devices()}...")

    # define the augmentation of the training images, and the preprocessing of all others
    trainTransform = create_dataloaders.train_transform()
    testTransform = create_dataloaders.test_transform()

    # create the data loaders
    (trainDS, trainLoader) = create_dataloaders.get_dataloader(
        config.TRAIN, transforms=trainTransform, bs=batchSize
    )
    (valDS, valLoader) = create_dataloaders.get_dataloader(
        config.VAL, transforms=testTransform, bs=batchSize, shuffle=False
    )
    (testDS, testLoader) = create_dataloaders.get_dataloader(
        config.TEST, transforms=testTransform, bs=batchSize, shuffle=False
    )
    check_classes(trainDS, valDS, testDS)

    # load the checkpoint to resume from; only the main process reads and writes output/
    state = None
    if devices.is_main_process():
        checkpoint.lock_output()
        state = checkpoint.load_checkpoint(record) if args.resume else None
    state = devices.broadcast(state)

    # load up the DenseNet121 model; a checkpoint would overwrite the ImageNet weights
    with devices.local_main_process_first():
        baseModel = load_densenet(pretrained=config.PRETRAINED and state is None)

    # freeze its batch normalization when fine-tuning, as the statistics of ImageNet are more
    # reliable than those of small batches
    if config.PRETRAINED:
        freeze_batch_norm(baseModel)

    # initialize our food classifier, label its weights with what they are trained on, and move it
    # to the device
    model = FoodClassifier(baseModel, len(trainDS.classes))
    label_weights(model, trainDS.classes)
    model = model.to(config.DEVICE)

    # if there is more than one GPU, parallelize the model: by nn.DataParallel, or under torchrun by
    # DistributedDataParallel
    model = devices.parallelize(model)
    # let cuDNN time its algorithms and keep the fastest, as training images have one size
    torch.backends.cudnn.benchmark = True

    # initialize the loss function, the optimizer (fused: one pass over all parameters, not one per
    # operation) and the gradient scaler, which keeps small gradients from becoming 0 in fp16
    lossFunc = nn.CrossEntropyLoss()
    opt = optim.Adam(model.parameters(), lr=config.LR * numDevices, fused=True)
    isHalf = devices.compute_dtype(config.DEVICE) == torch.float16
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isHalf)

    # initialize a learning-rate scheduler that decays the rate by a factor of 0.1 every 10 epochs:
    # large steps find a good region, small ones settle in it
    lrScheduler = optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.1)

    # initialize a dictionary to store the training history
    H = {"train_loss": [], "train_acc": [], "val_loss": [], "val_acc": []}

    # restore the state of the checkpoint
    parts = {
        "model": devices.unwrap(model),
        "opt": opt,
        "scaler": scaler,
        "lrScheduler": lrScheduler,
    }
    done = 0
    if state:
        (done, H) = checkpoint.restore_checkpoint(state, parts)
        trainLoader.sampler.set_epoch(done)
        print(f"[INFO] resuming after epoch {done}...")
        if done >= config.EPOCHS:
            print(f"[INFO] no epoch is left to train, as EPOCHS is {config.EPOCHS}...")
    elif devices.is_main_process():
        checkpoint.set_aside_run()
    note_saved(done)
    cli.interrupts.wait_for_steps(model)

    # loop over the epochs
    print("[INFO] training the network...")
    startTime = time.monotonic()
    epochs = Progress(range(done, config.EPOCHS), initial=done, total=config.EPOCHS)
    for e in epochs:
        (trainLoss, trainAcc) = train_one_epoch(model, trainLoader, lossFunc, opt, scaler)
        (valLoss, valAcc, _) = evaluate(model, valLoader, lossFunc)
        if not math.isfinite(trainLoss + valLoss):
            cli.interrupts.advice = "start again with a lower --lr"
            raise UserError(f"training diverged: the loss of epoch {e + 1} is not a number")

        # update our learning rate and the training history
        lrScheduler.step()
        H["train_loss"].append(trainLoss)
        H["train_acc"].append(trainAcc)
        H["val_loss"].append(valLoss)
        H["val_acc"].append(valAcc)
        if devices.is_main_process():
            checkpoint.save_checkpoint(parts, e + 1, H, record)
        note_saved(e + 1)

        # print the training and validation information; print() would break the progress bars
        epochs.write(f"[INFO] EPOCH: {e + 1}/{config.EPOCHS}")
        epochs.write(f"Train loss: {trainLoss:.6f}, Train accuracy: {trainAcc:.4f}")
        epochs.write(f"Val loss: {valLoss:.6f}, Val accuracy: {valAcc:.4f}")

    # display the total time needed to perform the training
    print(f"[INFO] total time taken to train the model: {time.monotonic() - startTime:.2f}s")

    # save the weights first, so that an error in the report or the plot cannot lose them
    if devices.is_main_process():
        checkpoint.save_weights(devices.unwrap(model))

    # evaluate the network on the test set; end the workers of the other loaders before
    del trainLoader, valLoader
    print("[INFO] evaluating network...")
    (_, _, preds) = evaluate(model, testLoader, lossFunc)
    cli.interrupts.end_steps()

    # generate a classification report, and plot the training loss and accuracy
    if devices.is_main_process():
        reporting.save_report(testDS.targets, preds, testDS.classes)
        reporting.plot_confusion(testDS.targets, preds, testDS.classes)
        reporting.save_history(H)
        reporting.plot_history(H)
    saved = [config.MODEL_PATH, config.REPORT_PATH, config.CONFUSION_PATH, config.PLOT_PATH]
    print(f"[INFO] saved {', '.join(saved)}...")
    print("[INFO] to look at predictions: python distributed_inference.py")


def train_one_epoch(model, loader, lossFunc, opt, scaler):
    """Train model for one epoch; return mean loss and accuracy over the images of loader."""
    # set the model in training mode
    model.train()
    # initialize the total loss and the number of correct predictions; they stay on the device, as
    # calling .item() at every step would stall the GPU
    (totalLoss, correct) = (0, 0)
    with BatchProgress(loader, "training") as bar:
        # loop over the training set
        for x, y in loader:
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
            bar.show(len(y), totalLoss, correct)
    devices.sync_buffers(model)
    (totalLoss, correct, total) = devices.all_reduce(totalLoss, correct, len(loader.sampler))
    return totalLoss / total, correct / total


def evaluate(model, loader, lossFunc):
    """Return mean loss and accuracy over the images of loader, and the list of their predicted
    class indices, in the order of its dataset."""
    # set the model in evaluation mode
    model.eval()
    (totalLoss, correct, preds) = (0, 0, [])
    # switch off autograd
    with torch.inference_mode(), BatchProgress(loader, "evaluating") as bar:
        # loop over the images
        for x, y in loader:
            x = x.to(config.DEVICE, non_blocking=loader.pin_memory)
            y = y.to(config.DEVICE, non_blocking=loader.pin_memory)
            # make the predictions and calculate the loss
            pred = model(x)
            totalLoss += lossFunc(pred, y) * len(y)
            preds.append(pred.argmax(1))
            correct += (preds[-1] == y).sum()
            bar.show(len(y), totalLoss, correct)
    (totalLoss, correct, total) = devices.all_reduce(totalLoss, correct, len(loader.sampler))
    preds = devices.gather([label for batch in preds for label in batch.tolist()])
    return totalLoss / total, correct / total, preds


def parse_args():
    """Return the parsed command line."""
    parser = cli.make_parser(
        __doc__,
        ["IMAGE_SIZE", "LOCAL_BATCH_SIZE", "EPOCHS", "LR", "SEED", "NUM_WORKERS", "PRETRAINED"],
        example="python train_distributed.py --epochs 5 --lr 0.0005",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in output/ after its last completed epoch (default: no)",
    )
    return cli.parse_args(parser)


def note_saved(epoch):
    """Tell the script runner what to say if it is interrupted after so many saved epochs."""
    cli.interrupts.saved = f"epoch {epoch} of {config.EPOCHS} is saved"
    cli.interrupts.advice = f"add --resume to continue, or --resume --epochs {epoch} to finish here"
    if epoch == 0:
        cli.interrupts.saved = "no epoch is saved yet"
        cli.interrupts.advice = "run the same command again"
    elif epoch >= config.EPOCHS:
        cli.interrupts.saved = "all epochs are saved"
        cli.interrupts.advice = "add --resume to evaluate and report"


def check_classes(trainDS, valDS, testDS):
    """Raise UserError unless all splits hold the classes of config.py."""
    classes = create_dataloaders.get_classes()
    for ds in (trainDS, valDS, testDS):
        print(f"[INFO] {ds.root}: {len(ds)} images of {len(ds.classes)} classes...")
        # a class that one split lacks would shift every label after it
        if ds.classes != classes:
            odd = sorted(set(ds.classes) ^ set(classes))
            raise UserError(
                f"{ds.root} holds other classes than CLASSES in config.py (different: "
                f"{', '.join(odd[:5])}); run prepare_dataset.py first"
            )


if __name__ == "__main__":
    cli.run(main)
