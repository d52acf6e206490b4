"""FoodClassifier, its base network, and the weights that know what they were trained on."""

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import DenseNet121_Weights, densenet121

from . import config, devices
from .cli import check_config, set_config
from .create_dataloaders import get_classes, test_transform


class FoodClassifier(nn.Module):
    """A base network with a linear classifier on top."""

    def __init__(self, baseModel, numClasses):
        """Take over baseModel, a network whose last layer is a Linear named classifier."""
        super().__init__()
        # initialize the base model and the classification layer
        self.baseModel = baseModel
        self.classifier = nn.Linear(baseModel.classifier.in_features, numClasses)
        # the base model now outputs features
        self.baseModel.classifier = nn.Identity()
        # with the channels last, convolutions need not reorder their input
        self.isChannelsLast = torch.device(config.DEVICE).type in ("cpu", "cuda")
        if self.isChannelsLast:
            self.to(memory_format=torch.channels_last)
        # the heavy layers compute in half precision where the device is faster so
        dtype = devices.compute_dtype()
        self.autocast = {"dtype": dtype, "enabled": dtype != torch.float32}

    def forward(self, x):
        """Return float32 logits (N, numClasses) of float images x (N, 3, H, W), normalized."""
        if self.isChannelsLast:
            x = x.to(memory_format=torch.channels_last)
        # inside forward: each DataParallel replica has its own thread
        with torch.autocast(x.device.type, **self.autocast):
            features = self.baseModel(x)
            logits = self.classifier(features)
        return logits.float()


def load_densenet(pretrained):
    """Return DenseNet121. Another network whose last layer is named classifier is an edit here."""
    return densenet121(weights=DenseNet121_Weights.IMAGENET1K_V1 if pretrained else None)


def freeze_batch_norm(model):
    """Freeze every batch normalization of model: no gradients, statistics as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the module keeps its state; only its forward and backward pass change
            module.__class__ = FrozenBatchNorm2d
            module.requires_grad_(False)
            module.eval()


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization whose weight, bias and statistics are constants, in training too."""

    # scale and shift (C, 1, 1), in the dtype of the input
    constants = None

    def forward(self, x):
        """Return x (N, C, H, W) normalized. For x * scale + shift autograd keeps no input, which is
        nearly half of what DenseNet121 keeps; torchvision's ops/misc.py does the same."""
        if not x.requires_grad:
            return super().forward(x)
        # once an epoch, as a GPU would wait for the CPU to start these small operations
        if self.constants is None or self.constants[0].dtype != x.dtype:
            scale = (self.weight * (self.running_var + self.eps).rsqrt()).to(x.dtype)
            # from the scale as half precision rounds it, which keeps the error of the logits small
            shift = (self.bias - self.running_mean * scale).to(x.dtype)
            self.constants = (scale[:, None, None], shift[:, None, None])
        (scale, shift) = self.constants
        return torch.addcmul(shift, x, scale)

    def train(self, mode=True):
        """Stay in evaluation mode; compute the constants anew, as weights may have been loaded."""
        self.constants = None
        return super().train(False)


def read_weights(path):
    """Return the state dict in a weights file, and write what it was trained on into config."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    # nn.DataParallel and DistributedDataParallel put it before each name
    consume_prefix_in_state_dict_if_present(state, "module.")
    facts = getattr(state, "_metadata", {}).get("", {})
    if "classes" not in facts:
        print(f"[INFO] {path} has no class names: they are taken from CLASSES in config.py...")
    elif facts["classes"] != get_classes():
        set_config(f"taken from {path}", {"CLASSES": facts["classes"]})
    names = {"IMAGE_SIZE": "imageSize", "MEAN": "mean", "STD": "std"}
    settings = {name: facts.get(fact, getattr(config, name)) for name, fact in names.items()}
    set_config(f"taken from {path}", settings)
    check_config()
    return state


def load_classifier(path):
    """Return the trained FoodClassifier of a weights file, in evaluation mode on config.DEVICE, its
    class names, and the transform from a PIL image to its input; see read_weights."""
    state = read_weights(path)
    model = FoodClassifier(load_densenet(pretrained=False), len(get_classes()))
    model.load_state_dict(state)
    return model.to(config.DEVICE).eval(), get_classes(), test_transform()
