"""Run train_distributed.py with TinyNet on the drawn images. TEST_DEVICE: where; TEST_BACKEND: how
its processes join: over gloo, all of them share GPU 0."""

import os

import train_distributed
from pyimagesearch import cli, config, devices, food_classifier

import torch
from helpers import CLASSES, TinyNet
from torch import distributed

if __name__ == "__main__":
    config.DEVICE = torch.device(os.environ["TEST_DEVICE"])
    config.CLASSES = CLASSES
    food_classifier.densenet121 = lambda weights: TinyNet()
    devices.compute_dtype = lambda: torch.float32
    if os.environ.get("TEST_BACKEND") == "gloo":
        os.environ["LOCAL_RANK"] = "0"
        join = distributed.init_process_group
        distributed.init_process_group = lambda backend: join("gloo")
    cli.run(train_distributed.main, "")
