"""Train a little on dataset/ without augmentation, in fp32, and save what comes of it to argv[1].

For test_devices.py, which runs it plainly and under torchrun and compares. argv[2]: freeze or not.
"""

import sys

from pyimagesearch import checkpoint, config, create_dataloaders, devices
from pyimagesearch.cli import run
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm
from train_distributed import evaluate, train_one_epoch

import torch
from conftest import TinyNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main():
    (config.IMAGE_SIZE, config.NUM_WORKERS) = (32, 2)
    devices.join_processes()
    devices.compute_dtype = lambda: torch.float32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    transform = create_dataloaders.test_transform()
    (ds, trainLoader) = create_dataloaders.get_dataloader(config.TRAIN, transform, bs=12)
    (_, valLoader) = create_dataloaders.get_dataloader(config.VAL, transform, 6, shuffle=False)
    baseModel = TinyNet()
    if sys.argv[2] == "freeze":
        freeze_batch_norm(baseModel)
    model = plain = FoodClassifier(baseModel, len(ds.classes)).to(config.DEVICE)
    if devices.get_world_size() > 1:
        model = DistributedDataParallel(model, **devices.DDP_OPTIONS)
    # plain gradient descent shows a difference in gradients as it is; Adam would enlarge it
    opt = torch.optim.SGD(plain.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    lossFunc = nn.CrossEntropyLoss()
    outcome = {"train": [], "val": [evaluate(model, valLoader, lossFunc)]}
    for _ in range(2):
        outcome["train"].append(train_one_epoch(model, trainLoader, lossFunc, opt, scaler))
        outcome["val"].append(evaluate(model, valLoader, lossFunc))
    outcome["model"] = plain.state_dict()
    if devices.get_rank() == 0:
        checkpoint.save_state(outcome, sys.argv[1])


if __name__ == "__main__":
    run(main)
