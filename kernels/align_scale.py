"""Scale alignment in Triton. The formulas stand in mcd/ops/align_scale.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import WIDE, bits_of, divide, is_finite, number_of
from mcd.kernels.instances import check_entries
from mcd.kernels.select import RATIO, key_of_rank, read, value_of
from mcd.ops import native
from mcd.ops.align_scale import differentiable

_BLOCK = 512


@triton.jit
def _mean(depth, size, BLOCK: tl.constexpr):
    """The mean of an instance's depth, and whether depths can be divided by it; if not, 1 in its place."""
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < size:
        i = start + tl.arange(0, BLOCK)
        total += tl.load(depth + i, mask=i < size, other=0.0).to(tl.float64)
        start += BLOCK
    average = (tl.sum(total, 0) / tl.maximum(size, 1).to(tl.float64)).to(depth.dtype.element_ty)
    usable = (size > 0) & (average > 0) & is_finite(average)
    return tl.where(usable, average, 1.0), usable


@triton.jit
def _closed_form(object_depth, target_depth, pixel, offset, frame, scale, pixels, BLOCK: tl.constexpr):
    """The lower median of target / normalised depth; NaN without a target. One program for each instance."""
    n = tl.program_id(0)
    first = tl.load(offset + n)
    size = tl.load(offset + n + 1) - first
    depth, pixel = object_depth + first, pixel + first
    target = target_depth + tl.load(frame + n).to(tl.int64) * pixels
    mean, _usable = _mean(depth, size, BLOCK)
    count = 0
    start = 0
    while start < size:
        _, taken = read(target, pixel, depth, mean, start + tl.arange(0, BLOCK), size, RATIO)
        count += tl.sum(taken.to(tl.int32), 0)
        start += BLOCK
    rank = tl.maximum(count - 1, 0) // 2
    median = value_of(key_of_rank(target, pixel, depth, mean, size, rank, RATIO, BLOCK))
    tl.store(scale + n, tl.where(count > 0, median, float("nan")))


@triton.jit(do_not_specialize=["delta"])
def _align(
    object_depth, target_depth, pixel, offset, frame, scale, aligned, loss, mean, delta, pixels,
    GIVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for each instance."""
    dtype: tl.constexpr = object_depth.dtype.element_ty
    delta = number_of(delta).to(dtype)
    n = tl.program_id(0)
    first = tl.load(offset + n)
    size = tl.load(offset + n + 1) - first
    depth, pixel, aligned = object_depth + first, pixel + first, aligned + first
    target = target_depth + tl.load(frame + n).to(tl.int64) * pixels
    average, usable = _mean(depth, size, BLOCK)
    factor = tl.load(scale + n)
    if not GIVEN:
        usable &= factor == factor
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < size:
        i = start + tl.arange(0, BLOCK)
        inside = i < size
        value = divide(tl.load(depth + i, mask=inside, other=0.0), average) * factor
        compared = tl.load(target + tl.load(pixel + i, mask=inside, other=0), mask=inside, other=0.0)
        error = tl.abs(value - compared)
        huber = tl.where(error <= delta, error * error * 0.5, (error - delta * 0.5) * delta)
        total += tl.where(inside & usable, huber, 0.0).to(tl.float64)
        tl.store(aligned + i, tl.where(usable, value, float("nan")), mask=inside)
        start += BLOCK
    average_loss = (tl.sum(total, 0) / tl.maximum(size, 1).to(tl.float64)).to(dtype)
    tl.store(loss + n, tl.where(usable, average_loss, 0.0))
    tl.store(mean + n, tl.where(usable, average, float("nan")))


@triton.jit
def _grad(
    grad_aligned, grad_loss, depth, target, pixel, i, size, mean, scale, delta,
    HAS_ALIGNED: tl.constexpr, HAS_LOSS: tl.constexpr,
):  # fmt: skip
    """The gradient to aligned, and the normalised depth."""
    inside = i < size
    normalised = divide(tl.load(depth + i, mask=inside, other=0.0), mean)
    total = tl.zeros_like(normalised)
    if HAS_ALIGNED:
        total = tl.load(grad_aligned + i, mask=inside, other=0.0)
    if HAS_LOSS:
        compared = tl.load(target + tl.load(pixel + i, mask=inside, other=0), mask=inside, other=0.0)
        error = normalised * scale - compared
        slope = tl.where(error > delta, delta, tl.where(error < -delta, -delta, error))
        total += tl.where(inside, slope, 0.0) * divide(tl.load(grad_loss), size.to(scale.dtype))
    return total, normalised


@triton.jit(do_not_specialize=["delta"])
def _align_grad(
    grad_aligned, grad_loss, object_depth, target_depth, pixel, offset, frame, mean, scale,
    grad_object_depth, grad_scale, delta, pixels,
    HAS_ALIGNED: tl.constexpr, HAS_LOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With g the gradient to aligned, and G = Σ g · normalised, which is that to the scale, object depth's is
    scale / mean · (g - G / count)."""
    dtype: tl.constexpr = object_depth.dtype.element_ty
    delta = number_of(delta).to(dtype)
    n = tl.program_id(0)
    first = tl.load(offset + n)
    size = tl.load(offset + n + 1) - first
    average, factor = tl.load(mean + n), tl.load(scale + n)
    usable = average == average
    grad_aligned, grad_loss, depth, pixel = grad_aligned + first, grad_loss + n, object_depth + first, pixel + first
    target = target_depth + tl.load(frame + n).to(tl.int64) * pixels
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < size:
        grad, normalised = _grad(
            grad_aligned, grad_loss, depth, target, pixel, start + tl.arange(0, BLOCK), size, average, factor,
            delta, HAS_ALIGNED, HAS_LOSS,
        )  # fmt: skip
        total += (grad * normalised).to(tl.float64)
        start += BLOCK
    to_scale = tl.sum(total, 0)
    tl.store(grad_scale + n, tl.where(usable, to_scale.to(dtype), 0.0))
    shift = (to_scale / tl.maximum(size, 1).to(tl.float64)).to(dtype)
    factor_of_depth = divide(factor, average)
    start = 0
    while start < size:
        i = start + tl.arange(0, BLOCK)
        grad, _ = _grad(
            grad_aligned, grad_loss, depth, target, pixel, i, size, average, factor, delta, HAS_ALIGNED, HAS_LOSS
        )
        to_depth = tl.where(usable, factor_of_depth * (grad - shift), 0.0)
        tl.store(grad_object_depth + first + i, to_depth, mask=i < size)
        start += BLOCK


def _fwd(
    object_depth: Tensor,
    target_depth: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    given: Tensor | None,
    delta: float,
    aligned: Tensor,
    loss: Tensor,
    mean: Tensor,
    scale: Tensor,
) -> None:
    if len(frame) == 0:
        return
    check_entries("align_scale", len(pixel))
    grid, pixels = (len(frame),), target_depth.shape[2] * target_depth.shape[3]
    if given is None:
        _closed_form[grid](object_depth, target_depth, pixel, offset, frame, scale, pixels, BLOCK=_BLOCK, **WIDE)
    else:
        scale.copy_(given)
    _align[grid](
        object_depth, target_depth, pixel, offset, frame, scale, aligned, loss, mean, bits_of(delta), pixels,
        GIVEN=given is not None, BLOCK=_BLOCK, **WIDE,
    )  # fmt: skip


def _bwd(
    grad_aligned: Tensor | None,
    grad_loss: Tensor | None,
    object_depth: Tensor,
    target_depth: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    mean: Tensor,
    scale: Tensor,
    delta: float,
    grad_object_depth: Tensor,
    grad_scale: Tensor,
) -> None:
    if len(frame) == 0:
        return
    _align_grad[(len(frame),)](
        object_depth if grad_aligned is None else grad_aligned, mean if grad_loss is None else grad_loss,
        object_depth, target_depth, pixel, offset, frame, mean, scale, grad_object_depth, grad_scale,
        bits_of(delta), target_depth.shape[2] * target_depth.shape[3],
        HAS_ALIGNED=grad_aligned is not None, HAS_LOSS=grad_loss is not None, BLOCK=_BLOCK, **WIDE,
    )  # fmt: skip


align_scale = differentiable(
    native.define_launched("align_scale_fwd", _fwd), native.define_launched("align_scale_bwd", _bwd)
)
