"""Instance masks as ragged pixels (mcd/instances.py): which instance an entry belongs to."""

from __future__ import annotations

import triton
import triton.language as tl

from mcd.kernels.common import INT32_MAX


def check_entries(operator: str, entries: int) -> None:
    """Raise ValueError where the instances have more pixels than 32-bit offsets reach."""
    if entries > INT32_MAX - 2**16:
        raise ValueError(f"{operator}: instances have {entries} pixels, triton kernels reach up to 2^31 - 2^16")


@triton.jit
def instance_of(offset, entry, count):
    """By bisection; `entry` may lie beyond the last instance, which it then gets."""
    low = tl.zeros_like(entry)
    high = low + (count - 1)
    while count > 1:
        middle = (low + high + 1) // 2
        begun = tl.load(offset + middle) <= entry
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle - 1)
        count = (count + 1) // 2
    return low
