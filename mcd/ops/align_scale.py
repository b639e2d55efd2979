"""Depth-scale alignment: an object's depth, known up to scale, put into the scene and compared with it.

    normalised = object_depth / mean of object_depth over its instance
    aligned    = scale · normalised
    loss       = mean over the instance of huber(aligned - target_depth)
    huber(e)   = e²/2 where |e| <= δ, else δ (|e| - δ/2)

Object depth is in a unit of its own, scale, target and aligned in the scene's. Without a scale it is the closed form:
the lower median of target / normalised over the instance's pixels with target > 0. An instance that is empty, whose
mean is not positive and finite, or (closed form) without such a pixel has loss 0, aligned NaN, and no gradient.
Unlike the published code, the mean has no epsilon, is part of the gradient, and empty instances can be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.instance_stats import (
    distinct,
    element_of_rank,
    instance_stats_reference,
    random_instances,
    sorted_by_instance,
)
from mcd.ops.instances import Instances, check_instances
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register


class AlignScaleResult(NamedTuple):
    aligned: Tensor
    """[P] depth in the scene's unit, NaN where there is nothing to align"""
    loss: Tensor
    """[N] mean Huber loss of each instance, 0 where there is nothing to align"""


def align_scale_reference(
    object_depth: Tensor,
    target_depth: Tensor,
    instances: Instances,
    scale: Tensor | None = None,
    *,
    delta: float = 0.005,
) -> tuple[Tensor, Tensor]:
    target = instances.gather(target_depth.detach())
    instance, count = instances.instance, instances.count
    mean = instance_stats_reference(object_depth, instances).mean
    usable = (mean > 0) & mean.isfinite()
    if scale is None:
        scale = _closed_form(object_depth.detach(), mean.detach(), target, instances)
        usable = usable & ~scale.isnan()

    # Numbers stand in for what is unusable: a NaN would reach the gradients through products with zero.
    usable_pixel = usable[instance]
    mean, scale = torch.where(usable, mean, 1.0), torch.where(usable, scale, 1.0)
    aligned = torch.where(usable_pixel, object_depth, 1.0) / mean[instance] * scale[instance]
    target = torch.where(usable_pixel, target, aligned.detach())
    errors = F.huber_loss(aligned, target, reduction="none", delta=delta)
    loss = errors.new_zeros(count.shape).index_add(0, instance, errors) / count.clamp(min=1)
    return aligned.masked_fill(~usable_pixel, torch.nan), loss


def _closed_form(object_depth: Tensor, mean: Tensor, target: Tensor, instances: Instances) -> Tensor:
    """Scale [N]; NaN without a pixel whose target is positive."""
    instance, compared = instances.instance, target > 0
    # What is not compared is sorted to the end.
    ratio = torch.where(compared, target / (object_depth / mean[instance]), torch.nan)
    count = torch.zeros_like(instances.count).index_add(0, instance, compared.int())
    rank = (count - 1).clamp(min=0) // 2
    return element_of_rank(sorted_by_instance(ratio, instance), instances.offset, rank[:, None])[:, 0]


def _allocate_fwd(
    object_depth: Tensor,
    target_depth: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    given: Tensor | None,
    delta: float,
) -> tuple[Tensor, ...]:
    """aligned, loss, and for the backward pass mean (NaN where there is nothing to align) and scale."""
    loss, mean, scale = (object_depth.new_empty(frame.shape[0]) for _ in range(3))
    return object_depth.new_empty(object_depth.shape), loss, mean, scale


def _allocate_bwd(
    grad_aligned: Tensor | None, grad_loss: Tensor | None, object_depth: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    mean = arguments[4]
    return object_depth.new_empty(object_depth.shape), mean.new_empty(mean.shape)


_fwd = native.define(
    "align_scale_fwd(Tensor object_depth, Tensor target_depth, Tensor pixel, Tensor offset, Tensor frame,"
    " Tensor? given, float delta) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_fwd,
)
_bwd = native.define(
    "align_scale_bwd(Tensor? grad_aligned, Tensor? grad_loss, Tensor object_depth, Tensor target_depth, Tensor pixel,"
    " Tensor offset, Tensor frame, Tensor mean, Tensor scale, float delta) -> (Tensor, Tensor)",
    _allocate_bwd,
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
        """Inputs and two numbers per instance."""
        ctx.save_for_backward(*inputs[:5], *outputs[2:])
        ctx.delta = inputs[6]
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, grad_aligned: Tensor | None, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad_aligned is None and grad_loss is None:
            return (None,) * 7
        grad_object_depth, grad_scale = bwd(grad_aligned, grad_loss, *ctx.saved_tensors, ctx.delta)
        return grad_object_depth, None, None, None, None, grad_scale if ctx.needs_input_grad[5] else None, None

    forward = differentiate(fwd, save, gradients)

    def implementation(
        object_depth: Tensor, target_depth: Tensor, instances: Instances, scale: Tensor | None, *, delta: float
    ) -> tuple[Tensor, Tensor]:
        ragged = (instances.pixel, instances.offset, instances.frame)
        aligned, loss, *_ = forward(object_depth, target_depth.detach(), *ragged, scale, delta)
        return aligned, loss

    return implementation


def _sample_inputs(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    for label, (size, counts, has_scale) in {
        "overlapping masks, an empty one": ((2, 5, 7), ([3, 0], [4]), True),
        "closed form": ((2, 6, 9), ([31], [17, 8]), False),
        "more pixels than a CUDA block, a wide quadratic part": ((1, 40, 51), ([2000, 700],), True),
        "one pixel, closed form": ((1, 1, 1), ([1],), False),
        "no instance": ((1, 3, 3), ([],), True),
        "no frame": ((0, 3, 3), (), False),
    }.items():
        instances = random_instances(size, counts, generator).to(device)
        object_depth = distinct((len(instances.pixel),), generator).to(device, dtype).requires_grad_()
        target = 5 + 3 * distinct((size[0], 1, *size[1:]), generator).to(device, dtype)
        scale = torch.full((len(instances),), 11.2345, device=device, dtype=dtype, requires_grad=True)
        delta = 1.01234 if "wide" in label else 0.005
        args = (object_depth, target, instances, scale if has_scale else None)
        yield Sample(args, {"delta": delta}, label, detached=not has_scale)


def _bytes_moved(sample: Sample) -> int:
    object_depth, target = sample.args[:2]
    # Depth in, aligned out, and through the pixels' addresses the target.
    return object_depth.numel() * (2 * object_depth.element_size() + target.element_size() + 4)


OP = register(
    Operator(
        "align_scale",
        reference=align_scale_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.align_scale:align_scale",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def align_scale(
    object_depth: Tensor,
    target_depth: Tensor,
    instances: Instances,
    scale: Tensor | None = None,
    *,
    delta: float = 0.005,
    backend: str | None = None,
) -> AlignScaleResult:
    """Put each object's depth at its scale, and compare it with the scene's depth.

    Args:
        object_depth: [P], depth at the instances' pixels, in any unit.
        target_depth: [B,1,H,W], the scene's depth (no gradient).
        instances: N masks.
        scale: [N], the objects' mean depth in the scene's unit; None takes the closed form, without a gradient.
        delta: where the Huber loss turns from quadratic to linear, in the scene's unit.
        backend: see `mcd.backend`.

    Returns:
        `aligned` [P] and `loss` [N]. An instance that has nothing to align (see above) has NaN and 0, and should not
        be counted in a mean over instances.

    Gradients reach object_depth, through the mean too, and scale. Nguyen et al., CVPR 2024.

    Raises:
        TypeError, ValueError: an argument that is wrong, named.
    """
    sizes = Shapes("align_scale", object_depth, target_depth, instances, scale)
    if not sizes.known:
        object_depth, target_depth, scale = computed(object_depth, target_depth, scale)
        check_instances(sizes, instances)
        sizes.tensor("object_depth", object_depth, "P")
        sizes.tensor("target_depth", target_depth, "B 1 H W")
        if scale is not None:
            sizes.tensor("scale", scale, "N")
        sizes.remember(object_depth, target_depth, instances, scale)
    if not 0 < delta < math.inf:
        raise ValueError(f"align_scale: delta is {delta}, it should be positive and finite")
    implementation = OP.implementation(backend, object_depth)
    with no_autocast(object_depth.device.type):
        return AlignScaleResult(*implementation(object_depth, target_depth, instances, scale, delta=delta))
