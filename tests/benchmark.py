"""Measure this project against the tutorial's recipe, in one run, on any folder of images.

    python tests/benchmark.py FOLDER                 # speed and memory
    python tests/benchmark.py FOLDER --runs          # whole runs of train_distributed.py
    python tests/benchmark.py FOLDER --seeds 0 1 2   # accuracy, FOLDER prepared as dataset/ is

The recipe is written out below. In the first two, sides take turns, round after round; printed are
the median of the rounds and how many times as fast as the first side each is, as median (lowest to
highest). Labels do not matter for speed, so any images will do.
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
from contextlib import suppress
from pathlib import Path

import torch
import torchvision
from imutils import paths
from torch import distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import densenet121

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_distributed
from pyimagesearch import config
from pyimagesearch.create_dataloaders import get_dataloader
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm
from pyimagesearch.support import devices, labels, workers
from pyimagesearch.support.replicas import CoreParallel, DataParallel

CLASSES = labels.get_classes()
NUM_CLASSES = len(CLASSES)
isCuda = config.DEVICE.type == "cuda"


def augmentation():
    """Return the steps of train_distributed.py's augmentation, on a PIL image."""
    return [
        transforms.RandomResizedCrop(config.IMAGE_SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(90),
    ]


def resizing():
    """Return the steps of its preprocessing of all other images."""
    return [transforms.Resize((config.IMAGE_SIZE, config.IMAGE_SIZE))]


def image_shape(bs):
    """Return the shape of a batch of so many images."""
    return (bs, 3, config.IMAGE_SIZE, config.IMAGE_SIZE)


def freeze_as_the_tutorial(baseModel):
    """Freeze what the tutorial's loop freezes: it pairs modules with parameters, of which there are
    not as many, so that 65 of batch normalization's 242 tensors are among the 101 of 364."""
    for module, param in zip(baseModel.modules(), baseModel.parameters(), strict=False):
        if isinstance(module, nn.BatchNorm2d):
            param.requires_grad = False


class Recipe:
    """The tutorial's way on one device: fp32 on a CPU, fp16 autocast on CUDA, plain memory format,
    unpinned loading, a .item() at each step, and its own freezing. foreach: False for the Adam of
    2021, None for today's default."""

    def __init__(self, numClasses=NUM_CLASSES, lr=1e-4, foreach=False):
        baseModel = densenet121(weights=None)
        freeze_as_the_tutorial(baseModel)
        self.model = FoodClassifier(baseModel, numClasses)
        self.model.forward = lambda x: self.model.classifier(self.model.baseModel(x))
        self.model.to(config.DEVICE, memory_format=torch.contiguous_format)
        self.lossFunc = nn.CrossEntropyLoss()
        self.opt = optim.Adam(self.model.parameters(), lr=lr, foreach=foreach)
        self.scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isCuda)

    def get_loader(self, rootDir, steps, bs, shuffle=True):
        normalize = transforms.Normalize(mean=config.MEAN, std=config.STD)
        transform = transforms.Compose([*steps, transforms.ToTensor(), normalize])
        ds = datasets.ImageFolder(rootDir, transform)
        return DataLoader(ds, bs, shuffle, num_workers=config.NUM_WORKERS)

    def draw_batch(self, bs):
        return torch.randn(image_shape(bs))

    def predict(self, x):
        with torch.autocast(config.DEVICE.type, enabled=isCuda):
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
        return correct / len(loader.sampler)


class Ours:
    """What train_distributed.py does; freeze as with ImageNet weights. dtype: of the heavy layers,
    if not the device's own, of all networks in this process; search: have cuDNN search for
    algorithms; wrap: parallelizes."""

    def __init__(
        self, numClasses=NUM_CLASSES, lr=1e-4, freeze=True, dtype=None, search=False, wrap=None
    ):
        baseModel = densenet121(weights=None)
        if freeze:
            freeze_batch_norm(baseModel)
        devices.keep_memory()
        if dtype:
            devices.compute_dtype = lambda *_: dtype
        self.model = FoodClassifier(baseModel, numClasses).to(config.DEVICE)
        if config.DEVICE.type == "cpu":
            self.model = CoreParallel(self.model)
        self.evalModel = self.model
        if wrap:
            self.model = wrap(self.model)
        torch.backends.cudnn.benchmark = search
        self.lossFunc = nn.CrossEntropyLoss()
        self.opt = optim.Adam(self.model.parameters(), lr=lr, fused=True)
        isFP16 = devices.compute_dtype(config.DEVICE) == torch.float16
        self.scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isFP16)

    def get_loader(self, rootDir, steps, bs, shuffle=True):
        transform = transforms.Compose([*steps, transforms.PILToTensor()])
        (_, loader) = get_dataloader(rootDir, transform, bs, shuffle)
        return loader

    def draw_batch(self, bs):
        return torch.randint(256, image_shape(bs), dtype=torch.uint8)

    def train(self, loader):
        train_distributed.train_one_epoch(self.model, loader, self.lossFunc, self.opt, self.scaler)

    def evaluate(self, loader):
        (_, accuracy, _, _) = train_distributed.evaluate(self.evalModel, loader, self.lossFunc)
        return accuracy


def two_replicas(model):
    return nn.DataParallel(model, device_ids=[0, 0])


def two_staying_replicas(model):
    return DataParallel(model, device_ids=[0, 0])


def one_process(model):
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


# the sides of the comparison, the first of which is 1; on CUDA each way to run there as well
SIDES = {
    "the recipe": (Recipe, {}),
    "ours": (Ours, {}),
    "ours, batch normalization trained": (Ours, {"freeze": False}),
}
CUDA_SIDES = {
    "the recipe, today's Adam": (Recipe, {"foreach": None}),
    "ours, bf16": (Ours, {"dtype": torch.bfloat16}),
    "ours, cuDNN searches": (Ours, {"search": True}),
    "ours, nn.DataParallel, two replicas": (Ours, {"wrap": two_replicas}),
    "ours, the same with threads that stay": (Ours, {"wrap": two_staying_replicas}),
    "ours, DistributedDataParallel, one process": (Ours, {"wrap": one_process}),
}


class Batches(list):
    """Batches that are on the device, as a loader."""

    pin_memory = False

    def __init__(self, x, count):
        y = torch.arange(len(x), device=config.DEVICE) % NUM_CLASSES
        super().__init__([(x.to(config.DEVICE), y)] * count)
        self.sampler = range(count * len(x))


def synchronize():
    if isCuda:
        torch.cuda.synchronize()


def get_peak(job):
    """Return the peak in GiB of the GPU's memory in a job, or of this process's so far after it."""
    if isCuda:
        torch.cuda.reset_peak_memory_stats()
        job()
        return torch.cuda.max_memory_allocated() / 2**30
    job()
    # not getrusage(), whose peak of a new process includes that of its parent
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def serve(side, options, connection, folder, bs, imageSize, count):
    """Run one side's jobs in this process: receive a name, send the seconds that the job took.

    Each side runs in its own process, because keep_memory() changes malloc for the whole process.
    """
    config.IMAGE_SIZE = imageSize
    # a spawned process would spawn the recipe's workers as well
    multiprocessing.set_start_method(workers.START_METHOD, force=True)
    worker = side(**options)
    host = worker.draw_batch(bs)
    memory = Batches(host, count)
    train = {}
    for numWorkers in (config.NUM_WORKERS, config.NUM_WORKERS // 2):
        config.NUM_WORKERS = numWorkers
        train[numWorkers] = worker.get_loader(folder / "training", augmentation(), bs)
    config.NUM_WORKERS = max(train)
    test = worker.get_loader(folder / "validation", resizing(), bs, shuffle=False)
    loader = train[config.NUM_WORKERS]
    jobs = {
        "training step": lambda: worker.train(memory),
        "evaluation": lambda: worker.evaluate(memory),
        "loader": lambda: deque(loader, maxlen=0),
        "loader, half as many workers": lambda: deque(min(train.items())[1], maxlen=0),
        "training from files": lambda: worker.train(loader),
        "validation from files": lambda: worker.evaluate(test),
        "copy of a batch to the GPU": lambda: host.to(config.DEVICE),
        "copy of a pinned batch": lambda: host.to(config.DEVICE, non_blocking=True),
    }
    with suppress(EOFError):
        while name := connection.recv():
            if name == "peak":
                connection.send(get_peak(jobs["training step"]))
                continue
            if name == "copy of a pinned batch":
                host = host.pin_memory()
            synchronize()
            start = time.perf_counter()
            jobs[name]()
            synchronize()
            connection.send(time.perf_counter() - start)
            if isCuda:
                # for the other sides
                torch.cuda.empty_cache()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def ask(connection, job):
    """Return the answer of the process behind connection: the seconds that the job took."""
    connection.send(job)
    return connection.recv()


def print_rows(job, names, times, images):
    """Print each side's images per second, and how many times as fast as the first it is."""
    for name, column in zip(names, zip(*times, strict=True), strict=True):
        ratios = [row[0] / seconds for row, seconds in zip(times, column, strict=True)]
        gain = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {job}: {name} | {images / statistics.median(column):.1f} | {gain} |", flush=True)


def count_held_out(images):
    """Return how many validation images belong to so many training images: one per class or more,
    as each class needs one."""
    return max(images // 3, NUM_CLASSES)


def link_images(imagePaths, count, rootDir):
    """Make class folders in rootDir with links to count images; the same again when too few."""
    for number in range(count):
        source = Path(imagePaths[number % len(imagePaths)]).resolve()
        folder = rootDir / CLASSES[number % NUM_CLASSES]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}{source.suffix}").symlink_to(source)


def keep_busy():
    """Use one core for ever."""
    while True:
        pass


def compare_speed(imagePaths, bs, images, rounds, folder):
    """Print the table of speed and memory."""
    count = 10 if isCuda else 2
    link_images(imagePaths, images, folder / "training")
    link_images(imagePaths, count_held_out(images), folder / "validation")
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name, (side, options) in {**SIDES, **(CUDA_SIDES if isCuda else {})}.items():
        (sides[name], there) = context.Pipe()
        args = (side, options, there, folder, bs, config.IMAGE_SIZE, count)
        context.Process(target=serve, args=args).start()
        # so that a side that dies ends this process as well
        there.close()

    def compare(job, images, *names, where=""):
        # the first round warms up
        times = [[ask(sides[name], job) for name in names] for _ in range(rounds + 1)]
        print_rows(job + where, names, times[1:], images)

    both = ("the recipe", "ours")
    try:
        for name in sides:
            # the first step searches, and its peak is not that of training
            ask(sides[name], "training step")
            print(f"| peak memory: {name} | {ask(sides[name], 'peak'):.2f} GiB | |", flush=True)
        compare("training step", count * bs, *sides)
        compare("evaluation", count * bs, *both)
        if not isCuda:
            # another program has a core to itself
            busy = context.Process(target=keep_busy, daemon=True)
            busy.start()
            compare("training step", count * bs, *sides, where=" beside a busy process")
            compare("evaluation", count * bs, *both, where=" beside a busy process")
            busy.kill()
        compare("loader", images, *both)
        compare("loader, half as many workers", images, *both)
        compare("training from files", images, *both)
        compare("validation from files", count_held_out(images), *both)
        if isCuda:
            compare("copy of a batch to the GPU", bs, "ours")
            compare("copy of a pinned batch", bs, "ours")
    finally:
        # which ends the other processes
        for connection in sides.values():
            connection.close()


def write_weights(path):
    """Write to path what stands for the ImageNet weights: random ones, with plausible statistics,
    as from frozen statistics of 0 and 1 the activations would grow without end."""
    torch.manual_seed(0)
    model = densenet121(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 64, 64))
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)


def compare_runs(imagePaths, bs, images, rounds, epochs, folder):
    """Print the seconds of whole runs of train_distributed.py, start and report included, with
    batch normalization frozen and trained; on a CPU as one process and as two."""
    heldOut = count_held_out(images)
    splits = {"training": images, "validation": heldOut, "evaluation": heldOut}
    for split, count in splits.items():
        link_images(imagePaths, count, folder / "dataset" / split)
    write_weights(folder / "torch/hub/checkpoints/densenet121-a639ec97.pth")
    env = {**os.environ, "TORCH_HOME": str(folder / "torch"), "PYTHONUNBUFFERED": "1"}
    flags = ["--epochs", str(epochs), "--image-size", str(config.IMAGE_SIZE)]

    def run(options, processes):
        launch = f"-m torch.distributed.run --standalone --nproc-per-node={processes}".split()
        batch = ["--local-batch-size", str(bs // processes), "--lr", str(1e-5 / processes)]
        command = [sys.executable, *(launch if processes > 1 else [])]
        command += [train_distributed.__file__, *flags, *batch, *options]
        start = time.perf_counter()
        log = subprocess.check_output(command, cwd=folder, env=env, text=True)
        seconds = time.perf_counter() - start
        print(next(line for line in log.splitlines() if "total time" in line), flush=True)
        return seconds

    for name, options in (("frozen", []), ("trained", ["--no-pretrained"])):
        counts = [1] if isCuda else [1, 2]
        times = [[run(options, processes) for processes in counts] for _ in range(rounds)]
        names = [f"processes: {processes}" for processes in counts]
        print_rows(f"whole run, batch normalization {name}", names, times, images * epochs)
        print(f"seconds of each: {times}", flush=True)


def compare_accuracy(folder, bs, seeds, epochs, lr):
    """Print the test accuracy of both sides, trained from random weights for each seed."""
    accuracies = {Recipe: [], Ours: []}
    config.CLASSES = os.listdir(folder / "training")
    for seed in seeds:
        for side, found in accuracies.items():
            config.SEED = seed
            torch.manual_seed(seed)
            options = {} if side is Recipe else {"freeze": False}
            worker = side(len(config.CLASSES), lr, **options)
            train = worker.get_loader(folder / "training", augmentation(), bs)
            test = worker.get_loader(folder / "evaluation", resizing(), bs, shuffle=False)
            schedule = optim.lr_scheduler.StepLR(worker.opt, max(1, epochs - 2), 0.1)
            for _ in range(epochs):
                worker.train(train)
                schedule.step()
            found.append(worker.evaluate(test))
    for side, found in accuracies.items():
        each = ", ".join(f"{accuracy:.4f}" for accuracy in found)
        print(f"| test accuracy: {side.__name__} | {statistics.mean(found):.4f} | {each} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=config.IMAGE_SIZE)
    parser.add_argument("--batch-size", type=int, default=config.LOCAL_BATCH_SIZE)
    # as many as Food-11 has, on a GPU
    images = 9866 if isCuda else 128
    parser.add_argument("--images", type=int, default=images, help="in the training set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", action="store_true", help="time whole runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--epochs", type=int, default=2, help="of a whole run or for the accuracy")
    parser.add_argument("--lr", type=float, default=0.001, help="for the accuracy")
    args = parser.parse_args()
    config.IMAGE_SIZE = args.image_size
    device = torch.cuda.get_device_name() if isCuda else config.DEVICE
    print(
        f"{device}, {devices.compute_dtype(config.DEVICE)}; {config.NUM_WORKERS} workers; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}; "
        f"{args.image_size} px, batch {args.batch_size}, {args.rounds} rounds\n",
        flush=True,
    )
    header = "mean | each seed" if args.seeds else "images/s | times the first"
    print(f"| | {header} |\n| --- | --- | --- |", flush=True)
    if args.seeds:
        compare_accuracy(args.folder, args.batch_size, args.seeds, args.epochs, args.lr)
        return
    imagePaths = sorted(paths.list_images(args.folder))
    with tempfile.TemporaryDirectory() as folder:
        options = (args.batch_size, args.images, args.rounds)
        if args.runs:
            compare_runs(imagePaths, *options, args.epochs, Path(folder))
        else:
            compare_speed(imagePaths, *options, Path(folder))


if __name__ == "__main__":
    main()
