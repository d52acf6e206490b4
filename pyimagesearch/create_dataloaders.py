"""The transform that training and inference share, and the data loaders."""

# import the necessary packages
import math
from functools import partial

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from . import config
from .support import processes, workers
from .support.errors import UserError
from .support.images import is_image, is_passed_over, list_sizes, load_image
from .support.labels import normalize_name
from .support.seeding import EpochSampler, seeded
from .support.weights import describe_training


def eval_transform(imageSize):
    """Return the preprocessing of all but training images: PIL image to uint8 (3, H, W).

    imageSize: side of the output in pixels. The network itself normalizes, see Normalize.
    """
    return transforms.Compose(
        [
            transforms.Resize((imageSize, imageSize)),
            transforms.PILToTensor(),
        ]
    )


def get_dataloader(rootDir, transforms, bs, shuffle=True, trainedOn=None, numWorkers=None):
    """Return (dataset, loader) over the class folders of rootDir.

    The dataset is a torchvision ImageFolder; the loader yields images (N, 3, H, W), as transforms
    make them, and int64 class indices (N,). transforms: callable from a PIL image to a tensor
    (3, H, W), uint8 or normalized float. bs: images per batch of all processes together. shuffle:
    in an order and with an augmentation that depend on SEED, epoch and image alone, another one in
    each pass; else in the order of the paths.
    trainedOn: what the network was trained on, if not on what config.py says; see read_weights().
    numWorkers: processes that load images (default: NUM_WORKERS, shared by the processes of a
    machine). On a CPU, where they are forked, those of a loader that does not shuffle start here:
    later changes of its dataset do not reach them. Raises UserError if the class folders are not
    those of the network, or if the images are not the same for all processes.
    """
    source = "the weights have"
    if trainedOn is None:
        source = "config.py has"
        trainedOn = describe_training()
    # create a dataset, and use it to create a data loader
    imageLoader = partial(load_image, imageSize=trainedOn.imageSize)
    isValid = partial(is_image, rootDir=rootDir)
    ds = SeededImageFolder(rootDir, transforms, loader=imageLoader, is_valid_file=isValid)
    (rank, worldSize) = (processes.get_rank(), processes.get_world_size())
    if worldSize > 1:
        processes.check_same(rootDir, list_sizes(rootDir, [path for path, _ in ds.samples]))
    check_classes(ds, trainedOn.classes, source)
    if shuffle:
        sampler = EpochSampler(ds, worldSize, rank, config.SEED)
    else:
        # every n-th image; DistributedSampler would repeat images where they do not divide evenly
        # (a list, which start_workers() empties for a moment)
        sampler = list(range(rank, len(ds), worldSize))
    bs = math.ceil(bs / worldSize)
    if numWorkers is None:
        numWorkers = workers.count_workers(math.ceil(len(sampler) / bs))
    loader = DataLoader(
        ds,
        batch_size=bs,
        sampler=sampler,
        num_workers=numWorkers,
        worker_init_fn=workers.end_without_parent,
        # keep the workers between epochs: forking new ones takes 2 to 4 s on a CPU
        persistent_workers=numWorkers > 0,
        multiprocessing_context=workers.START_METHOD if numWorkers else None,
        # a separate generator, so that starting workers uses no global random numbers
        generator=torch.Generator(),
        # pinned memory speeds up the copy to a CUDA device; CUDA only
        pin_memory=torch.device(config.DEVICE).type == "cuda",
    )
    # before training fills the memory of this process, which on a GPU it does not
    if torch.device(config.DEVICE).type == "cpu" and numWorkers and not shuffle:
        workers.start_workers(loader)
    return (ds, loader)


def check_classes(ds, classes, source):
    """Raise UserError unless an ImageFolder has these classes: one that is missing from a split
    would shift every label after it. source: what has them, as "config.py has"."""
    found = [normalize_name(name) for name in ds.classes]
    expected = [normalize_name(name) for name in classes]
    if found != expected:
        text = f"{ds.root} has the classes {', '.join(ds.classes)}, but {source}"
        advice = "prepare into another BASE_PATH, or take other weights"
        raise UserError(f"{text} {', '.join(classes)}; {advice}")


class SeededImageFolder(datasets.ImageFolder):
    """An ImageFolder whose item (seed, i) is image i, augmented by that seed alone."""

    def find_classes(self, directory):
        """Return the class folders under directory and their indices, as an ImageFolder does, but
        take no hidden or system folder for a class."""
        (names, _) = super().find_classes(directory)
        classes = [name for name in names if not is_passed_over(name)]
        return classes, {name: index for index, name in enumerate(classes)}

    def __getitem__(self, item):
        if not isinstance(item, tuple):
            return super().__getitem__(item)
        (seed, index) = item
        with seeded(seed):
            return super().__getitem__(index)


def mean_over_images(totalLoss, correct, loader):
    """Return mean loss and accuracy over the images of a loader, in all processes.

    totalLoss, correct: sums over the images of this process, as numbers or tensors of one.
    """
    sums = processes.all_gather((float(totalLoss), float(correct), len(loader.sampler)))
    totalLoss = sum(losses for losses, _, _ in sums)
    correct = sum(hits for _, hits, _ in sums)
    numImages = sum(count for _, _, count in sums)
    return totalLoss / numImages, correct / numImages


def gather_in_order(batches):
    """Return as one list, in the order of the dataset, a number for each image of a loader that
    does not shuffle. batches: tensors (N,) of this process, which had every n-th image."""
    numbers = []
    for batch in batches:
        numbers += batch.tolist()
    shares = processes.all_gather(numbers)
    ordered = [None] * sum(len(share) for share in shares)
    # of n processes, process r had the images r, r + n, r + 2n, ...
    for rank, share in enumerate(shares):
        ordered[rank :: len(shares)] = share
    return ordered
