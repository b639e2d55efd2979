"""Exact order statistics without sorting: one program finds the values of its instance by ranks, digit after digit.

Values become unsigned integers of the same order. A histogram of their leading eight bits says which bin holds the
rank, then one of the next eight bits of what lies in that bin, and so on: each round reads the values once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mcd.kernels.common import divide

# Where values lie: one for each of the instance's pixels; in the image; or target / normalised depth, where there is a
# target.
OWN, IMAGE, RATIO = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def read(values, pixel, depth, mean, i, size, SOURCE: tl.constexpr):
    """Values i of an instance, and which of them count. `depth` and `mean` are for RATIO."""
    inside = i < size
    if SOURCE == OWN:
        value = tl.load(values + i, mask=inside, other=0.0)
    else:
        value = tl.load(values + tl.load(pixel + i, mask=inside, other=0), mask=inside, other=0.0)
    if SOURCE == RATIO:
        inside &= value > 0
        value = divide(value, divide(tl.load(depth + i, mask=inside, other=1.0), mean))
    return value, inside


@triton.jit
def key_of(value):
    """Unsigned integers in the order of the values; not for NaN."""
    if value.dtype == tl.float32:
        bits = value.to(tl.uint32, bitcast=True)
        key = tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
    else:
        bits = value.to(tl.uint64, bitcast=True)
        key = tl.where((bits >> 63) == 1, bits ^ 0xFFFFFFFFFFFFFFFF, bits ^ 0x8000000000000000)
    return key


@triton.jit
def value_of(key):
    if key.dtype == tl.uint32:
        bits = tl.where((key >> 31) == 1, key ^ 0x80000000, key ^ 0xFFFFFFFF)
        value = bits.to(tl.float32, bitcast=True)
    else:
        bits = tl.where((key >> 63) == 1, key ^ 0x8000000000000000, key ^ 0xFFFFFFFFFFFFFFFF)
        value = bits.to(tl.float64, bitcast=True)
    return value


@triton.jit
def key_of_rank(values, pixel, depth, mean, size, rank, SOURCE: tl.constexpr, BLOCK: tl.constexpr):
    dtype: tl.constexpr = values.dtype.element_ty
    found = tl.zeros([1], tl.uint32 if dtype == tl.float32 else tl.uint64)
    digits = dtype.primitive_bitwidth // 8
    while digits > 0:
        digits -= 1
        shift = (digits * 8).to(found.dtype)
        bins = tl.zeros([256], tl.int32)
        start = 0
        while start < size:
            value, taken = read(values, pixel, depth, mean, start + tl.arange(0, BLOCK), size, SOURCE)
            key = key_of(value)
            taken &= (((key ^ found) >> shift) >> 8) == 0
            bins += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=taken)
            start += BLOCK
        passed = tl.cumsum(bins, 0) <= rank
        rank -= tl.sum(tl.where(passed, bins, 0), 0)
        digit = tl.minimum(tl.sum(passed.to(tl.int32), 0), 255)
        found |= digit.to(found.dtype) << shift
    return tl.max(found, 0)


@triton.jit
def next_key(values, pixel, depth, mean, size, rank, key, SOURCE: tl.constexpr, BLOCK: tl.constexpr):
    """The key of `rank` + 1, where `key` has `rank`."""
    not_above = 0
    above = tl.full([BLOCK], 0, key.dtype) - 1
    start = 0
    while start < size:
        value, taken = read(values, pixel, depth, mean, start + tl.arange(0, BLOCK), size, SOURCE)
        other = key_of(value)
        not_above += tl.sum((taken & (other <= key)).to(tl.int32), 0)
        above = tl.where(taken & (other > key), tl.minimum(above, other), above)
        start += BLOCK
    return tl.where(not_above > rank + 1, key, tl.min(above, 0))
