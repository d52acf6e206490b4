# import the necessary packages
from torch import nn
from torch.autograd import Function
from torch.nn.functional import batch_norm

from . import devices


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


def freeze_batch_norm(model):
    """Freeze every batch normalization of model: no gradients, statistics as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the same module with the same state, that computes in another way
            module.__class__ = FrozenBatchNorm2d
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
