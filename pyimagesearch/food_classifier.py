# import the necessary packages
from torch import nn

from . import devices


def freeze_batch_norm(model):
    """Freeze every batch normalization of model: no gradients, statistics as they are.

    A FoodClassifier keeps such layers frozen through every later train() call.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            module.eval()


class FoodClassifier(nn.Module):
    """A base network, and on its features one linear layer that tells the classes apart."""

    def __init__(self, baseModel, numClasses):
        """Take over baseModel, a network whose last layer is a Linear named classifier."""
        super().__init__()
        self.baseModel = baseModel
        self.classifier = nn.Linear(baseModel.classifier.in_features, numClasses)
        # the base model now ends in its features
        self.baseModel.classifier = nn.Identity()

    def forward(self, x):
        """Return float32 logits (N, numClasses) of float images x (N, 3, H, W), normalized."""
        # here and not around the call, as DataParallel runs each replica in a thread of its own
        with devices.autocast(x.device):
            features = self.baseModel(x)
            logits = self.classifier(features)
        return logits.float()

    def train(self, mode=True):
        """Switch to training (or evaluation) mode; frozen batch normalization stays frozen."""
        super().train(mode)
        for module in self.baseModel.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self
