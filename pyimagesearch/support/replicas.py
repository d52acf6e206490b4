"""Data parallelism in threads of one process: over the cores of a CPU, over several GPUs."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

# more replicas would add up gradients for longer than they save, with few images in each
MAX_REPLICAS = 8


class CoreParallel(nn.Module):
    """What nn.DataParallel is for several GPUs, for the cores of a CPU.

    Each replica computes a part of the batch in a thread of its own, forward and backward. One
    process whose threads share each operation waits at thousands of barriers a step; replicas wait
    once. All share the parameters of the module; their gradients are added in a fixed order.
    Batch normalization that trains uses the statistics of each part, and the module keeps those of
    the first, as under nn.DataParallel.
    """

    def __init__(self, module):
        """module: a network on the CPU, which stays the one that is trained and saved."""
        super().__init__()
        self.module = module
        numThreads = torch.get_num_threads()
        numReplicas = min(numThreads, MAX_REPLICAS)
        # a tuple, as these are no modules of their own to optimizers and state dicts
        copies = [share_parameters(module) for _ in range(numReplicas - 1)]
        self.replicas = (module, *copies)
        self.pool = ThreadPoolExecutor(
            numReplicas,
            initializer=torch.set_num_threads,
            initargs=(numThreads // numReplicas,),
        )

    def train(self, mode=True):
        """Set the mode of all replicas, which have the module's statistics from then on."""
        super().train(mode)
        for replica in self.replicas[1:]:
            replica.train(mode)
            for buffer, original in zip(replica.buffers(), self.module.buffers(), strict=True):
                buffer.copy_(original)
        return self

    def forward(self, x):
        """Return the module's output for a batch x, whose first dimension is shared out."""
        if len(self.replicas) == 1:
            return self.module(x)
        # with one image, batch normalization that trains may have a single value to normalize
        smallest = 2 if self.training else 1
        numParts = min(len(self.replicas), max(len(x) // smallest, 1))
        parts = x.tensor_split(numParts)
        if torch.is_grad_enabled():
            params = [p for p in self.module.parameters() if p.requires_grad]
            return RunReplicas.apply(self, parts, *params)
        isInference = torch.is_inference_mode_enabled()

        def run(part):
            # each thread has modes of its own
            with torch.no_grad(), torch.inference_mode(isInference):
                return self.module(part)

        return torch.cat(list(self.pool.map(run, parts)))


def share_parameters(module):
    """Return a copy of a module whose parameters are those of the module itself."""
    replica = copy.deepcopy(module)
    for name, param in module.named_parameters():
        (path, _, leaf) = name.rpartition(".")
        shared = nn.Parameter(param.detach(), requires_grad=param.requires_grad)
        setattr(replica.get_submodule(path), leaf, shared)
    return replica


class RunReplicas(torch.autograd.Function):
    """The forward and backward pass of all replicas, as one operation on the parameters."""

    @staticmethod
    def forward(ctx, owner, parts, *params):
        """Return the outputs of all parts, joined; keep their graphs for the backward pass."""

        def run(replica, part):
            with torch.enable_grad():
                return replica(part)

        ctx.owner = owner
        ctx.outputs = list(owner.pool.map(run, owner.replicas, parts))
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of the parameters, the sums of those of all replicas."""

        def run(replica, output, part):
            params = [p for p in replica.parameters() if p.requires_grad]
            return torch.autograd.grad(output, params, part)

        parts = grad.split([len(output) for output in ctx.outputs])
        results = list(ctx.owner.pool.map(run, ctx.owner.replicas, ctx.outputs, parts))
        # the graphs, which hold most of the memory
        ctx.outputs = None
        totals = list(results[0])
        for grads in results[1:]:
            for total, other in zip(totals, grads, strict=True):
                total.add_(other)
        return (None, None, *totals)


class DataParallel(nn.DataParallel):
    """nn.DataParallel with one thread per GPU that stays.

    PyTorch's starts new threads at each step, in each of which cuDNN plans every convolution anew,
    and the plans of the last step are lost memory. The backward pass has threads that stay anyway.
    """

    def __init__(self, module, **options):
        """module, options: as nn.DataParallel takes them."""
        super().__init__(module, **options)
        # a pool each, so that a replica finds its plans in the thread that made them
        self.pools = [ThreadPoolExecutor(1) for _ in self.device_ids]

    def parallel_apply(self, replicas, inputs, kwargs):
        """Return the outputs of the replicas for their parts of the batch."""
        isGradEnabled = torch.is_grad_enabled()

        def run(number):
            # each thread has a mode of its own
            with torch.set_grad_enabled(isGradEnabled):
                # PyTorch's own, which starts no thread for a single replica
                (output,) = nn.parallel.parallel_apply(
                    [replicas[number]],
                    [inputs[number]],
                    [kwargs[number]],
                    [self.device_ids[number]],
                )
            return output

        # a small batch may have fewer parts than there are GPUs
        calls = [self.pools[number].submit(run, number) for number in range(len(replicas))]
        return [call.result() for call in calls]


def parallelize(model, numGPU):
    """Return model as it runs on all devices of this process: so many GPUs or, without one, the
    cores of the CPU."""
    if numGPU > 1:
        return DataParallel(model)
    if numGPU == 0:
        return CoreParallel(model)
    return model
