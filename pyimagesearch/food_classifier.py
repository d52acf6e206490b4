# import the necessary packages
import os

import torch
from torch import nn
from torch.autograd import Function
from torch.nn.functional import batch_norm
from torchvision.models import DenseNet121_Weights, densenet121

from . import config, devices
from .cli import UserError, is_colour, lacks_memory
from .create_dataloaders import get_classes


class FoodClassifier(nn.Module):
    """A base network, and on its features one linear layer that tells the classes apart."""

    def __init__(self, baseModel, numClasses):
        """Take over baseModel, a network whose last layer is a Linear named classifier."""
        super().__init__()
        # initialize the base model and the classification layer
        self.baseModel = baseModel
        self.classifier = nn.Linear(baseModel.classifier.in_features, numClasses)
        # the base model now ends in its features
        self.baseModel.classifier = nn.Identity()

    def forward(self, x):
        """Return float32 logits (N, numClasses) of float images x (N, 3, H, W), normalized."""
        x = x.to(memory_format=devices.memory_format(x.device))
        # here and not around the call, as DataParallel runs each replica in a thread of its own
        with devices.autocast(x.device):
            features = self.baseModel(x)
            logits = self.classifier(features)
        return logits.float()


def label_weights(model, classes):
    """Store what model is trained on in the metadata of its state dict.

    These are the class names in the order of the logits, and config's IMAGE_SIZE, MEAN and STD; a
    file of the state dict keeps them, and load_state_dict() does not see them.
    """
    facts = {
        "classes": list(classes),
        "imageSize": config.IMAGE_SIZE,
        "mean": list(config.MEAN),
        "std": list(config.STD),
    }

    def add_facts(module, stateDict, prefix, localMetadata):
        localMetadata.update(facts)

    model.register_state_dict_post_hook(add_facts)


def read_label(state):
    """Return what label_weights() stored in a state dict: (classes, imageSize, mean, std).

    A state dict without them gets those of config. Raises TypeError if they are something else.
    """
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}, and no state dict")
    facts = getattr(state, "_metadata", {}).get("", {})
    classes = facts.get("classes", get_classes())
    imageSize = facts.get("imageSize", config.IMAGE_SIZE)
    (mean, std) = (facts.get("mean", config.MEAN), facts.get("std", config.STD))
    areNames = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not (areNames and isinstance(imageSize, int) and is_colour(mean) and is_colour(std)):
        raise TypeError("its metadata is not that of a FoodClassifier")
    return classes, imageSize, mean, std


def load_densenet(pretrained):
    """Return DenseNet121 with the ImageNet weights, or with random ones.

    Raises UserError if the ImageNet weights can neither be read nor downloaded.
    """
    if not pretrained:
        return densenet121(weights=None)
    weights = DenseNet121_Weights.IMAGENET1K_V1
    try:
        return densenet121(weights=weights)
    # no network, no room, a corrupt file: each raises something else
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
        return FixedNorm.apply(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )

    def train(self, mode=True):
        """Stay in evaluation mode."""
        return super().train(False)


class FixedNorm(Function):
    """Batch normalization by constants, whose backward pass needs no more than the gradient.

    PyTorch's own keeps its input, for the gradient of its weight, even where that is frozen: nearly
    half of all that DenseNet121 keeps for its backward pass.
    """

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):
        ctx.save_for_backward(var, weight)
        ctx.eps = eps
        return batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, grad):
        (var, weight) = ctx.saved_tensors
        # the derivative of (x - mean) * weight / sqrt(var + eps) + bias is the same without
        # mean and bias
        zeros = var.new_zeros(len(var))
        return batch_norm(grad, zeros, var, weight, zeros, eps=ctx.eps), *[None] * 5
