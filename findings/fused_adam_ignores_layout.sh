#!/usr/bin/env bash
# torch 2.14.1, on a CPU. A fused optimizer pairs weight, gradient and state by their place in
# memory and does not look at strides. Resume a run in another memory format than it was saved in,
# and fused Adam updates each convolution with the moments of other weights, without a word.
#
# Seen: the first step after such a resume is wrong by up to 0.017 at a learning rate of 0.01,
# with Adam, AdamW, SGD with momentum and Adagrad; with foreach=True it is right to 2e-8.
# Expected: what CUDA does, which refuses it ("params, grads, exp_avgs, and exp_avg_sqs must have
# same dtype, device, and layout"), or the right numbers, as model.load_state_dict() gives: it
# copies into the model's layout. An optimizer's load_state_dict() keeps the layout of the file.
# Source: aten/src/ATen/native/FusedAdam.cpp and cpu/FusedAdamKernel.cpp of PyTorch, which pass
# raw pointers on; check_fast_path_restrictions() in ForeachUtils.h, which the CUDA side calls,
# compares strides.
#
# For a training: add channels_last to a script, resume an older checkpoint, and the steps are
# wrong. This project lays out the loaded state like the weights (load_parts()).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6

cat > "$folder/resume.py" <<'EOF'
import copy
import sys

import torch
from torch import nn, optim

CONTIGUOUS = torch.contiguous_format
OPTIMIZERS = {
    "Adam": (optim.Adam, {}),
    "AdamW": (optim.AdamW, {}),
    "SGD with momentum": (optim.SGD, {"momentum": 0.9}),
    "Adagrad": (optim.Adagrad, {}),
}


def train_step(model, opt):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 8, 8, generator=generator)
    opt.zero_grad()
    model(x).square().mean().backward()
    opt.step()


def resume(checkpoint, makeOptimizer, memoryFormat, isMended=False):
    """Return the weights after one more step from a checkpoint, in a memory format."""
    model = nn.Conv2d(3, 16, 3).to(memory_format=memoryFormat)
    opt = makeOptimizer(model.parameters())
    model.load_state_dict(checkpoint["model"])
    opt.load_state_dict(copy.deepcopy(checkpoint["opt"]))
    if isMended:
        for param, values in opt.state.items():
            for name, value in values.items():
                if value.shape == param.shape:
                    values[name] = torch.empty_like(param).copy_(value)
    train_step(model, opt)
    return model.weight.detach()


def measure(name, kind):
    """Return how far the weights are from those of a resume without a change of layout: as the
    state was loaded, and with the state laid out like the weights."""
    (optimizer, options) = OPTIMIZERS[name]

    def make_optimizer(params):
        return optimizer(params, lr=0.01, **options, **{kind: True})

    torch.manual_seed(0)
    model = nn.Conv2d(3, 16, 3)
    opt = make_optimizer(model.parameters())
    for _ in range(3):
        train_step(model, opt)
    checkpoint = {"model": model.state_dict(), "opt": opt.state_dict()}
    right = resume(checkpoint, make_optimizer, CONTIGUOUS)
    plain = resume(checkpoint, make_optimizer, torch.channels_last)
    mended = resume(checkpoint, make_optimizer, torch.channels_last, isMended=True)
    return (plain - right).abs().max().item(), (mended - right).abs().max().item()


print(f"torch {torch.__version__}; error of the weights after one step in channels_last")
isAsDescribed = True
for name in OPTIMIZERS:
    for kind in ("fused", "foreach"):
        (plain, mended) = measure(name, kind)
        print(f"{name}, {kind}: state as loaded {plain:.1e}, laid out anew {mended:.1e}")
        isWrong = plain > 1e-4
        if isWrong != (kind == "fused") or mended > 1e-5:
            isAsDescribed = False
if not isAsDescribed:
    sys.exit("[CHANGED] a fused optimizer no longer mixes up weights and state of two layouts")
EOF
"$folder/venv/bin/python" "$folder/resume.py"
