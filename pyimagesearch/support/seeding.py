"""Random numbers that follow from SEED, epoch and image: splits, order and augmentation."""

import hashlib
import random
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DistributedSampler


def hash_number(*values):
    """Return a number from 0 to 2**32 - 1 that follows from values, the same on any machine.
    Values that differ in anything give numbers that have nothing to do with each other."""
    text = " ".join(str(value) for value in values)
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big")


class EpochSampler(DistributedSampler):
    """A DistributedSampler of (seed of the augmentation, index) whose epoch advances at each pass.

    set_epoch() says which epoch the next pass is, as in any DistributedSampler.
    """

    def __init__(self, dataset, worldSize, rank, seed):
        # DistributedSampler adds seed and epoch: neighbouring seeds would have orders in common
        super().__init__(dataset, worldSize, rank, seed=hash_number("order", seed))

    def __iter__(self):
        epoch = self.epoch
        indices = super().__iter__()
        self.set_epoch(epoch + 1)
        for index in indices:
            yield hash_number(self.seed, epoch, index), index


@contextmanager
def seeded(seed):
    """Seed the generators that augmentations draw from, torch's, Python's and numpy's, within the
    block; after it they are as they were. seed: from 0 to 2**32 - 1."""
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    # not torch.manual_seed(), which would seed the GPUs as well
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
