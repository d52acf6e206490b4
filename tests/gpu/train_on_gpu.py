"""Run train_distributed.py with TinyNet on the drawn images. TEST_DEVICE: where; TEST_BACKEND: how
its processes join: over gloo, all of them share GPU 0."""

import os

import torch
from helpers import CLASSES, TinyNet
from torch import distributed

import train_distributed
from pyimagesearch import config, food_classifier
from pyimagesearch.support import devices, script

if __name__ == "__main__":
    config.DEVICE = torch.device(os.environ["TEST_DEVICE"])
    config.CLASSES = CLASSES
    food_classifier.densenet121 = lambda weights: TinyNet()
    devices.compute_dtype = lambda *_: torch.float32
    # which would read config.py anew
    script.reload = lambda module: None
    if os.environ.get("TEST_BACKEND") == "gloo":
        os.environ["LOCAL_RANK"] = "0"
        join = distributed.init_process_group
        distributed.init_process_group = lambda backend: join("gloo")
    script.run(train_distributed.main, advice="")
