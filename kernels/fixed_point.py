"""Sums by atomics whose result does not depend on their order: in 64-bit fixed point.

The largest finite term sets the scale. A term that is not finite makes the sum that it is added to NaN, and no other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import SETTINGS

_BLOCK = 1024
# Sums lie within about 2^61 of 0. What is added to a spoilt one leaves it near this, the farthest from 0.
_SPOILT = tl.constexpr(-(2**63))
_LARGEST_SUM = tl.constexpr(2**62)


def room_for(terms: int) -> int:
    """Bits that a term may have, if so many are added to one sum."""
    return 61 - terms.bit_length()


@triton.jit
def fixed_point_scale(largest, room):
    """The power of two that makes whole numbers of `room` bits of terms up to `largest` (float64, in memory)."""
    bits = tl.load(largest).to(tl.int64, bitcast=True)
    exponent = ((bits >> 52) & 0x7FF) - 1022
    return (tl.minimum(1023 + room - exponent, 2046) << 52).to(tl.float64, bitcast=True)


@triton.jit
def add_fixed_point(sums, value, scale, mask):
    finite = tl.abs(value) < float("inf")
    whole = tl.where(finite, value, 0).to(tl.float64) * scale
    tl.atomic_add(sums, whole.to(tl.int64), mask=mask & finite, sem="relaxed")
    tl.atomic_xchg(sums, tl.full(value.shape, _SPOILT, tl.int64), mask=mask & ~finite, sem="relaxed")


@triton.jit(do_not_specialize=["room"])
def _read(sums, largest, out, count, room, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = fixed_point_scale(largest, room)
    sum = tl.load(sums + i, mask=i < count, other=0)
    spoilt = (sum < -_LARGEST_SUM) | (sum > _LARGEST_SUM)
    value = tl.where(spoilt, float("nan"), sum.to(tl.float64) / scale)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < count)


@triton.jit
def _largest(terms, largest, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.abs(tl.load(terms + i, mask=i < count, other=0).to(tl.float64))
    bits = tl.where(size < float("inf"), size, 0.0).to(tl.int64, bitcast=True)  # ordered like integers
    tl.atomic_max(largest, tl.max(bits, 0), sem="relaxed")


def largest_term(terms: Tensor) -> Tensor:
    """The largest finite magnitude, on the device, as float64 [1]."""
    largest, count = torch.zeros(1, dtype=torch.int64, device=terms.device), terms.numel()
    if count:
        _largest[(triton.cdiv(count, _BLOCK),)](terms.contiguous(), largest, count, BLOCK=_BLOCK, **SETTINGS)
    return largest.view(torch.float64)


def read_fixed_point(sums: Tensor, largest: Tensor, out: Tensor, room: int) -> None:
    """Write the sums to `out`."""
    count = out.numel()
    _read[(triton.cdiv(count, _BLOCK),)](sums, largest, out, count, room, BLOCK=_BLOCK, **SETTINGS)
