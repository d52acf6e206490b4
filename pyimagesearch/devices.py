# How a run is spread over devices, and with what precision they compute. The scripts call these
# functions and do not look further.

# import the necessary packages
import torch
from torch import nn

from . import config


def count_gpus():
    """Return the number of GPUs in use: 0 on a CPU, else those that config.DEVICE names."""
    if config.DEVICE.type == "cpu":
        return 0
    if config.DEVICE.type == "cuda" and config.DEVICE.index is None:
        return torch.cuda.device_count()
    return 1


def count_devices():
    """Return the number of devices that share a batch: the GPUs, or the one CPU."""
    return max(count_gpus(), 1)


def wrap_model(model):
    """Put model on config.DEVICE, and spread it over the GPUs if there is more than one."""
    model = model.to(config.DEVICE)
    return nn.DataParallel(model) if count_gpus() > 1 else model


def unwrap_model(model):
    """Return the plain model that wrap_model was given."""
    return model.module if isinstance(model, nn.DataParallel) else model


def compute_dtype(device):
    """Return the dtype of the heavy layers on device: fp16 on CUDA, as in the tutorial, bf16 on
    a CPU with instructions for it, else fp32."""
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return torch.bfloat16
    return torch.float32


def autocast(device):
    """Return a context in which the heavy layers on device compute in compute_dtype(device)."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
