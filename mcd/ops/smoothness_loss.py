"""Edge-aware smoothness of mean-normalised disparity.

    d*     = d / mean(d)                                             per sample
    term_s = mean |∂x d*| · exp(-mean_c |∂x I|) + mean |∂y d*| · exp(-mean_c |∂y I|)
    loss   = mean over scales of term_s / 2^s

with forward differences; each mean runs over the pairs that exist. The object form (`masks`) takes mean(d) over the
mask and

    term_s = Σ |∂x d*| · w_x / Σ w_x + Σ |∂y d*| · w_y / Σ w_y       w = 1 where both pixels of the pair lie in the mask

summed over the batch; a direction without such a pair contributes 0. (The published code takes the mean over the
whole image, so that an object's weight depends on its size, and yields NaN without a pair.) A term over nothing is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register

_WIDTH, _HEIGHT = -1, -2


def smoothness_loss_reference(
    disparities: Sequence[Tensor],
    images: Sequence[Tensor] | None = None,
    *,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    if masks is not None:
        terms = [_masked_term(disparity, mask) for disparity, mask in zip(disparities, masks, strict=True)]
    else:
        terms = [_edge_aware_term(disparity, image) for disparity, image in zip(disparities, images or (), strict=True)]
    return torch.stack([term / 2**s for s, term in enumerate(terms)]).mean()


def _edge_aware_term(disparity: Tensor, image: Tensor) -> Tensor:
    disparity = disparity / disparity.mean((1, 2, 3), keepdim=True)
    image = image.to(disparity.dtype)
    term = disparity.new_zeros(())
    for dim in (_WIDTH, _HEIGHT):
        weight = torch.exp(-image.diff(dim=dim).abs().mean(1, keepdim=True))
        cost = disparity.diff(dim=dim).abs() * weight
        term = term + cost.sum() / max(cost.numel(), 1)
    return term


def _masked_term(disparity: Tensor, mask: Tensor) -> Tensor:
    costs, pairs = slopes_inside(disparity, mask)
    return (costs / pairs.clamp(min=1)).sum()


def slopes_inside(disparity: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Σ |∂ d*| · w along x and y [2], and Σ w [2]: what the object form is made of, where a batch is shared out.

    Args:
        disparity: [B,1,H,W]; mask: [B,1,H,W] bool.
    """
    disparity = torch.where(mask, disparity, 0.0)
    area = mask.sum((1, 2, 3), keepdim=True)
    mean = disparity.sum((1, 2, 3), keepdim=True) / area.clamp(min=1)
    disparity = disparity / torch.where(area > 0, mean, 1.0)
    costs, pairs = [], []
    for dim in (_WIDTH, _HEIGHT):
        size = mask.shape[dim]
        pair = mask.narrow(dim, 0, max(size - 1, 0)) & mask.narrow(dim, min(1, size), max(size - 1, 0))
        cost = torch.where(pair, disparity.diff(dim=dim).abs(), 0.0)
        costs.append(cost.sum())
        pairs.append(pair.sum())
    return torch.stack(costs), torch.stack(pairs)


def _allocate_fwd(disparities: Sequence[Tensor], guides: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and for each scale and sample the factors of its gradient: by slope along x, along y, and per pixel."""
    first = disparities[0]
    return first.new_empty(()), first.new_empty((len(disparities), len(first), 3))


def _workspace_fwd(disparities: Sequence[Tensor], guides: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sums of blocks of rows; there are at most as many blocks as rows."""
    rows = sum([disparity.shape[0] * max(disparity.shape[2], 1) for disparity in disparities])
    return (disparities[0].new_empty((rows, _SUMS)),)


_SUMS = 6  # kSmoothSums of csrc/smoothness_loss/smoothness_loss.h

_fwd = native.define(
    "smoothness_loss_fwd(Tensor[] disparities, Tensor[] guides) -> (Tensor, Tensor)", _allocate_fwd, _workspace_fwd
)
_bwd = native.define(
    "smoothness_loss_bwd(Tensor grad_loss, Tensor[] disparities, Tensor[] guides, Tensor factors) -> Tensor[]",
    lambda grad_loss, disparities, guides, factors: [disparity.new_empty(disparity.shape) for disparity in disparities],
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Sequence[Tensor]], outputs: tuple[Tensor, Tensor]) -> None:
        """Inputs and three numbers for each scale and sample."""
        disparities, guides = inputs
        ctx.save_for_backward(outputs[1], *disparities, *guides)
        ctx.mark_non_differentiable(outputs[1])

    def gradients(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
        factors, *tensors = ctx.saved_tensors
        scales = len(tensors) // 2
        return bwd(grad_loss, tensors[:scales], tensors[scales:], factors), [None] * scales

    forward = differentiate(fwd, save, gradients)

    def implementation(
        disparities: Sequence[Tensor],
        images: Sequence[Tensor] | None = None,
        *,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        return forward(list(disparities), list(masks if masks is not None else images or ()))[0]

    return implementation


def _sample_inputs(device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def uniform(low: float, *shape: int) -> Tensor:
        return (low + torch.rand(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    def sample(label: str, batch: int, shapes: list[tuple[int, int]], masked: bool = False) -> Sample:
        disparities = [uniform(0.1, batch, 1, *shape).requires_grad_() for shape in shapes]
        if masked:
            return Sample((disparities,), {"masks": [uniform(0, batch, 1, *shape) > 0.3 for shape in shapes]}, label)
        return Sample((disparities, [uniform(0, batch, 3, *shape) for shape in shapes]), {}, label)

    yield sample("four scales", 2, [(8, 36), (4, 18), (2, 9), (1, 4)])
    yield sample("one pixel", 1, [(1, 1)])
    yield sample("one column", 3, [(5, 1)])
    yield sample("object form", 2, [(6, 19), (3, 9)], masked=True)
    yield sample("no frames", 0, [(4, 4)])
    yield sample("object form, no frames", 0, [(4, 4)], masked=True)


def _bytes_moved(sample: Sample) -> int:
    tensors = [*sample.args[0], *(sample.args[1] if len(sample.args) > 1 else sample.kwargs["masks"])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


OP = register(
    Operator(
        "smoothness_loss",
        reference=smoothness_loss_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.smoothness_loss:smoothness_loss",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def smoothness_loss(
    disparities: Sequence[Tensor],
    images: Sequence[Tensor] | None = None,
    *,
    masks: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Smoothness of disparity, weaker where the image has an edge (or, with `masks`, inside each object only).

    Args:
        disparities: one [B,1,h,w] per scale, of non-zero mean.
        images: one [B,C,h,w] per scale, at the disparity's size (no gradient); unused with `masks`.
        masks: one bool [B,1,h,w] per scale: the object form.

    Returns:
        The scalar mean over scales of term_s / 2^s; gradients reach the disparities.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or number of scales, named; neither images nor masks.

    Godard et al., "Unsupervised Monocular Depth Estimation with Left-Right Consistency", CVPR 2017; the object form
    is that of Nguyen et al., CVPR 2024.
    """
    name = "smoothness_loss"
    label, guides = ("masks", masks) if masks is not None else ("images", images)
    if guides is None:
        raise ValueError(f"{name}: neither images nor masks is given")
    for argument, value in (("disparities", disparities), (label, guides)):
        if isinstance(value, Tensor) or not isinstance(value, Sequence):
            raise TypeError(f"{name}: {argument} is a {type(value).__name__}, it should be a list of tensors")
    if not disparities or len(disparities) != len(guides):
        raise ValueError(f"{name}: {len(disparities)} disparities and {len(guides)} {label}: give one each per scale")
    sizes = Shapes(name, *disparities, *guides)
    if not sizes.known:
        disparities = computed(*disparities, beside=guides[0] if masks is None else None)
        for s, (disparity, guide) in enumerate(zip(disparities, guides, strict=True)):
            sizes.tensor(f"disparities[{s}]", disparity, f"B 1 h{s} w{s}")
            if masks is None:
                sizes.tensor(f"images[{s}]", guide, f"B C h{s} w{s}", image=True)
            else:
                sizes.tensor(f"masks[{s}]", guide, f"B 1 h{s} w{s}", dtype=torch.bool)
        sizes.remember(*disparities, *guides)
    implementation = OP.implementation(backend, disparities[0])
    with no_autocast(disparities[0].device.type):
        if masks is not None:
            loss: Tensor = implementation(disparities, masks=masks)
        else:
            loss = implementation(disparities, [image.detach() for image in guides])
    return loss
