"""What the instructions of PTX compute, on arrays of lanes: the operations that NumPy has no operator for.

Single-precision products and sums are fused through double precision. That rounds twice, to the same number but for
about one in 2^29 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
"""An array with an entry for each lane, or a NumPy scalar that all lanes share."""

f4, f8, i4, i8, u2, u4, u8 = (np.dtype(name) for name in ("f4", "f8", "i4", "i8", "u2", "u4", "u8"))


def fma4(a: Array, b: Array, c: Array) -> Array:
    return (np.multiply(a, b, dtype=f8) + c).astype(f4)


def fma8(a: Array, b: Array, c: Array) -> Array:
    """The product's rounding error is found by splitting its factors, the sum's by subtracting."""
    product = a * b
    high_a, high_b = _upper_half(a), _upper_half(b)
    low_a, low_b = a - high_a, b - high_b
    lost = low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)
    total = product + c
    part = total - product
    lost = lost + ((product - (total - part)) + (c - part))
    return np.where(np.isfinite(lost), total + lost, total)


def _upper_half(a: Array) -> Array:
    scaled = a * 134217729.0
    return scaled - (scaled - a)


def wide(a: Array, b: Array) -> Array:
    """The product in twice the bits."""
    twice = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return np.multiply(a, b, dtype=twice)


def high(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    if a.dtype.itemsize < 8:
        return (wide(a, b) >> (8 * a.dtype.itemsize)).astype(a.dtype)
    product = np.atleast_1d(a).astype(object) * np.atleast_1d(b).astype(object)
    return np.array([(value >> 64) for value in product], a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Towards zero. Of a division by 0 PTX does not say what it is: all bits."""
    a, b = np.broadcast_arrays(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, ~a.dtype.type(0), quotient)


def remainder(a: Array, b: Array) -> Array:
    return a - divide(a, b) * b


def shift_left(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < bits, shifted, a.dtype.type(0))


def funnel(a: Array, b: Array, by: Array, left: bool, wraps: bool) -> Array:
    """shf: 32 bits of the 64 that b and a make, the shift taken modulo 32 or at most 32."""
    both = (np.broadcast_arrays(b, a)[0].astype(u8) << u8.type(32)) | a
    by = (by & u4.type(31) if wraps else np.minimum(by, u4.type(32))).astype(u8)
    return ((both << by) >> u8.type(32) if left else both >> by).astype(u4)


def extract(a: Array, first: Array, count: Array) -> Array:
    """bfe of an unsigned number, or of a signed one, whose sign is the last bit that is taken."""
    bits = 8 * a.dtype.itemsize
    first, count = np.minimum(first & u4.type(255), bits), np.minimum(count & u4.type(255), bits)
    unsigned = a.view(f"u{a.dtype.itemsize}")
    field = shift_right(unsigned, first) & (shift_left(np.ones_like(unsigned), count) - unsigned.dtype.type(1))
    if a.dtype.kind == "u":
        return field
    last = np.minimum(first.astype(i4) + count.astype(i4) - 1, bits - 1)
    sign = (shift_right(unsigned, last.astype(u4)) & unsigned.dtype.type(1)) & (count > 0)
    return (
        (field | np.where(sign == 1, shift_left(~np.zeros_like(unsigned), count), 0))
        .astype(unsigned.dtype)
        .view(a.dtype)
    )


def insert(a: Array, b: Array, first: Array, count: Array) -> Array:
    mask = shift_left(shift_left(np.ones_like(b), count & u4.type(255)) - b.dtype.type(1), first & u4.type(255))
    return (b & ~mask) | (shift_left(a, first & u4.type(255)) & mask)


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit by bit, the entry of the table that the three bits number."""
    result = np.zeros_like(a | b | c)
    for entry in range(8):
        if table >> entry & 1:
            result |= (a if entry & 4 else ~a) & (b if entry & 2 else ~b) & (c if entry & 1 else ~c)
    return result


def permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt: bytes chosen from the eight of b and a; the upper bit of a choice takes the byte's sign instead."""
    both = (np.broadcast_arrays(b, a)[0].astype(u8) << u8.type(32)) | a
    result = np.zeros(np.shape(both), u4)
    for i in range(4):
        choice = (selector >> u4.type(4 * i)) & u4.type(15)
        byte = ((both >> ((choice & u4.type(7)).astype(u8) * u8.type(8))) & u8.type(255)).astype(u4)
        byte = np.where(choice & u4.type(8), np.where(byte & u4.type(128), u4.type(255), u4.type(0)), byte)
        result |= byte << u4.type(8 * i)
    return result


def leading_zeros(a: Array) -> Array:
    bits, left = 8 * a.dtype.itemsize, np.zeros(np.shape(a), u4)
    rest = a.copy()
    step = bits // 2
    while step:
        empty = (rest >> a.dtype.type(bits - step)) == 0
        left += np.where(empty, u4.type(step), u4.type(0))
        rest = np.where(empty, rest << a.dtype.type(step), rest)
        step //= 2
    return left + (rest >> a.dtype.type(bits - 1) == 0)


def reversed_bits(a: Array) -> Array:
    octets = np.unpackbits(a[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(octets[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]


_ROUND = {"n": np.rint, "z": np.trunc, "m": np.floor, "p": np.ceil}


def to_whole(x: Array, rounding: str) -> Array:
    return _ROUND[rounding](x)


def to_integer(x: Array, kind: str, rounding: str) -> Array:
    """Rounded and held within the integer's range; NaN is 0."""
    kind_of = np.iinfo(kind)
    whole = _ROUND[rounding](x).astype(f8)
    low, large = whole < float(kind_of.min), whole >= float(kind_of.max)
    inside = ~(low | large | np.isnan(whole))
    return np.where(
        inside, np.where(inside, whole, 0).astype(kind), np.where(large, kind_of.max, np.where(low, kind_of.min, 0))
    ).astype(kind)


def narrow(x: Array, rounding: str, kind: np.dtype) -> Array:
    """A float, or an integer, in a smaller format, rounded in one of the four ways."""
    near = x.astype(kind)
    if rounding == "n":
        return near
    back = near.astype(x.dtype)
    towards = {"z": np.where(x > 0, back > x, back < x), "m": back > x, "p": back < x}[rounding]
    target = {"z": 0, "m": -np.inf, "p": np.inf}[rounding]
    return np.where(towards, np.nextafter(near, kind.type(target)), near)


def to_bfloat16(x: Array) -> Array:
    bits = x.view(u4)
    rounded = ((bits + u4.type(0x7FFF) + ((bits >> u4.type(16)) & u4.type(1))) >> u4.type(16)).astype(u2)
    return np.where(np.isnan(x), u2.type(0x7FFF), rounded)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(u4) << u4.type(16)).view(f4)


# The approximate functions, each correctly rounded where the device is within its documented error.
APPROXIMATE = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "rcp": lambda x: 1 / x,
}


def approximate(name: str, x: Array) -> Array:
    return APPROXIMATE[name](x.astype(f8)).astype(x.dtype)


def flushed(x: Array) -> Array:
    """Zeros in place of numbers too small for a normal float."""
    return np.where(abs(x) < np.finfo(f4).tiny, np.copysign(f4.type(0), x), x)


def compare(how: str, a: Array, b: Array) -> Array:
    """setp; a trailing u makes a comparison with NaN true."""
    if how in ("num", "nan"):
        either = (a != a) | (b != b)
        return either if how == "nan" else ~either
    if how == "ne" and a.dtype.kind == "f":
        return (a < b) | (a > b)
    opposite = {"equ": "ne", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
    if how in opposite:
        return ~compare(opposite[how], a, b)
    operation = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge", "neu": "ne"}.get(how, how)
    function = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
    return function.get(operation, np.greater_equal)(a, b)
