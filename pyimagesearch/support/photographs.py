"""Photographs of the user's own, to be classified."""

import glob
import os
from itertools import islice
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from . import workers
from .errors import UserError
from .images import EXTENSIONS, find_images
from .outputs import is_output, output_paths
from .progress import progress


def find_photographs(names):
    """Return the paths of the photographs in the given files and folders. Pictures that the scripts
    drew are left out, unless they are given by name."""
    imagePaths = []
    for name in names:
        # Windows leaves a star to the script
        found = [name] if os.path.exists(name) else glob.glob(name)
        for path in found or [name]:
            if os.path.isdir(path):
                imagePaths += find_in_folder(path)
            else:
                imagePaths.append(os.path.normpath(path))
    # a photograph may be named twice, alone and in its folder
    return list(dict.fromkeys(imagePaths))


def find_in_folder(folder):
    """Return the paths of the photographs in a folder; print what else is there."""
    products = {os.path.basename(path) for path in output_paths()}
    photographs = []
    drawn = []
    for path in find_images(folder):
        # is_output() asks the disk, which is slow for thousands of photographs
        isDrawn = os.path.basename(path) in products and is_output(path)
        place = drawn if isDrawn else photographs
        place.append(os.path.normpath(path))
    if drawn:
        print(f"[INFO] passed over what the scripts drew: {', '.join(drawn)}...")
    if not photographs:
        raise UserError(f"{folder}: no image in this folder ({' '.join(EXTENSIONS)})")
    return photographs


class Batch(NamedTuple):
    """Photographs that are classified together: their paths, their inputs (N, 3, H, W) or None
    where there are none, and what is wrong with each one that cannot be read."""

    paths: list
    images: torch.Tensor | None
    errors: list


class Photographs(Dataset):
    """Items (path, input of the network, what is wrong), of which one of the last two is None."""

    def __init__(self, imagePaths, transform):
        self.imagePaths = imagePaths
        self.transform = transform

    def __len__(self):
        return len(self.imagePaths)

    def __getitem__(self, index):
        path = self.imagePaths[index]
        try:
            return path, self.transform(path), None
        except (OSError, UserError) as error:
            return path, None, str(error)


def collate(items):
    """Return the items of Photographs as a Batch."""
    paths = [path for path, image, _ in items if image is not None]
    images = [image for _, image, _ in items if image is not None]
    errors = [error for _, _, error in items if error is not None]
    return Batch(paths, torch.stack(images) if images else None, errors)


def join(parts):
    """Return several Batches as one."""
    paths = sum((part.paths for part in parts), [])
    images = [part.images for part in parts if part.images is not None]
    errors = sum((part.errors for part in parts), [])
    return Batch(paths, torch.cat(images) if images else None, errors)


def load_batches(imagePaths, transform, batchSize):
    """Yield Batches of at most batchSize photographs, in the order of their paths, read by worker
    processes. transform: of load_classifier()."""
    # starting a worker takes as long as reading some photographs
    numWorkers = workers.count_workers(len(imagePaths) // 8)
    # each worker reads a part of each batch, which would otherwise wait for one of them
    numParts = min(max(numWorkers, 1), batchSize)
    loader = DataLoader(
        Photographs(imagePaths, transform),
        batch_size=batchSize // numParts,
        collate_fn=collate,
        num_workers=numWorkers,
        worker_init_fn=workers.end_without_parent,
        multiprocessing_context=workers.START_METHOD if numWorkers else None,
    )
    parts = iter(loader)
    with progress(None, "classifying", "photographs", total=len(imagePaths), leave=False) as bar:
        while group := list(islice(parts, numParts)):
            batch = join(group)
            yield batch
            bar.update(len(batch.paths) + len(batch.errors))
