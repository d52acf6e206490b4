# import the necessary packages
import os
from argparse import ArgumentTypeError

import torch
from torch import nn
from torch.autograd import Function
from torch.nn.functional import batch_norm
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import DenseNet121_Weights, densenet121

from . import config, devices
from .checkpoint import load_state
from .cli import UserError, lacks_memory, read_colour
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


def load_classifier(path):
    """Return the trained FoodClassifier of a weights file, in evaluation mode on config.DEVICE, its
    class names, and the transform from a PIL image to its input; see read_weights."""
    (state, classes) = read_weights(path)
    model = FoodClassifier(load_densenet(pretrained=False), len(classes))
    model.load_state_dict(state)
    return model.to(config.DEVICE).eval(), classes, test_transform()


def read_weights(path):
    """Return the state dict in a weights file and its class names; set config's IMAGE_SIZE, MEAN
    and STD to what it was trained with. The tutorial's own file takes all of these from config.
    Raises UserError if the file holds something else."""
    state = load_state(path)
    try:
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}, not a state dict")
        # nn.DataParallel and DistributedDataParallel put it before each name
        consume_prefix_in_state_dict_if_present(state, "module.")
        facts = getattr(state, "_metadata", {}).get("", {})
        classes = facts.get("classes", get_classes())
        numClasses = len(state["classifier.bias"])
        if numClasses != len(classes):
            raise UserError(
                f"{path}: the weights were trained on {numClasses} classes without their names, "
                f"and CLASSES in config.py has {list_names(classes)}; they must match"
            )
        # on the meta device a network has shapes and no numbers
        with torch.device("meta"):
            model = FoodClassifier(load_densenet(pretrained=False), numClasses)
        odd = {(key, tensor.shape) for key, tensor in model.state_dict().items()}
        odd ^= {(key, tensor.shape) for key, tensor in state.items()}
        if odd:
            raise TypeError(min(odd)[0])
        "".join(classes)
        imageSize = int(facts.get("imageSize", config.IMAGE_SIZE))
        mean = read_colour(facts.get("mean", config.MEAN))
        std = read_colour(facts.get("std", config.STD))
    except (ArgumentTypeError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not the weights of a FoodClassifier over DenseNet121 ({error}); "
            "train_distributed.py writes such weights"
        ) from error
    (config.IMAGE_SIZE, config.MEAN, config.STD) = (imageSize, mean, std)
    return state, classes


def check_classes(path, classes, ds):
    """Raise UserError unless the dataset ds has the classes of the weights at path."""
    if ds.classes != classes:
        raise UserError(
            f"{path}: the weights were trained on {list_names(classes)}; {ds.root} has "
            f"{list_names(ds.classes)}; use other weights, or prepare the data set of these"
        )


def list_names(classes):
    """Return as text the number of classes and their names."""
    more = ", ..." if len(classes) > 20 else ""
    return f"{len(classes)} classes: {', '.join(classes[:20])}{more}"


def load_densenet(pretrained):
    """Return DenseNet121; raise UserError if ImageNet's weights cannot be downloaded or read."""
    # under torchrun DistributedDataParallel gives the main process's weights to all
    if not pretrained or devices.get_rank() > 0:
        return densenet121(weights=None)
    weights = DenseNet121_Weights.IMAGENET1K_V1
    try:
        return densenet121(weights=weights)
    # no network, disk full, a corrupt file: each raises something else
    except Exception as error:
        if lacks_memory(error):
            raise
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the ImageNet weights cannot be downloaded or read ({reason}); place {weights.url} "
            f"in {folder} by hand, or start from random weights with --no-pretrained"
        ) from error


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

    def forward(self, x):
        """Return x (N, C, H, W) normalized."""
        statistics = (self.running_mean, self.running_var)
        return FixedNorm.apply(x, *statistics, self.weight, self.bias, self.eps)

    def train(self, mode=True):
        """Stay in evaluation mode."""
        return super().train(False)


class FixedNorm(Function):
    """Batch normalization by constants. PyTorch's own keeps its input, for its weight's gradient,
    even where that is frozen, nearly half of what DenseNet121 keeps for its backward pass."""

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):
        ctx.save_for_backward(var, weight)
        ctx.eps = eps
        return batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, grad):
        (var, weight) = ctx.saved_tensors
        # (x - mean) * weight / sqrt(var + eps) + bias has the same derivative without mean and bias
        zeros = var.new_zeros(len(var))
        return batch_norm(grad, zeros, var, weight, zeros, eps=ctx.eps), *[None] * 5
