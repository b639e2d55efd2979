"""What all kernels share: how they are launched, and arithmetic that means the same everywhere.

Kernels have one fixed configuration each, so that nothing is tuned in a user's first step. Products and sums are not
fused unless the text says `tl.fma`, and float32 division is IEEE's: what two kernels both compute has the same bits.
Loops of unknown length are `while` loops: in triton's interpreter `range` needs an older numpy.

Offsets within an image plane are 32-bit, planes are found by 64-bit ones.
"""

from __future__ import annotations

import struct
from typing import Any

import triton
import triton.language as tl

SETTINGS: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
WIDE: dict[str, Any] = {**SETTINGS, "num_warps": 8}  # where four warps would spill or leave a GPU idle
INT32_MAX = 2**31 - 1


def check_plane(operator: str, *sizes: int) -> None:
    """Raise ValueError where a plane of these sizes has more pixels than 32-bit offsets reach."""
    count = 1
    for size in sizes:
        count *= size
    if count > INT32_MAX - 2**16:  # what is masked off at the end of a plane has an offset too
        raise ValueError(f"{operator}: {'x'.join(map(str, sizes))} is {count}, triton kernels reach up to 2^31 - 2^16")


def bits_of(number: float) -> int:
    """A number as kernels take it: triton itself would round it to float32."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


@triton.jit
def number_of(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def divide(a, b):
    if b.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def nan_like(x):
    return tl.full(x.shape, float("nan"), x.dtype)
