"""Lanczos resize of an image of bytes, to the bit what Pillow's is of columns, then of rows, several times as fast.

An output place x reads the input around (x + 1/2) · scale - 1/2, as far as 3 · max(scale, 1), with weights

    sinc(t) · sinc(t / 3),   t = distance / max(scale, 1)

that add up to 1, in steps of 2^-22. Columns are resized first, bytes stand between the two passes. Before version
13 Pillow does the same in one call; since then it begins with rows where that is less work.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from mcd.ops import native

_REACH, _BITS = 3.0, 22


def _allocate(image: Tensor, column_bounds: Tensor, *rest: Tensor) -> Tensor:
    return image.new_empty(3, rest[1].shape[1], column_bounds.shape[1])


def _between(image: Tensor, column_bounds: Tensor, *_: Tensor) -> tuple[Tensor]:
    return (image.new_empty(3, image.shape[0], column_bounds.shape[1]),)


_fwd = native.define(
    "resize_lanczos_fwd(Tensor image, Tensor column_bounds, Tensor column_weights, Tensor row_bounds, "
    "Tensor row_weights) -> Tensor",
    _allocate,
    _between,
)


def serves() -> bool:
    """Whether the compiled module is there."""
    return native.why_not("cpu") is None


def resize_lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image [H,W,3] uint8 in memory of the host at another size, as planes [3,h,w] uint8.

    Raises:
        TypeError, ValueError: the image has another dtype, shape or device, or a side is below 1.
        RuntimeError: the compiled module is missing (see :func:`serves`).
    """
    if image.dtype != torch.uint8 or image.device.type != "cpu":
        raise TypeError(f"resize_lanczos: the image is uint8 on cpu, not {image.dtype} on {image.device}")
    if image.ndim != 3 or image.shape[2] != 3 or min(*image.shape[:2], *size) < 1:
        raise ValueError(f"resize_lanczos: expected an image [H,W,3] and a size, not {list(image.shape)} and {size}")
    if not serves():
        raise RuntimeError(f"resize_lanczos: {native.why_not('cpu')}")
    return _fwd(image, *_taps(image.shape[1], size[1]), *_taps(image.shape[0], size[0]))


@lru_cache(maxsize=64)
def _taps(old: int, new: int) -> tuple[Tensor, Tensor]:
    """Of each output place: bounds [2,new], the first input place and how many; weights [new,most]. int32."""
    scale = old / new
    wide = max(scale, 1.0)
    reach = _REACH * wide
    bounds = torch.empty(2, new, dtype=torch.int32)
    weights = torch.zeros(new, 2 * math.ceil(reach) + 1, dtype=torch.int32)
    for place in range(new):
        centre = (place + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), old)
        found = [_lanczos((at - centre + 0.5) / wide) for at in range(first, last)]
        total = sum(found)
        bounds[0, place], bounds[1, place] = first, last - first
        for k, weight in enumerate(found):
            weights[place, k] = int(math.copysign(0.5, weight) + weight / total * 2**_BITS)
    return bounds, weights


def _lanczos(t: float) -> float:
    return _sinc(t) * _sinc(t / _REACH) if -_REACH <= t < _REACH else 0.0


def _sinc(t: float) -> float:
    return math.sin(math.pi * t) / (math.pi * t) if t else 1.0
