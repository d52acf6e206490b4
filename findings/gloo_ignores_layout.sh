#!/usr/bin/env bash
# torch 2.14.1, two processes over gloo on a CPU. broadcast() and all_reduce() send a tensor's
# memory as it lies. Where one process has a convolution's weights in channels_last and another
# has them contiguous, they shuffle the weights without a word.
#
# Seen: after broadcast() rank 1 has [0, 12, 1, 13, ...] for [0, 1, 2, 3, ...]; all_reduce() adds
# numbers of different places. all_gather(), broadcast_object_list() and the functional
# all_reduce() are right.
# Expected: an error, or the right numbers. Sizes and types are checked, send() refuses such a
# tensor, DistributedDataParallel compares the strides of all processes and refuses such a model,
# and all_gather() handles exactly this case.
# Source: ProcessGroupGloo.cpp of PyTorch; issue 192920 of pytorch/pytorch, open, which found
# broadcast, reduce and scatter wrong with columns of a matrix, and says that all_gather was
# mended before. channels_last is the way in which a training meets it.
#
# For a training: rank 0 loads weights from a file, whose layout is the file's, and broadcasts
# them to models in channels_last. Send them as objects, or have all processes call .contiguous()
# first. This project sends weights as objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6

cat > "$folder/collectives.py" <<'EOF'
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

warnings.filterwarnings("ignore")
dist.init_process_group("gloo")
rank = dist.get_rank()
numbers = torch.arange(24.0).reshape(1, 2, 3, 4)


def make_tensor():
    """Return the same numbers in all processes, in channels_last in rank 0 alone."""
    memoryFormat = torch.channels_last if rank == 0 else torch.contiguous_format
    return numbers.clone().contiguous(memory_format=memoryFormat)


def broadcast():
    tensor = make_tensor()
    dist.broadcast(tensor, src=0)
    return tensor


def all_reduce():
    tensor = make_tensor()
    dist.all_reduce(tensor)
    return tensor / 2


def all_gather():
    tensor = make_tensor()
    gathered = [torch.zeros_like(tensor), torch.zeros_like(tensor)]
    dist.all_gather(gathered, tensor)
    return gathered[1 - rank]


def broadcast_object():
    box = [make_tensor()]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def functional_all_reduce():
    return functional.all_reduce(make_tensor(), "sum", [0, 1]) / 2


isAsDescribed = True
EXPECTED = {
    broadcast: [True, False],
    all_reduce: [False, False],
    all_gather: [True, True],
    broadcast_object: [True, True],
    functional_all_reduce: [True, True],
}
for collective, expected in EXPECTED.items():
    result = collective()
    answers = [None, None]
    dist.all_gather_object(answers, (torch.equal(result, numbers), result.flatten()[:6].tolist()))
    areRight = [isRight for isRight, _ in answers]
    if areRight != expected:
        isAsDescribed = False
    if rank == 0:
        for place, (isRight, start) in enumerate(answers):
            verdict = "right" if isRight else "WRONG"
            print(f"{collective.__name__}, rank {place}: {verdict} {start}...")
dist.destroy_process_group()
if not isAsDescribed:
    sys.exit("[CHANGED] gloo's collectives treat two layouts of a tensor otherwise than described")
EOF
export OMP_NUM_THREADS=1
"$folder/venv/bin/torchrun" --standalone --nproc-per-node=2 "$folder/collectives.py"
