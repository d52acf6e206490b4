"""FoodClassifier, its base network, and how a trained one is loaded."""

# import the necessary packages
from functools import partial

import torch
from torch import distributed, nn
from torchvision import transforms
from torchvision.models import DenseNet121_Weights, densenet121

from . import config
from .create_dataloaders import eval_transform
from .support import devices, processes
from .support.images import load_image
from .support.weights import describe_training, explain_failed_download, read_weights


class FoodClassifier(nn.Module):
    """A base network with a linear classifier on top, behind the normalization of its input."""

    def __init__(self, baseModel, numClasses, trainedOn=None):
        """Take over baseModel, a network whose last layer is a Linear named classifier.

        trainedOn: what it was trained on, if not on what config.py says; see read_weights().
        """
        super().__init__()
        if trainedOn is None:
            trainedOn = describe_training()
        # "auto", a dtype or its name
        self.precision = config.PRECISION
        self.normalize = Normalize(trainedOn.mean, trainedOn.std)
        # initialize the base model and the classification layer
        self.baseModel = baseModel
        self.classifier = nn.Linear(baseModel.classifier.in_features, numClasses)
        # the base model now outputs features
        self.baseModel.classifier = nn.Identity()
        # with the channels last, convolutions need not reorder their input; Apple's GPU would
        # train wrongly
        if torch.device(config.DEVICE).type != "mps":
            self.to(memory_format=torch.channels_last)

    @property
    def dtype(self):
        """The dtype of the heavy layers, which may follow from the device of the network."""
        return devices.compute_dtype(self.classifier.weight.device, self.precision)

    def forward(self, x):
        """Return float32 logits (N, numClasses) of images x (N, 3, H, W): uint8 as a loader yields
        them, or float that is normalized already."""
        if x.device.type != "mps":
            x = x.to(memory_format=torch.channels_last)
        x = self.normalize(x)
        # the heavy layers compute in 16 bits where the device is faster so; inside forward, as
        # each replica of nn.DataParallel has a thread of its own
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            features = self.baseModel(x)
            logits = self.classifier(features)
        return logits.float()


class Normalize(nn.Module):
    """The first step of the network: it makes normalized floats of bytes on the device, as bytes
    are a quarter of what has to be sent there."""

    def __init__(self, mean, std):
        """mean, std: per RGB channel, on a scale from 0 to 1."""
        super().__init__()
        # not in the state dict, which has the tutorial's names: save_weights() adds its metadata
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x):
        """Return images x (N, 3, H, W) as ToTensor() and Normalize() would; float ones as they
        are."""
        if x.dtype != torch.uint8:
            return x
        return (x / 255 - self.mean) / self.std


def load_densenet(pretrained):
    """Return DenseNet121, with the ImageNet weights if pretrained is true. Another DenseNet is an
    edit here; no other family of torchvision has a Linear named classifier."""
    # rank 0 alone downloads: DistributedDataParallel sends its weights to the other processes
    isDownloaded = pretrained and processes.get_rank() == 0
    weights = DenseNet121_Weights.IMAGENET1K_V1 if isDownloaded else None
    with explain_failed_download(DenseNet121_Weights.IMAGENET1K_V1.url):
        return densenet121(weights=weights)


def freeze_batch_norm(model):
    """Replace every batch normalization inside model by a frozen one: no gradients, and statistics
    that stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm2d(child))


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization whose weight, bias and statistics are constants, in training too."""

    def __init__(self, norm):
        """Take over the parameters and statistics of norm, a BatchNorm2d."""
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.requires_grad_(False)
        # scale and shift (C, 1, 1), in the dtype of the input
        self.constants = None
        self.eval()

    def forward(self, x):
        """Return x (N, C, H, W) normalized. For x * scale + shift autograd keeps no input, which is
        nearly half of what DenseNet121 keeps; torchvision's ops/misc.py does the same."""
        if not x.requires_grad:
            return super().forward(x)
        # once an epoch (at each step under DataParallel), as a GPU would wait for the CPU to start
        # these small operations
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


def sync_batch_norm(model):
    """Give all processes rank 0's statistics of the batch normalization that trains, so that all
    evaluate the network that rank 0 saves."""
    if processes.get_world_size() == 1:
        return
    for module in model.modules():
        # a frozen one is never in training mode
        if isinstance(module, nn.BatchNorm2d) and module.training:
            for buffer in module.buffers(recurse=False):
                distributed.broadcast(buffer, src=0)


def load_trained(path):
    """Return (model, TrainedOn) of the weights file at path: a FoodClassifier on DEVICE, in
    evaluation mode, and what it was trained on."""
    (state, trainedOn) = read_weights(path)
    model = FoodClassifier(load_densenet(pretrained=False), len(trainedOn.classes), trainedOn)
    model.load_state_dict(state)
    return model.to(config.DEVICE).eval(), trainedOn


def load_classifier(path, precision=None):
    """Return (model, classes, transform) of the weights file at path.

    model: a FoodClassifier in evaluation mode, on DEVICE. classes: the class names in the order of
    its logits. transform: from the path of a photograph to the model's input, uint8 (3, H, W),
    which the model normalizes. All follow from the file alone; what it does not say, see
    read_weights(), is taken from config.py. precision: as PRECISION in config.py, its default;
    "float32" for other programs that know no 16 bits.
    """
    (model, trainedOn) = load_trained(path)
    if precision is not None:
        model.precision = precision
    steps = [
        # a large JPEG is decoded at a reduced scale, as in training
        partial(load_image, imageSize=trainedOn.imageSize),
        eval_transform(trainedOn.imageSize),
    ]
    return model, trainedOn.classes, transforms.Compose(steps)


def predict(model, images):
    """Return the probability of each class (N, numClasses), on the CPU, for images (N, 3, H, W)."""
    # set the model in evaluation mode, and switch off autograd
    model.eval()
    with torch.inference_mode():
        device = next(model.parameters()).device
        return model(images.to(device)).softmax(1).cpu()
