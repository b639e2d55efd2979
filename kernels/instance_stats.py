"""Statistics of instances in Triton. The formulas stand in mcd/ops/instance_stats.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import SETTINGS, WIDE, bits_of, check_plane, divide, number_of
from mcd.kernels.instances import check_entries, instance_of
from mcd.kernels.select import IMAGE, OWN, key_of_rank, next_key, read, value_of
from mcd.ops import native
from mcd.ops.instance_stats import differentiable

_BLOCK = 1024


@triton.jit
def _values_of(values, offset, frame, n, pixels, SOURCE: tl.constexpr):
    """Where the values of instance n begin, its first entry, and its size."""
    first = tl.load(offset + n)
    values += first if SOURCE == OWN else tl.load(frame + n).to(tl.int64) * pixels
    return values, first, tl.load(offset + n + 1) - first


@triton.jit
def _summary(
    values, pixel, offset, frame, count, mean, least, largest, pixels, SOURCE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program for each instance."""
    n = tl.program_id(0)
    values, first, size = _values_of(values, offset, frame, n, pixels, SOURCE)
    dtype: tl.constexpr = values.dtype.element_ty
    total = tl.zeros([BLOCK], tl.float64)
    low, high = tl.full([BLOCK], float("inf"), dtype), tl.full([BLOCK], float("-inf"), dtype)
    is_nan = tl.zeros([BLOCK], tl.int32)
    start = 0
    while start < size:
        value, taken = read(values, pixel + first, values, 1.0, start + tl.arange(0, BLOCK), size, SOURCE)
        total += tl.where(taken, value, 0.0).to(tl.float64)
        low = tl.where(taken & (value < low), value, low)
        high = tl.where(taken & (value > high), value, high)
        is_nan |= (value != value).to(tl.int32)
        start += BLOCK
    undefined = (size == 0) | (tl.max(is_nan, 0) == 1)
    nothing = tl.where(undefined, float("nan"), 0.0).to(dtype)
    average = tl.sum(total, 0) / tl.maximum(size, 1).to(tl.float64)
    tl.store(count + n, size)
    tl.store(mean + n, average.to(dtype) + nothing)
    tl.store(least + n, tl.where(undefined, nothing, tl.min(low, 0)))
    tl.store(largest + n, tl.where(undefined, nothing, tl.max(high, 0)))


@triton.jit(do_not_specialize=["quantile", "stride"])
def _quantile(
    values, pixel, offset, frame, largest, out, quantile, stride, pixels,
    LINEAR: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    values, first, size = _values_of(values, offset, frame, n, pixels, SOURCE)
    pixel += first
    position = tl.maximum(size - 1, 0).to(tl.float64) * number_of(quantile)
    rank = position.to(tl.int32)
    key = key_of_rank(values, pixel, values, 1.0, size, rank, SOURCE, BLOCK)
    found = value_of(key)
    if LINEAR:
        fraction = position - rank.to(tl.float64)
        above = value_of(next_key(values, pixel, values, 1.0, size, rank, key, SOURCE, BLOCK))
        weight, step = fraction.to(found.dtype), above - found
        between = tl.where(weight < 0.5, found + weight * step, above - step * (1 - weight))
        # Equal neighbours may be infinite, and what lies above a rank that is met exactly must not be read.
        found = tl.where((fraction == 0) | (found == above), found, between)
    top = tl.load(largest + n)  # NaN where there is nothing, or a NaN
    tl.store(out + n.to(tl.int64) * stride, tl.where(top == top, found, top))


@triton.jit(do_not_specialize=["instances"])
def _entry_grad(grad_mean, offset, grad_values, entries, instances, BLOCK: tl.constexpr):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = instance_of(offset, entry, instances)
    grad = tl.load(grad_mean + n)
    size = tl.load(offset + n + 1) - tl.load(offset + n)
    tl.store(grad_values + entry, divide(grad, size.to(grad.dtype)), mask=entry < entries)


@triton.jit(do_not_specialize=["blocks"])
def _image_grad(grad_mean, pixel, offset, of_frame, begin, grad_values, blocks, pixels, BLOCK: tl.constexpr):
    """Masks that overlap add up in their order: each pixel looks itself up in every mask of its frame, which are those
    of of_frame[begin[b]:begin[b + 1]]."""
    b = tl.program_id(0) // blocks
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], grad_values.dtype.element_ty)
    place, end = tl.load(begin + b), tl.load(begin + b + 1)
    while place < end:
        n = tl.load(of_frame + place)
        low = tl.load(offset + n)
        size = tl.load(offset + n + 1) - low
        if size > 0:
            grad = tl.load(grad_mean + n)
            # The last of the mask's pixels that does not come after this one, or its first.
            first = tl.zeros_like(at) + low
            last = first + (size - 1)
            left = size
            while left > 1:
                middle = first + (last - first + 1) // 2
                comes_after = tl.load(pixel + middle) > at
                first, last = tl.where(comes_after, first, middle), tl.where(comes_after, middle - 1, last)
                left = (left + 1) // 2
            total += tl.where(tl.load(pixel + first) == at, divide(grad, size.to(grad.dtype)), 0.0)
        place += 1
    tl.store(grad_values + b.to(tl.int64) * pixels + at, total, mask=at < pixels)


def _source(values: Tensor) -> int:
    return IMAGE.value if values.dim() == 4 else OWN.value


def _pixels(values: Tensor) -> int:
    return values.shape[2] * values.shape[3] if values.dim() == 4 else 0


def _fwd(
    values: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    quantiles: Sequence[float],
    linear: bool,
    count: Tensor,
    mean: Tensor,
    least: Tensor,
    largest: Tensor,
    found: Tensor,
) -> None:
    if len(frame) == 0:
        return
    check_entries("instance_stats", len(pixel))
    grid, where = (len(frame),), {"SOURCE": _source(values), "BLOCK": _BLOCK, **WIDE}
    _summary[grid](values, pixel, offset, frame, count, mean, least, largest, _pixels(values), **where)
    for q, quantile in enumerate(quantiles):
        _quantile[grid](
            values, pixel, offset, frame, largest, found[:, q:], bits_of(quantile), len(quantiles), _pixels(values),
            LINEAR=linear, **where,
        )  # fmt: skip


def _bwd(grad_mean: Tensor, values: Tensor, pixel: Tensor, offset: Tensor, frame: Tensor, grad_values: Tensor) -> None:
    if grad_values.numel() == 0:
        return
    if values.dim() == 1:
        grid = (triton.cdiv(len(pixel), _BLOCK),)
        _entry_grad[grid](grad_mean, offset, grad_values, len(pixel), len(frame), BLOCK=_BLOCK, **SETTINGS)
        return
    check_plane("instance_stats", *values.shape[2:])
    pixels = _pixels(values)
    blocks = triton.cdiv(pixels, _BLOCK)
    ordered, of_frame = frame.sort(stable=True)
    begin = torch.searchsorted(ordered, torch.arange(len(values) + 1, dtype=frame.dtype, device=frame.device))
    _image_grad[(len(values) * blocks,)](
        grad_mean, pixel, offset, of_frame, begin, grad_values, blocks, pixels, BLOCK=_BLOCK, **SETTINGS
    )


instance_stats = differentiable(
    native.define_launched("instance_stats_fwd", _fwd), native.define_launched("instance_stats_bwd", _bwd)
)
