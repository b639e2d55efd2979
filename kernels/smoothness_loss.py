"""Smoothness of disparity in Triton. The formula stands in mcd/ops/smoothness_loss.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import SETTINGS, check_plane, divide
from mcd.ops import native
from mcd.ops.smoothness_loss import differentiable

_BLOCK = 256
_PROGRAMS = 32  # that share the pixels of a sample, at most
# Of a program's pixels: the sums of disparity, pixels, cost along x, pairs along x, cost along y, pairs along y.
_SUMS = 8
_ROWS = 16  # samples that the finishing program takes at once


@triton.jit
def _exp_negative(x):
    """exp(x) for x <= 0, to about the last bit."""
    single: tl.constexpr = x.dtype == tl.float32
    terms: tl.constexpr = 7 if single else 13
    bounded = tl.maximum(x, -87.0 if single else -700.0)
    whole = (bounded * 1.4426950408889634 - 0.5).to(tl.int32)
    steps = whole.to(x.dtype)
    # ln 2 in two parts: the first has few enough bits for an exact product.
    rest = (bounded - steps * 0.693145751953125) - steps * 1.4286068203094173e-6
    result = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(terms):
        result = 1 + result * rest * (1.0 / (terms - k))
    if single:
        power = ((whole + 127) << 23).to(tl.float32, bitcast=True)
    else:
        power = ((whole.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return tl.where(x == x, result * power, x)


@triton.jit
def _weight(guide, at, step, exists, plane, channels, MASKED: tl.constexpr, dtype: tl.constexpr):
    """What weighs the difference of two neighbours: the image between them, or whether both lie in the mask."""
    if MASKED:
        both = tl.load(guide + at, mask=exists, other=0).to(tl.int32)
        both &= tl.load(guide + at + step, mask=exists, other=0).to(tl.int32)
        weight = both.to(dtype)
    else:
        difference = tl.zeros(at.shape, dtype)
        left = channels
        while left > 0:
            here = tl.load(guide + at, mask=exists, other=0.0).to(dtype)
            difference += tl.abs(here - tl.load(guide + at + step, mask=exists, other=0.0).to(dtype))
            guide += plane
            left -= 1
        share = divide(tl.full([1], 1.0, dtype), channels.to(dtype))
        weight = tl.where(exists, _exp_negative(-difference * share), 0.0)
    return weight


@triton.jit
def _cost(a, b, weight):
    """A NaN without weight costs nothing."""
    return tl.where(weight != 0, tl.abs(a - b) * weight, 0.0)


@triton.jit(do_not_specialize=["channels", "height", "width"])
def _sum_pairs(
    disparity, guide, sums, pixels, channels, height, width,
    MASKED: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = disparity.dtype.element_ty
    b = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    disparity += b * pixels
    guide += b * channels * pixels
    total, area = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    cost_x, pairs_x = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    cost_y, pairs_y = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    start = tl.program_id(0) % PROGRAMS * BLOCK
    while start < pixels:
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        has_right, has_below = inside & (at % width < width - 1), inside & (at // width < height - 1)
        here = tl.load(disparity + at, mask=inside, other=0.0)
        taken = inside
        if MASKED:
            taken = tl.load(guide + at, mask=inside, other=0).to(tl.int32) != 0
        total += tl.where(taken, here, 0.0)
        area += taken.to(dtype)
        weight = _weight(guide, at, 1, has_right, pixels, channels, MASKED, dtype)
        cost_x += _cost(here, tl.load(disparity + at + 1, mask=has_right, other=0.0), weight)
        pairs_x += weight if MASKED else has_right.to(dtype)
        weight = _weight(guide, at, width, has_below, pixels, channels, MASKED, dtype)
        cost_y += _cost(here, tl.load(disparity + at + width, mask=has_below, other=0.0), weight)
        pairs_y += weight if MASKED else has_below.to(dtype)
        start += PROGRAMS * BLOCK
    sums += tl.program_id(0).to(tl.int64) * 8
    tl.store(sums, tl.sum(total, 0))
    tl.store(sums + 1, tl.sum(area, 0))
    tl.store(sums + 2, tl.sum(cost_x, 0))
    tl.store(sums + 3, tl.sum(pairs_x, 0))
    tl.store(sums + 4, tl.sum(cost_y, 0))
    tl.store(sums + 5, tl.sum(pairs_y, 0))


@triton.jit
def _samples(sums, first, s, batch, PROGRAMS: tl.constexpr, ROWS: tl.constexpr):
    """One of the sums of samples [first, first + ROWS) at scale s, in the order of their programs; 0 beyond."""
    b = first + tl.arange(0, ROWS)[:, None]
    at = ((s * batch + b) * PROGRAMS + tl.arange(0, PROGRAMS)[None, :]) * 8
    return tl.sum(tl.load(sums + at, mask=b < batch, other=0.0).to(tl.float64), 1)


@triton.jit(do_not_specialize=["batch", "scales"])
def _finish(sums, loss, factors, batch, scales, PROGRAMS: tl.constexpr, ROWS: tl.constexpr):
    """One program for all: the loss, and for each sample and scale the factors of its gradient."""
    dtype: tl.constexpr = factors.dtype.element_ty
    total = tl.zeros([ROWS], tl.float64)
    weight = tl.full([ROWS], 1.0, tl.float64) / scales.to(tl.float64)
    s = 0
    while s < scales:
        pairs_x, pairs_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        first = 0
        while first < batch:
            pairs_x += _samples(sums + 3, first, s, batch, PROGRAMS, ROWS)
            pairs_y += _samples(sums + 5, first, s, batch, PROGRAMS, ROWS)
            first += ROWS
        over_x, over_y = weight / tl.maximum(tl.sum(pairs_x, 0), 1.0), weight / tl.maximum(tl.sum(pairs_y, 0), 1.0)
        first = 0
        while first < batch:
            area = _samples(sums + 1, first, s, batch, PROGRAMS, ROWS)
            within = tl.where(area > 0, _samples(sums, first, s, batch, PROGRAMS, ROWS), 1.0)
            over_mean = tl.where(area > 0, area, 1.0) / within
            cost = _samples(sums + 2, first, s, batch, PROGRAMS, ROWS) * over_x
            cost = (cost + _samples(sums + 4, first, s, batch, PROGRAMS, ROWS) * over_y) * over_mean
            total += cost
            b = first + tl.arange(0, ROWS)
            found = factors + (s * batch + b) * 3
            tl.store(found, (over_x * over_mean).to(dtype), mask=b < batch)
            tl.store(found + 1, (over_y * over_mean).to(dtype), mask=b < batch)
            per_pixel = cost * over_mean / tl.maximum(area, 1.0)
            tl.store(found + 2, per_pixel.to(dtype), mask=b < batch)
            first += ROWS
        weight *= 0.5
        s += 1
    tl.store(loss, tl.sum(total, 0).to(dtype))


@triton.jit
def _slope(a, b, weight):
    return tl.where(a > b, weight, tl.where(a < b, -weight, 0.0))


@triton.jit(do_not_specialize=["channels", "height", "width", "blocks"])
def _disparity_grad(
    grad_loss, disparity, guide, factors, grad, pixels, channels, height, width, blocks,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = disparity.dtype.element_ty
    b = (tl.program_id(0) // blocks).to(tl.int64)
    disparity += b * pixels
    guide += b * channels * pixels
    factors += b * 3
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    has_left, has_right = inside & (at % width > 0), inside & (at % width < width - 1)
    has_above, has_below = inside & (at // width > 0), inside & (at // width < height - 1)
    here = tl.load(disparity + at, mask=inside, other=0.0)

    right = tl.load(disparity + at + 1, mask=has_right, other=0.0)
    slope_x = _slope(here, right, _weight(guide, at, 1, has_right, pixels, channels, MASKED, dtype))
    left = tl.load(disparity + at - 1, mask=has_left, other=0.0)
    slope_x -= _slope(left, here, _weight(guide, at - 1, 1, has_left, pixels, channels, MASKED, dtype))
    below = tl.load(disparity + at + width, mask=has_below, other=0.0)
    slope_y = _slope(here, below, _weight(guide, at, width, has_below, pixels, channels, MASKED, dtype))
    above = tl.load(disparity + at - width, mask=has_above, other=0.0)
    slope_y -= _slope(above, here, _weight(guide, at - width, width, has_above, pixels, channels, MASKED, dtype))

    taken = inside
    if MASKED:
        taken = tl.load(guide + at, mask=inside, other=0).to(tl.int32) != 0
    value = tl.load(factors) * slope_x + tl.load(factors + 1) * slope_y - tl.load(factors + 2) * taken.to(dtype)
    tl.store(grad + b * pixels + at, tl.load(grad_loss) * value, mask=inside)


def _sizes(disparity: Tensor, guide: Tensor) -> tuple[int, ...]:
    _, _, height, width = disparity.shape
    check_plane("smoothness_loss", height, width)
    return height * width, guide.shape[1], height, width


def _is_masked(guide: Tensor) -> bool:
    return not guide.dtype.is_floating_point


def _fwd(disparities: list[Tensor], guides: list[Tensor], loss: Tensor, factors: Tensor) -> None:
    batch = len(disparities[0])
    blocks = triton.cdiv(max(disparity[0].numel() for disparity in disparities), _BLOCK) if batch else 1
    programs = min(triton.next_power_of_2(max(blocks, 1)), _PROGRAMS)
    sums = loss.new_empty(len(disparities), batch, programs, _SUMS)
    for scale, (disparity, guide) in enumerate(zip(disparities, guides, strict=True)):
        if batch:
            _sum_pairs[(batch * programs,)](
                disparity, guide, sums[scale], *_sizes(disparity, guide),
                MASKED=_is_masked(guide), PROGRAMS=programs, BLOCK=_BLOCK, **SETTINGS,
            )  # fmt: skip
    _finish[(1,)](sums, loss, factors, batch, len(disparities), PROGRAMS=programs, ROWS=_ROWS, **SETTINGS)


def _bwd(
    grad_loss: Tensor, disparities: list[Tensor], guides: list[Tensor], factors: Tensor, grads: list[Tensor]
) -> None:
    for disparity, guide, factor, grad in zip(disparities, guides, factors, grads, strict=True):
        if disparity.numel() == 0:
            continue
        sizes = _sizes(disparity, guide)
        blocks = triton.cdiv(sizes[0], _BLOCK)
        _disparity_grad[(len(disparity) * blocks,)](
            grad_loss, disparity, guide, factor, grad, *sizes, blocks,
            MASKED=_is_masked(guide), BLOCK=_BLOCK, **SETTINGS,
        )  # fmt: skip


smoothness_loss = differentiable(
    native.define_launched("smoothness_loss_fwd", _fwd), native.define_launched("smoothness_loss_bwd", _bwd)
)
