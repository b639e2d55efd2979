"""Scale-invariant depth loss: a prediction against a label that is right up to one factor per sample.

Per sample, over the pixels whose target is positive and finite, with p the prediction and q the target:

    r₁   = median(p / q)                                                     torch's median, the lower
    gate = min(p) <= r₁ q <= 90th percentile of p                            NumPy's, interpolated
    r₂   = median(p / q) over the gate
    loss = Σ |p - r₂ q| / (Σ 1 + 1e-10)                                      over gate and mask, all samples together

The factors are constants of the gradient. Pixels without a target take part in nothing; a sample without any adds 0.
A NaN prediction where there is a target makes its sample's factor, and so the loss, NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.instance_stats import distinct
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register


class ScaleInvariantLossResult(NamedTuple):
    loss: Tensor
    """scalar"""
    gate: Tensor
    """[B,1,H,W] bool, the pixels that were compared, whether in the mask or not"""


def scale_invariant_loss_reference(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    batch = prediction.shape[0]
    image = prediction.shape
    shape = (batch, image[-2] * image[-1])
    prediction, target, mask = (tensor.reshape(shape) for tensor in (prediction, target.detach(), mask))
    counted = (target > 0) & target.isfinite()
    target = torch.where(counted, target, 1.0)
    with torch.no_grad():
        ratio = prediction / target
        rescaled = _quantile(ratio, counted, 0.5, "lower") * target
        least = _quantile(prediction, counted, 0.0, "lower")
        large = _quantile(prediction, counted, 0.9, "linear")
        # Written so that a NaN factor passes and shows in the loss.
        gate = counted & ~(rescaled < least) & ~(rescaled > large)
        factor = _quantile(ratio, gate, 0.5, "lower")
    chosen = gate & mask
    # |p - r₂ q|, written to be 0 at the pixel whose ratio is the median, where the sign of p - r₂ q would be noise.
    error = (torch.where(chosen, prediction / target - factor, 0.0).abs() * target).sum()
    return error / (chosen.sum().to(error.dtype) + 1e-10), gate.reshape(image)


def _quantile(values: Tensor, chosen: Tensor, quantile: float, interpolation: str) -> Tensor:
    """Quantile [B,1] of the chosen values of each row of [B,P]; NaN if there is a NaN or nothing among them."""
    count = chosen.sum(1, keepdim=True)
    # Behind the chosen ones, and behind the infinite ones among those.
    ordered = torch.where(chosen, values, torch.nan).sort(1).values
    ordered = torch.cat((ordered, ordered.new_full((len(ordered), 1), torch.nan)), 1)
    position = quantile * (count - 1).clamp(min=0).double()
    low = position.floor()
    result = ordered.gather(1, low.long())
    if interpolation == "linear":
        above = ordered.gather(1, position.ceil().long())
        between = torch.lerp(result, above, (position - low).to(values.dtype))
        result = torch.where((result == above) | (position == low), result, between)
    return result.masked_fill((chosen & values.isnan()).any(1, keepdim=True), torch.nan)


def _allocate_fwd(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """loss, gate, and for the backward pass each sample's factor and the loss's weight of a pixel."""
    gate = torch.empty_like(mask, memory_format=torch.contiguous_format)
    return prediction.new_empty(()), gate, prediction.new_empty(prediction.shape[0]), prediction.new_empty(())


def _workspace_fwd(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """On CPU each sample's sum of errors, and of how many pixels; on CUDA what a sample's blocks tell each other."""
    on_cpu, on_cuda = (0, prediction.shape[0]) if prediction.is_cuda else (prediction.shape[0], 0)
    # Three histograms of 2048 bins for every eleven bits of a value, and a little for each block.
    words = 3 * math.ceil(8 * prediction.itemsize / 11) * 2048 // 2 + 64
    return (
        prediction.new_empty(on_cpu, dtype=torch.float64),
        prediction.new_empty(on_cpu, dtype=torch.int64),
        prediction.new_empty((on_cuda, words), dtype=torch.int64),
    )


def _allocate_bwd(grad_loss: Tensor, prediction: Tensor, *arguments: Tensor) -> Tensor:
    return torch.empty_like(prediction, memory_format=torch.contiguous_format)


_fwd = native.define(
    "scale_invariant_loss_fwd(Tensor prediction, Tensor target, Tensor mask) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_fwd,
    _workspace_fwd,
)
_bwd = native.define(
    "scale_invariant_loss_bwd(Tensor grad_loss, Tensor prediction, Tensor target, Tensor mask, Tensor gate,"
    " Tensor factor, Tensor weight) -> Tensor",
    _allocate_bwd,
)


def _save(ctx: Any, inputs: Sequence[Tensor], outputs: tuple[Tensor, ...]) -> None:
    """The inputs, the gate that is returned, and a number per sample."""
    ctx.save_for_backward(*inputs, *outputs[1:])
    ctx.mark_non_differentiable(*outputs[1:])


def _gradients(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _bwd(grad_loss, *ctx.saved_tensors), None, None


_differentiable = differentiate(_fwd, _save, _gradients)


def _native(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    loss, gate, *_ = _differentiable(prediction, target.detach(), mask)
    return loss, gate


def _sample_inputs(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    for label, shape in {
        "two samples": (2, 1, 5, 7),
        "more pixels than a CUDA block": (2, 1, 33, 41),
        "a single row": (3, 1, 1, 9),
        "no sample": (0, 1, 4, 4),
    }.items():
        prediction = distinct(shape, generator)
        # Between the pixels of a sample the rescaled target steps over the bounds of the gate, away from equality.
        target = prediction * (0.5 + 0.1 * distinct(shape, generator)) + 0.01234
        target[..., -1, -1] = 0
        mask = torch.rand(shape, generator=generator) > 0.3
        args = prediction.to(device, dtype).requires_grad_(), target.to(device, dtype), mask.to(device)
        yield Sample(args, {}, label, detached=True)


def _bytes_moved(sample: Sample) -> int:
    prediction, target, mask = sample.args
    return sum(tensor.numel() * tensor.element_size() for tensor in (prediction, target, mask, mask))


OP = register(
    Operator(
        "scale_invariant_loss",
        reference=scale_invariant_loss_reference,
        native=_native,
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def scale_invariant_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, backend: str | None = None
) -> ScaleInvariantLossResult:
    """The scalar loss, and the gate [B,1,H,W] bool: the pixels that were compared, whether in the mask or not.

    Args:
        prediction: [B,1,H,W] depth.
        target: [B,1,H,W] depth up to one factor per sample (no gradient); <= 0 or not finite where there is none.
        mask: [B,1,H,W] bool, the pixels that the loss sums over; medians and gate look at all pixels.
        backend: see `mcd.backend`.

    The gradient reaches prediction. The loss over nothing is 0. Nguyen et al., CVPR 2024.

    Raises:
        TypeError, ValueError: an argument that is wrong, named.
    """
    sizes = Shapes("scale_invariant_loss", prediction, target, mask)
    if not sizes.known:
        prediction, target = computed(prediction, target)
        sizes.tensor("prediction", prediction, "B 1 H W")
        sizes.tensor("target", target, "B 1 H W")
        sizes.tensor("mask", mask, "B 1 H W", dtype=torch.bool)
        sizes.remember(prediction, target, mask)
    implementation = OP.implementation(backend, prediction)
    with no_autocast(prediction.device.type):
        return ScaleInvariantLossResult(*implementation(prediction, target, mask))
