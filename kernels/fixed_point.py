"""Sums by atomics whose result does not depend on their order: in 64-bit fixed point, scaled by the largest term."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import SETTINGS

_BLOCK = 1024


def room_for(terms: int) -> int:
    """Bits that a term may have, if so many are added to one sum."""
    return 62 - terms.bit_length()


@triton.jit
def fixed_point_scale(largest, room):
    """The power of two that makes whole numbers of `room` bits of terms up to `largest` (float64, in memory)."""
    bits = tl.load(largest).to(tl.int64, bitcast=True)
    exponent = ((bits >> 52) & 0x7FF) - 1022
    return (tl.minimum(1023 + room - exponent, 2046) << 52).to(tl.float64, bitcast=True)


@triton.jit
def add_fixed_point(sums, value, scale, mask):
    tl.atomic_add(sums, (value.to(tl.float64) * scale).to(tl.int64), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["room"])
def _read(sums, largest, out, count, room, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = fixed_point_scale(largest, room)
    value = tl.load(sums + i, mask=i < count, other=0).to(tl.float64) / scale
    value = tl.where(tl.abs(tl.load(largest)) < float("inf"), value, float("nan"))
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < count)


def largest_term(terms: Tensor) -> Tensor:
    """The largest magnitude, on the device, as float64 [1]; NaN where a term is."""
    return torch.linalg.vector_norm(terms.detach(), torch.inf).double().reshape(1)


def read_fixed_point(sums: Tensor, largest: Tensor, out: Tensor, room: int) -> None:
    """Write the sums to `out`: NaN everywhere if a term was not finite."""
    count = out.numel()
    _read[(triton.cdiv(count, _BLOCK),)](sums, largest, out, count, room, BLOCK=_BLOCK, **SETTINGS)
