"""Train a little on dataset/ without augmentation, in fp32, and save what comes of it to argv[1].

For test_processes.py, which runs it in one process and in several. argv[2]: freeze or train.
"""

import sys

import torch
from helpers import TinyNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader
from pyimagesearch.food_classifier import FoodClassifier, freeze_batch_norm
from pyimagesearch.support import devices, processes, script
from pyimagesearch.support.weights import save_state
from train_distributed import evaluate, train_one_epoch


def main():
    (config.DEVICE, config.IMAGE_SIZE, config.NUM_WORKERS) = (torch.device("cpu"), 32, 2)
    devices.compute_dtype = lambda *_: torch.float32
    processes.join_processes()
    # processes that start different take the weights and statistics of rank 0
    torch.manual_seed(processes.get_rank())
    baseModel = TinyNet()
    torch.nn.init.uniform_(baseModel.norm.running_mean)
    if sys.argv[2] == "freeze":
        freeze_batch_norm(baseModel)
    transform = eval_transform(config.IMAGE_SIZE)
    (ds, trainLoader) = get_dataloader(config.TRAIN, transform, bs=12)
    (_, valLoader) = get_dataloader(config.VAL, transform, bs=6, shuffle=False)
    model = plain = FoodClassifier(baseModel, len(ds.classes))
    if processes.get_world_size() > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # plain gradient descent shows a difference in gradients as it is; Adam would enlarge it
    opt = torch.optim.SGD(plain.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    lossFunc = nn.CrossEntropyLoss()
    outcome = {"train": [], "val": [evaluate(plain, valLoader, lossFunc)]}
    for _ in range(2):
        outcome["train"].append(train_one_epoch(model, trainLoader, lossFunc, opt, scaler))
        outcome["val"].append(evaluate(plain, valLoader, lossFunc))
    outcome["model"] = plain.state_dict()
    save_state(outcome, sys.argv[1])


if __name__ == "__main__":
    script.run(main, advice="")
