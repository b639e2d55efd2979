"""What makes a step of many processes the step of one: statistics and gradients of the whole batch.

Plain averaging of gradients stands here in place of DistributedDataParallel. A stage trains several nets, other ones in
each phase; a net may be called more than once in a step, or not at all, and the loss is cut from the nets before its
gradient is found: DDP, whose buckets are made for one forward and one backward of a fixed set of parameters, would have
to be taken apart at each phase, and searched for unused parameters in each step. What it would win is that sums travel
while the backward pass still computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcd import world


def normalise_together(net: nn.Module) -> nn.Module:
    """Let the batch norm of a net that trains see the batch of all processes; the keys of its state stay.

    On a GPU that is torch's SyncBatchNorm, which knows no CPU; there the same is done with sums by gloo.
    """
    if world.size() == 1:
        return net
    if any(parameter.is_cuda for parameter in net.parameters()):
        return timm.layers.convert_sync_batchnorm(net)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_batch_norm, module)  # type: ignore[method-assign]
    return net


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm over equally large parts of a batch in all processes."""
    if world.size() == 1 or not norm.training:
        return type(norm).forward(norm, x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [dim for dim in range(x.ndim) if dim != 1]
    count = x.numel() // x.shape[1] * world.size()
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean = world.differentiable_total(wide.sum(dims)) / count
    centred = wide - mean.view(shape)
    variance = world.differentiable_total(centred.square().sum(dims)) / count
    if norm.track_running_stats:
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            unbiased = variance * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    result = result.to(x.dtype)
    # timm's layers of this kind end with an activation.
    return norm.act(norm.drop(result)) if isinstance(norm, timm.layers.BatchNormAct2d) else result


@torch.no_grad()
def average_gradients(nets: Iterable[nn.Module], loss: Tensor) -> Tensor:
    """Put the mean over all processes in the place of every gradient; returns that of the loss.

    Which parameters have a gradient follows from the stage and the step, and so is the same everywhere. All travel in
    one piece.
    """
    if world.size() == 1:
        return loss
    gradients = [parameter.grad for net in nets for parameter in net.parameters() if parameter.grad is not None]
    piece = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
    mean, *parts = (world.total(piece) / world.size()).split([1, *(gradient.numel() for gradient in gradients)])
    if gradients:
        torch._foreach_copy_(
            gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
        )
    return mean[0]


def equalise(nets: Iterable[nn.Module]) -> None:
    """Give the nets of every process what those of the first one hold."""
    if world.size() == 1:
        return
    for net in nets:
        state = world.from_first(lambda net=net: {key: value.cpu() for key, value in net.state_dict().items()})  # type: ignore[misc]
        net.load_state_dict(state)
