"""Bilinear look-up in an image at clamped coordinates, and bilinear upsampling with its adjoint."""

from __future__ import annotations

import triton
import triton.language as tl

from mcd.kernels.common import divide


@triton.jit
def clamp_coord(u, limit):
    """Clamped to [0, limit]; NaN becomes the limit."""
    return tl.maximum(tl.where(u < limit, u, limit), 0.0)


@triton.jit
def moves_freely(u, limit):
    """Whether a gradient passes the clamp."""
    return (u >= 0) & (u < limit)


@triton.jit
def corner(u_x, u_y, height, width):
    """Offset of the upper left of four pixels, how far the right and lower ones lie from it, and their weights."""
    x = clamp_coord(u_x, (width - 1).to(u_x.dtype))
    y = clamp_coord(u_y, (height - 1).to(u_y.dtype))
    column = x.to(tl.int32)
    row = y.to(tl.int32)
    right = (column < width - 1).to(tl.int32)
    down = tl.where(row < height - 1, width, 0)
    return row * width + column, right, down, x - column.to(x.dtype), y - row.to(y.dtype)


@triton.jit
def load_patch(plane, at, right, down, inside, dtype: tl.constexpr):
    """The four pixels around a point: upper left, upper right, lower left, lower right."""
    return (
        tl.load(plane + at, mask=inside, other=0.0).to(dtype),
        tl.load(plane + at + right, mask=inside, other=0.0).to(dtype),
        tl.load(plane + at + down, mask=inside, other=0.0).to(dtype),
        tl.load(plane + at + down + right, mask=inside, other=0.0).to(dtype),
    )


@triton.jit
def bilinear(upper_left, upper_right, lower_left, lower_right, w_x, w_y):
    top = upper_left + w_x * (upper_right - upper_left)
    bottom = lower_left + w_x * (lower_right - lower_left)
    return top + w_y * (bottom - top)


@triton.jit
def bilinear_grad(upper_left, upper_right, lower_left, lower_right, w_x, w_y):
    """By x and by y."""
    top = upper_right - upper_left
    bottom = lower_right - lower_left
    return top + w_y * (bottom - top), (lower_left - upper_left) + w_x * (bottom - top)


@triton.jit
def between(i, size, small_size, dtype: tl.constexpr):
    """Pixel i of an image of `size` reads pixels low and high of a small one, high with this weight; areas align."""
    ratio = divide(small_size.to(dtype), size.to(dtype))
    at = tl.maximum((i.to(dtype) + 0.5) * ratio - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), small_size - 1)
    return low, tl.minimum(low + 1, small_size - 1), at - low.to(dtype)


@triton.jit
def load_upsampled(plane, y, x, height, width, small_height, small_width, inside):
    dtype: tl.constexpr = plane.dtype.element_ty
    top, bottom, w_y = between(y, height, small_height, dtype)
    left, right, w_x = between(x, width, small_width, dtype)
    upper_left = tl.load(plane + top * small_width + left, mask=inside, other=1.0)
    upper_right = tl.load(plane + top * small_width + right, mask=inside, other=1.0)
    lower_left = tl.load(plane + bottom * small_width + left, mask=inside, other=1.0)
    lower_right = tl.load(plane + bottom * small_width + right, mask=inside, other=1.0)
    upper = (1 - w_x) * upper_left + w_x * upper_right
    lower = (1 - w_x) * lower_left + w_x * lower_right
    return (1 - w_y) * upper + w_y * lower


@triton.jit
def first_reader(j, size, small_size, dtype: tl.constexpr):
    """The first pixel of the large image that may read pixel j of the small one."""
    ratio = divide(small_size.to(dtype), size.to(dtype))
    return tl.maximum(divide(j.to(dtype) - 0.5, ratio) - 1.5, 0.0).to(tl.int32)


@triton.jit
def weight_of(j, i, size, small_size, dtype: tl.constexpr):
    """What pixel j of the small image weighs in pixel i of the large one."""
    low, high, weight = between(i, size, small_size, dtype)
    return tl.where(low == j, 1 - weight, 0.0) + tl.where(high == j, weight, 0.0)


@triton.jit
def _share(weight, value):
    """A NaN reaches only those that it has a weight for."""
    return tl.where(weight != 0, weight * value, 0.0)


def readers(size: int, small_size: int) -> int:
    """How many pixels from `first_reader` on may read one small pixel."""
    return 2 * -(-size // small_size) + 4


@triton.jit(do_not_specialize=["height", "width", "small_height", "small_width", "readers_y", "readers_x"])
def upsampling_adjoint(
    large, small, count, height, width, small_height, small_width, readers_y, readers_x, BLOCK: tl.constexpr
):
    """A small pixel's gradient, gathered from the large pixels that read it, in a fixed order."""
    dtype: tl.constexpr = large.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    column = (i % small_width).to(tl.int32)
    row = (i // small_width % small_height).to(tl.int32)
    image = large + i // small_width // small_height * height * width
    top = first_reader(row, height, small_height, dtype)
    left = first_reader(column, width, small_width, dtype)
    total = tl.zeros([BLOCK], dtype)
    y = top
    while readers_y > 0:
        line = tl.zeros([BLOCK], dtype)
        x = left
        step = readers_x
        while step > 0:
            value = tl.load(image + y * width + x, mask=inside & (y < height) & (x < width), other=0.0)
            line += _share(weight_of(column, x, width, small_width, dtype), value)
            x += 1
            step -= 1
        total += _share(weight_of(row, y, height, small_height, dtype), line)
        y += 1
        readers_y -= 1
    tl.store(small + i, total, mask=inside)
