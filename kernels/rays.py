"""Rays into another frame and the look back, for the forward warp; the formula stands in mcd/ops/forward_warp.py."""

from __future__ import annotations

import triton
import triton.language as tl

from mcd.kernels.camera import (
    CAMERA,
    apply_row,
    inverse,
    load_column,
    load_tile,
    matmul,
    project,
    store_camera,
    store_tile,
    tile_axes,
)
from mcd.kernels.common import divide
from mcd.ops.backward_warp import NEAREST

# A sample's cameras: there, back, and K Rᵀ, which is what a motion moves the way back by.
BACK, UNDO, CAMERAS = tl.constexpr(CAMERA), tl.constexpr(2 * CAMERA), tl.constexpr(2 * CAMERA + 9)
_NEAREST = tl.constexpr(NEAREST)


@triton.jit
def load_back(T_dst_ref):
    """Rᵀ, and -Rᵀ t as a row [1, 4]."""
    i, _ = tile_axes()
    translation = tl.load(T_dst_ref + 3 + 4 * i, mask=i < 3, other=0.0).to(tl.float64)
    return load_tile(T_dst_ref, 1, 4), -tl.sum(load_tile(T_dst_ref, 4, 1) * translation, 0)[None, :]


@triton.jit
def find_cameras(K, T_dst_ref, cameras):
    """One program for each sample. Forward and backward both run it, so that backward finds the very rays that won."""
    b = tl.program_id(0).to(tl.int64)
    K += b * 9
    T_dst_ref += b * 16
    cameras += b * CAMERAS
    tile, inverse_K = load_tile(K, 3, 1), inverse(K)
    store_camera(cameras, tile, load_tile(T_dst_ref, 4, 1), load_column(T_dst_ref + 3, 4), inverse_K)
    rotation, translation = load_back(T_dst_ref)
    store_camera(cameras + BACK, tile, rotation, translation, inverse_K)
    store_tile(cameras + UNDO, matmul(tile, rotation))


@triton.jit
def ray_offset(i, upscale, dtype: tl.constexpr):
    """Offset of ray i along an axis."""
    return divide(i.to(dtype) - (upscale - 1).to(dtype) * 0.5, upscale.to(dtype))


@triton.jit
def load_shift(camera, motion, b, pixel, inside, pixels, like, MOTION: tl.constexpr):
    """b + K m of pixels."""
    nothing = tl.zeros_like(like)
    shift_x, shift_y = nothing + tl.load(camera + 9), nothing + tl.load(camera + 10)
    shift_z = nothing + tl.load(camera + 11)
    if MOTION:
        for j in tl.static_range(3):
            m = tl.load(motion + (b * 3 + j) * pixels + pixel, mask=inside, other=0.0)
            shift_x = tl.fma(nothing + tl.load(camera + 12 + j), m, shift_x)
            shift_y = tl.fma(nothing + tl.load(camera + 15 + j), m, shift_y)
            shift_z = tl.fma(nothing + tl.load(camera + 18 + j), m, shift_z)
    return shift_x, shift_y, shift_z


@triton.jit
def land_component(row, x, y, depth, shift):
    nothing = tl.zeros_like(x)
    ray = tl.fma(nothing + tl.load(row + 1), y, nothing + tl.load(row + 2))
    return tl.fma(depth, tl.fma(nothing + tl.load(row), x, ray), shift)


@triton.jit
def land(camera, x, y, depth, shift_x, shift_y, shift_z, height, width):
    """Where rays land: the cell, the depth there, and whether they land at all."""
    q_x = land_component(camera, x, y, depth, shift_x)
    q_y = land_component(camera + 3, x, y, depth, shift_y)
    q_z = land_component(camera + 6, x, y, depth, shift_z)
    over = divide(tl.full(q_z.shape, 1.0, q_z.dtype), q_z)
    half = tl.full(q_z.shape, 0.5, q_z.dtype)
    column, row = tl.fma(q_x, over, half), tl.fma(q_y, over, half)
    # Comparisons with NaN are false.
    lands = (depth > 0) & (q_z > _NEAREST) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = tl.where(lands, row, 0.0).to(tl.int32) * width + tl.where(lands, column, 0.0).to(tl.int32)
    return cell, q_z, lands


@triton.jit
def look_back(cameras, motion, b, pixel, z, winner, hit, pixels, height, width, MOTION: tl.constexpr):
    """Where cells read the attribute: their pixel, the motion of their winner, the ray, u, and 1 / p_z."""
    x, y = (pixel % width).to(z.dtype), (pixel // width).to(z.dtype)
    motion_x, motion_y, motion_z = tl.zeros_like(z), tl.zeros_like(z), tl.zeros_like(z)
    undone_x, undone_y, undone_z = motion_x, motion_y, motion_z
    if MOTION:
        from_winner = motion + b * 3 * pixels + winner
        motion_x = tl.load(from_winner, mask=hit, other=0.0)
        motion_y = tl.load(from_winner + pixels, mask=hit, other=0.0)
        motion_z = tl.load(from_winner + 2 * pixels, mask=hit, other=0.0)
        undone_x = -apply_row(cameras + UNDO, motion_x, motion_y, motion_z)
        undone_y = -apply_row(cameras + UNDO + 3, motion_x, motion_y, motion_z)
        undone_z = -apply_row(cameras + UNDO + 6, motion_x, motion_y, motion_z)
    distance = tl.where(hit, z, 1.0)
    ray_x, ray_y, ray_z, u_x, u_y, _, scale = project(cameras + BACK, x, y, distance, undone_x, undone_y, undone_z, 0.0)
    return x, y, (motion_x, motion_y, motion_z), (ray_x, ray_y, ray_z), u_x, u_y, scale
