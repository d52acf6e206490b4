"""Measure this project against the tutorial's recipe, in one run, on any folder of images.

    python tests/benchmark.py FOLDER                 # speed and memory
    python tests/benchmark.py FOLDER --seeds 0 1 2   # and accuracy, FOLDER prepared as dataset/ is

The recipe is written out below. Both sides take turns, round after round; what is printed is the
median of the rounds and their spread. Labels do not matter for speed, so any images will do.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import torch
import torchvision
from imutils import paths
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms
from torchvision.models import densenet121

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_distributed
from pyimagesearch import config, create_dataloaders, devices
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm

NUM_CLASSES = 10


def train_transform():
    """Return the training transform of train_distributed.py."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(config.IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(90),
            transforms.ToTensor(),
            transforms.Normalize(mean=config.MEAN, std=config.STD),
        ]
    )


class Recipe:
    """The tutorial's way on one device: fp32 on a CPU, fp16 autocast on CUDA, plain memory format
    and Adam, unpinned loading, a .item() at each step, batch normalization that trains."""

    name = "recipe"

    def __init__(self, numClasses=NUM_CLASSES, lr=1e-4):
        self.model = FoodClassifier(densenet121(weights=None), numClasses)
        self.model.forward = lambda x: self.model.classifier(self.model.baseModel(x))
        self.model.to(config.DEVICE, memory_format=torch.contiguous_format)
        self.cuda = config.DEVICE.type == "cuda"
        self.lossFunc = nn.CrossEntropyLoss()
        self.opt = optim.Adam(self.model.parameters(), lr=lr, foreach=False)
        self.scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=self.cuda)

    def get_loader(self, rootDir, transform, bs, shuffle=True):
        ds = datasets.ImageFolder(rootDir, transform)
        return DataLoader(ds, bs, shuffle, num_workers=config.NUM_WORKERS)

    def predict(self, x):
        with torch.autocast(config.DEVICE.type, enabled=self.cuda):
            return self.model(x)

    def train(self, loader):
        self.model.train()
        (totalLoss, correct) = (0, 0)
        for x, y in loader:
            (x, y) = (x.to(config.DEVICE), y.to(config.DEVICE))
            pred = self.predict(x)
            loss = self.lossFunc(pred, y)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.opt)
            self.scaler.update()
            self.opt.zero_grad()
            totalLoss += loss.item()
            correct += (pred.argmax(1) == y).type(torch.float).sum().item()

    def evaluate(self, loader):
        self.model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                (x, y) = (x.to(config.DEVICE), y.to(config.DEVICE))
                pred = self.predict(x)
                self.lossFunc(pred, y).item()
                correct += (pred.argmax(1) == y).type(torch.float).sum().item()
        return correct / len(loader.dataset)


class Ours:
    """What train_distributed.py does; freeze as with ImageNet weights."""

    name = "ours"

    def __init__(self, numClasses=NUM_CLASSES, lr=1e-4, freeze=True):
        baseModel = densenet121(weights=None)
        if freeze:
            freeze_batch_norm(baseModel)
        devices.keep_memory()
        self.model = FoodClassifier(baseModel, numClasses).to(config.DEVICE)
        if devices.count_gpus() > 1:
            self.model = nn.DataParallel(self.model)
        torch.backends.cudnn.benchmark = devices.count_gpus() == 1
        self.lossFunc = nn.CrossEntropyLoss()
        self.opt = optim.Adam(self.model.parameters(), lr=lr, fused=True)
        self.scaler = torch.amp.GradScaler(
            config.DEVICE.type, enabled=devices.compute_dtype() == torch.float16
        )

    def get_loader(self, rootDir, transform, bs, shuffle=True):
        return create_dataloaders.get_dataloader(rootDir, transform, bs, shuffle)[1]

    def train(self, loader):
        train_distributed.train_one_epoch(self.model, loader, self.lossFunc, self.opt, self.scaler)

    def evaluate(self, loader):
        return train_distributed.evaluate(self.model, loader, self.lossFunc)[1]


def measure(function, *args):
    """Return the seconds that a call takes, the device's work included."""
    start = time.perf_counter()
    function(*args)
    if config.DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def link_images(imagePaths, count, rootDir):
    """Make class folders in rootDir with links to count images; the same again when too few."""
    for number in range(count):
        source = Path(imagePaths[number % len(imagePaths)]).resolve()
        folder = rootDir / str(number % NUM_CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}{source.suffix}").symlink_to(source)


def in_memory(count, bs):
    """Return a loader of random images that are in memory."""
    size = config.IMAGE_SIZE
    x = torch.randn(min(count, 4 * bs), 3, size, size)
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % NUM_CLASSES), bs)


def get_peak():
    """Return the peak of this process's memory, or of its GPU's, in bytes."""
    if config.DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage(), whose peak of a new process includes that of its parent
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def serve(side, options, connection, folder, bs, imageSize):
    """Run one side's jobs in this process: receive a name, send the seconds that the job took.

    Each side runs in its own process, because keep_memory() changes malloc for the whole process.
    """
    config.IMAGE_SIZE = imageSize
    config.CLASSES = os.listdir(folder / "1x")
    # a spawned process would spawn the recipe's workers as well
    multiprocessing.set_start_method(create_dataloaders.START_METHOD, force=True)
    worker = side(**options)
    memory = in_memory(2 * bs, bs)
    trainTransform = train_transform()
    testTransform = create_dataloaders.test_transform()
    train = {
        path.name: worker.get_loader(path, trainTransform, bs) for path in sorted(folder.iterdir())
    }
    test = worker.get_loader(folder / "1x", testTransform, bs, shuffle=False)
    jobs = {
        "step": lambda: worker.train(memory),
        "evaluation": lambda: worker.evaluate(memory),
        "loader": lambda: deque(train["1x"], maxlen=0),
        "files": lambda: worker.train(train["1x"]),
        "epoch": lambda: (worker.train(train["1x"]), worker.evaluate(test)),
        "2x": lambda: worker.train(train["2x"]),
        "4x": lambda: worker.train(train["4x"]),
    }
    # what is sent before the first job: the peak of memory after some training steps
    worker.train(memory)
    connection.send(get_peak())
    worker.evaluate(memory)
    while name := connection.recv():
        connection.send(measure(jobs[name]))


def ask(connection, job):
    """Return the seconds that job takes in the process behind connection."""
    connection.send(job)
    return connection.recv()


def print_row(name, recipe, ours, unit, ratios):
    """Print medians, and ratios above 1 where ours is better, as median (lowest to highest)."""
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {name} | {recipe} | {ours} | {unit} | {ratio} |")


def compare(name, job, connections, images, rounds):
    """Time the recipe's and our job in turns; print images per second, and how much faster."""
    times = [[ask(connection, job) for connection in connections] for _ in range(rounds)]
    rates = [f"{images / statistics.median(column):.1f}" for column in zip(*times, strict=True)]
    ratios = [recipe / ours for recipe, ours in times]
    print_row(name, *rates, "images/s", ratios)


def compare_speed(imagePaths, bs, count, rounds, folder):
    """Print the table of speed and memory."""
    for factor in (1, 2, 4):
        link_images(imagePaths, factor * count, folder / f"{factor}x")
    context = multiprocessing.get_context("spawn")
    (connections, peaks) = ([], [])
    for side, options in ((Recipe, {}), (Ours, {}), (Ours, {"freeze": False})):
        (here, there) = context.Pipe()
        args = (side, options, there, folder, bs, config.IMAGE_SIZE)
        # as in the scripts; the process inherits it
        os.environ.pop("OMP_WAIT_POLICY", None)
        os.environ.update({"OMP_WAIT_POLICY": "PASSIVE"} if side is Ours else {})
        context.Process(target=serve, args=args).start()
        # so that a side that dies ends this process as well
        there.close()
        connections.append(here)
        peaks.append(here.recv())
    (recipe, ours, trained) = connections
    both = (recipe, ours)

    compare("training step", "step", both, 2 * bs, rounds)
    compare("training step, batch normalization trained", "step", (recipe, trained), 2 * bs, rounds)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    compare("training step beside a busy process", "step", both, 2 * bs, rounds)
    busy.kill()
    compare("evaluation", "evaluation", both, 2 * bs, rounds)
    compare("loader", "loader", both, count, rounds)
    compare("epoch, training and validation", "epoch", both, 2 * count, rounds)
    gigabytes = [f"{peak / 2**30:.2f}" for peak in peaks[:2]]
    print_row(f"peak memory, batch {bs}", *gigabytes, "GiB", [peaks[0] / peaks[1]])

    # the same number of whole batches, from files and from memory
    (ratios, epochs) = ([], [])
    for _ in range(rounds):
        perImage = ask(ours, "step") / (2 * bs)
        epochs.append(ask(ours, "files"))
        ratios.append(perImage * count / epochs[-1])
    rate = f"{count / statistics.median(epochs):.1f}"
    print_row("epoch from files, of the rate in memory", "", rate, "images/s", ratios)

    for factor in (2, 4):
        # the first epoch starts the workers
        (_, seconds) = (ask(ours, f"{factor}x") for _ in range(2))
        cost = seconds / factor / statistics.median(epochs)
        rate = f"{factor * count / seconds:.1f}"
        print_row(f"cost per image with {factor}x the images, of 1x", "", rate, "images/s", [cost])
    for connection in connections:
        connection.send(None)


def compare_accuracy(folder, bs, seeds, epochs, lr):
    """Print the test accuracy of both sides, trained from random weights for each seed."""
    accuracies = {Recipe: [], Ours: []}
    for seed in seeds:
        for side, found in accuracies.items():
            config.SEED = seed
            torch.manual_seed(seed)
            options = {} if side is Recipe else {"freeze": False}
            config.CLASSES = os.listdir(folder / "training")
            worker = side(len(config.CLASSES), lr, **options)
            transform = train_transform()
            train = worker.get_loader(folder / "training", transform, bs)
            transform = create_dataloaders.test_transform()
            test = worker.get_loader(folder / "evaluation", transform, bs, shuffle=False)
            schedule = optim.lr_scheduler.StepLR(worker.opt, max(1, epochs - 2), 0.1)
            for _ in range(epochs):
                worker.train(train)
                schedule.step()
            found.append(worker.evaluate(test))
    means = [f"{statistics.mean(found):.4f}" for found in accuracies.values()]
    pairs = zip(*accuracies.values(), strict=True)
    print_row(
        f"test accuracy, {epochs} epochs, {len(seeds)} seeds",
        *means,
        "",
        [ours / recipe for recipe, ours in pairs],
    )
    for side, found in accuracies.items():
        print(f"\n{side.name}: {', '.join(f'{a:.4f}' for a in found)}", end="")
    print()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=config.IMAGE_SIZE)
    parser.add_argument("--batch-size", type=int, default=config.LOCAL_BATCH_SIZE)
    parser.add_argument("--images", type=int, default=4 * config.LOCAL_BATCH_SIZE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--epochs", type=int, default=8, help="for the accuracy")
    parser.add_argument("--lr", type=float, default=0.001, help="for the accuracy")
    args = parser.parse_args()
    config.IMAGE_SIZE = args.image_size
    print(
        f"{config.DEVICE}, {devices.compute_dtype()}; {config.NUM_WORKERS} workers; "
        f"torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; {args.image_size} px, "
        f"batch {args.batch_size}, {args.rounds} rounds\n\n"
        "| | recipe | ours | | gain: median (lowest to highest) |\n| --- | --- | --- | --- | --- |"
    )
    if args.seeds:
        compare_accuracy(args.folder, args.batch_size, args.seeds, args.epochs, args.lr)
        return
    imagePaths = sorted(paths.list_images(args.folder))
    with tempfile.TemporaryDirectory() as folder:
        compare_speed(imagePaths, args.batch_size, args.images, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
