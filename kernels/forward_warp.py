"""Forward warp in Triton. The formula stands in mcd/ops/forward_warp.py."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.bilinear import bilinear, bilinear_grad, corner, load_patch, moves_freely
from mcd.kernels.camera import (
    SUMS,
    apply_column,
    camera_grad,
    inverse,
    load_column,
    load_tile,
    ray_component,
    sum_of_programs,
    tile_axes,
)
from mcd.kernels.common import INT32_MAX, SETTINGS, WIDE, check_plane
from mcd.kernels.fixed_point import add_fixed_point, fixed_point_scale, largest_term, read_fixed_point, room_for
from mcd.kernels.rays import CAMERAS, UNDO, find_cameras, land, load_back, load_shift, look_back, ray_offset
from mcd.ops import native
from mcd.ops.forward_warp import differentiable

_BLOCK = 256  # pixels of a program
_NOTHING = tl.constexpr(2**64 - 1)  # the key of a hole
# Sums over a program's cells that make up the gradient of T_dst_ref. On the way back: of grad_p · z · (x, y, 1),
# grad_p, and motion · (Kᵀ grad_p)ᵀ; on the way there: of grad_z · depth · (x', y', 1), and grad_z.
_SUMS = tl.constexpr(SUMS)
_SIZES = ["channels", "height", "width", "blocks", "upscale"]


@triton.jit(do_not_specialize=_SIZES)
def _splat(
    depth, motion, cameras, keys, rays, pixels, height, width, blocks, upscale,
    MOTION: tl.constexpr, FIND_RAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The z-buffer: the atomic minimum of (depth, ray) as one number of 64 bits; positive floats are in the order of
    their bits. In float64, whose bits fill it, that of the depths first, then that of the rays which reach it."""
    dtype: tl.constexpr = depth.dtype.element_ty
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    camera = cameras + b * CAMERAS
    distance = tl.load(depth + b * pixels + pixel, mask=inside, other=0.0)
    shift_x, shift_y, shift_z = load_shift(camera, motion, b, pixel, inside, pixels, distance, MOTION)
    x, y = (pixel % width).to(dtype), (pixel // width).to(dtype)
    count = upscale * upscale
    k = 0
    while k < count:
        x_ray, y_ray = x + ray_offset(k % upscale, upscale, dtype), y + ray_offset(k // upscale, upscale, dtype)
        cell, z, lands = land(camera, x_ray, y_ray, distance, shift_x, shift_y, shift_z, height, width)
        lands &= z < float("inf")
        ray = (pixel.to(tl.int64) * count + k).to(tl.uint64)
        at = b * pixels + cell
        if dtype == tl.float32:
            key = (z.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | ray
            tl.atomic_min(keys + at, key, mask=lands, sem="relaxed")
        else:
            key = z.to(tl.uint64, bitcast=True)
            if FIND_RAY:
                reaches = lands & (tl.load(keys + at, mask=lands, other=0) == key)
                tl.atomic_min(rays + at, ray, mask=reaches, sem="relaxed")
            else:
                tl.atomic_min(keys + at, key, mask=lands, sem="relaxed")
        k += 1


@triton.jit(do_not_specialize=_SIZES)
def _resample(
    attribute, motion, cameras, keys, rays, warped, depth_dst, winner, ray,
    pixels, channels, height, width, blocks, upscale,
    MOTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = depth_dst.dtype.element_ty
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    at = b * pixels + pixel
    key = tl.load(keys + at, mask=inside, other=_NOTHING)
    hit = key != _NOTHING
    if dtype == tl.float32:
        z = (key >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
        won = (key & 0xFFFFFFFF).to(tl.int64)
    else:
        z = key.to(tl.float64, bitcast=True)
        won = tl.load(rays + at, mask=hit, other=0).to(tl.int64)
    z = tl.where(hit, z, 0.0)
    won = tl.where(hit, won, 0)
    count = upscale * upscale
    source = (won // count).to(tl.int32)
    tl.store(depth_dst + at, z, mask=inside)
    tl.store(winner + at, tl.where(hit, source, -1), mask=inside)
    tl.store(ray + at, (won % count).to(tl.int16), mask=inside)
    _, _, _, _, u_x, u_y, _ = look_back(
        cameras + b * CAMERAS, motion, b, pixel, z, source, hit, pixels, height, width, MOTION
    )
    corner_at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upper_left, upper_right, lower_left, lower_right = load_patch(
            attribute + plane, corner_at, right, down, hit, dtype
        )
        value = tl.where(hit, bilinear(upper_left, upper_right, lower_left, lower_right, w_x, w_y), 0.0)
        tl.store(warped + plane + pixel, value.to(warped.dtype.element_ty), mask=inside)
        plane += pixels


@triton.jit(do_not_specialize=_SIZES)
def _cell_grad(
    grad_warped, grad_depth_dst, attribute, depth, motion, cameras, depth_dst, winner, ray, to_z, to_motion, sums,
    pixels, channels, height, width, blocks, upscale,
    MOTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each cell hands its winner, and the sums for the camera."""
    dtype: tl.constexpr = depth.dtype.element_ty
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    at = b * pixels + pixel
    cameras += b * CAMERAS
    source = tl.load(winner + at, mask=inside, other=-1)
    hit = source >= 0
    source = tl.maximum(source, 0)
    z = tl.load(depth_dst + at, mask=inside, other=0.0)
    x, y, motions, look, u_x, u_y, scale = look_back(
        cameras, motion, b, pixel, z, source, hit, pixels, height, width, MOTION
    )
    corner_at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    grad_x, grad_y = tl.zeros_like(u_x), tl.zeros_like(u_x)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upper_left, upper_right, lower_left, lower_right = load_patch(
            attribute + plane, corner_at, right, down, hit, dtype
        )
        by_x, by_y = bilinear_grad(upper_left, upper_right, lower_left, lower_right, w_x, w_y)
        upstream = tl.load(grad_warped + plane + pixel, mask=hit, other=0.0).to(dtype)
        grad_x += upstream * by_x
        grad_y += upstream * by_y
        plane += pixels
    # Choices, not products: u and its scale may be infinite where nothing moves.
    moves_x = hit & moves_freely(u_x, (width - 1).to(dtype))
    moves_y = hit & moves_freely(u_y, (height - 1).to(dtype))
    grad_p_x, grad_p_y = tl.where(moves_x, grad_x * scale, 0.0), tl.where(moves_y, grad_y * scale, 0.0)
    grad_p_z = -(tl.where(moves_x, grad_p_x * u_x, 0.0) + tl.where(moves_y, grad_p_y * u_y, 0.0))
    to_depth = tl.load(grad_depth_dst + at, mask=hit, other=0.0)
    to_depth += grad_p_x * look[0] + grad_p_y * look[1] + grad_p_z * look[2]
    to_depth = tl.where(hit, to_depth, 0.0)
    tl.store(to_z + at, to_depth, mask=inside)

    k = tl.load(ray + at, mask=inside, other=0).to(tl.int32)
    x_ray = (source % width).to(dtype) + ray_offset(k % upscale, upscale, dtype)
    y_ray = (source // width).to(dtype) + ray_offset(k // upscale, upscale, dtype)
    by_depth = to_depth * tl.load(depth + b * pixels + source, mask=hit, other=0.0)
    sums += tl.program_id(0).to(tl.int64) * _SUMS
    tl.store(sums + 21, tl.sum(by_depth * x_ray, 0))
    tl.store(sums + 22, tl.sum(by_depth * y_ray, 0))
    tl.store(sums + 23, tl.sum(by_depth, 0))
    tl.store(sums + 24, tl.sum(to_depth, 0))
    grad_p = (grad_p_x, grad_p_y, grad_p_z)
    for i in tl.static_range(3):
        by_z = grad_p[i] * z
        tl.store(sums + 3 * i, tl.sum(by_z * x, 0))
        tl.store(sums + 3 * i + 1, tl.sum(by_z * y, 0))
        tl.store(sums + 3 * i + 2, tl.sum(by_z, 0))
        tl.store(sums + 9 + i, tl.sum(grad_p[i], 0))
        if MOTION:
            seen = apply_column(cameras + 12 + i, grad_p_x, grad_p_y, grad_p_z)
            for j in tl.static_range(3):
                tl.store(sums + 12 + 3 * j + i, tl.sum(motions[j] * seen, 0))
            undone = apply_column(cameras + UNDO + i, grad_p_x, grad_p_y, grad_p_z)
            handed = to_depth * tl.load(cameras + 18 + i) - undone
            tl.store(to_motion + (b * 3 + i) * pixels + pixel, handed, mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def _camera_grad(K, T_dst_ref, sums, grad_T, blocks, MOTION: tl.constexpr):
    """One program for each sample: its sums, added in the order of the programs that made them."""
    b = tl.program_id(0).to(tl.int64)
    K += b * 9
    T_dst_ref += b * 16
    i, j = tile_axes()
    inside = (i < 3) & (j < 3)
    first, column = b * blocks, inside & (j == 0)
    back_A = sum_of_programs(sums, first, blocks, 3 * i + j, inside)
    back_b = tl.sum(sum_of_programs(sums, first, blocks, 9 + i + 0 * j, column), 1)
    there_A = sum_of_programs(sums, first, blocks, 21 + j + 0 * i, inside & (i == 2))
    there_b = tl.sum(sum_of_programs(sums, first, blocks, 24 + 0 * i + 0 * j, column & (i == 2)), 1)
    by_motion = tl.zeros([4, 4], tl.float64)
    if MOTION:
        by_motion = sum_of_programs(sums, first, blocks, 12 + 3 * i + j, inside)
    no_motion = tl.zeros([4, 4], tl.float64)
    tile, inverse_K, rotation = load_tile(K, 3, 1), inverse(K), load_tile(T_dst_ref, 4, 1)
    there_rotation, there_translation, _ = camera_grad(
        tile, rotation, load_column(T_dst_ref + 3, 4), inverse_K, there_A, there_b, no_motion
    )
    rotation_back, translation_back = load_back(T_dst_ref)
    back_rotation, back_translation, _ = camera_grad(
        tile, rotation_back, translation_back, inverse_K, back_A, back_b, no_motion
    )
    # R' = Rᵀ and t' = -Rᵀ (t + m).
    translation = tl.load(T_dst_ref + 3 + 4 * i, mask=i < 3, other=0.0).to(tl.float64)
    to_rotation = there_rotation + tl.trans(back_rotation) - translation * back_translation[None, :] - by_motion
    to_translation = there_translation - tl.sum(rotation * back_translation[None, :], 1)
    to_T = tl.where(i < 3, tl.where(j < 3, to_rotation, to_translation[:, None]), 0.0)
    tl.store(grad_T + b * 16 + i * 4 + j, to_T.to(grad_T.dtype.element_ty))


@triton.jit(do_not_specialize=_SIZES)
def _pixel_grad(
    depth, motion, cameras, winner, ray, to_z, to_motion, grad_depth, grad_motion,
    pixels, height, width, blocks, upscale,
    MOTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a source pixel gets from the cells that its rays have won: gathered, so that the sum's order is fixed."""
    dtype: tl.constexpr = depth.dtype.element_ty
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    camera = cameras + b * CAMERAS
    distance = tl.load(depth + b * pixels + pixel, mask=inside, other=0.0)
    shift_x, shift_y, shift_z = load_shift(camera, motion, b, pixel, inside, pixels, distance, MOTION)
    x, y = (pixel % width).to(dtype), (pixel // width).to(dtype)
    to_depth = tl.zeros_like(distance)
    by_x, by_y, by_z = to_depth, to_depth, to_depth
    count = upscale * upscale
    k = 0
    while k < count:
        x_ray, y_ray = x + ray_offset(k % upscale, upscale, dtype), y + ray_offset(k // upscale, upscale, dtype)
        cell, _, lands = land(camera, x_ray, y_ray, distance, shift_x, shift_y, shift_z, height, width)
        at = b * pixels + cell
        won = lands & (tl.load(winner + at, mask=lands, other=-1) == pixel)
        won &= tl.load(ray + at, mask=lands, other=-1).to(tl.int32) == k
        ray_z = ray_component(camera + 6, x_ray, y_ray)
        to_depth += tl.where(won, tl.load(to_z + at, mask=won, other=0.0) * ray_z, 0.0)
        if MOTION:
            handed = to_motion + b * 3 * pixels + cell
            by_x += tl.load(handed, mask=won, other=0.0)
            by_y += tl.load(handed + pixels, mask=won, other=0.0)
            by_z += tl.load(handed + 2 * pixels, mask=won, other=0.0)
        k += 1
    tl.store(grad_depth + b * pixels + pixel, to_depth, mask=inside)
    if MOTION:
        out = grad_motion + b * 3 * pixels + pixel
        tl.store(out, by_x, mask=inside)
        tl.store(out + pixels, by_y, mask=inside)
        tl.store(out + 2 * pixels, by_z, mask=inside)


@triton.jit(do_not_specialize=["room", *_SIZES])
def _attribute_grad(
    grad_warped, motion, cameras, depth_dst, winner, sums, largest, room,
    pixels, channels, height, width, blocks,
    MOTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    scale = fixed_point_scale(largest, room)
    source = tl.load(winner + b * pixels + pixel, mask=inside, other=-1)
    hit = source >= 0
    z = tl.load(depth_dst + b * pixels + pixel, mask=inside, other=0.0)
    _, _, _, _, u_x, u_y, _ = look_back(
        cameras + b * CAMERAS, motion, b, pixel, z, source, hit, pixels, height, width, MOTION
    )
    at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upstream = tl.load(grad_warped + plane + pixel, mask=hit, other=0.0).to(u_x.dtype)
        bottom = w_y * upstream
        top = upstream - bottom
        upper = sums + plane + at
        add_fixed_point(upper, (1 - w_x) * top, scale, hit)
        add_fixed_point(upper + right, w_x * top, scale, hit)
        add_fixed_point(upper + down, (1 - w_x) * bottom, scale, hit)
        add_fixed_point(upper + down + right, w_x * bottom, scale, hit)
        plane += pixels


def _cameras(K: Tensor, T_dst_ref: Tensor) -> Tensor:
    cameras = K.new_empty(len(K), CAMERAS.value)
    find_cameras[(len(K),)](K, T_dst_ref, cameras, **SETTINGS)
    return cameras


def _sizes(attribute: Tensor, upscale: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes for kernels that know channels, and for those that do not."""
    _, channels, height, width = attribute.shape
    check_plane("forward_warp", height, width)
    pixels = height * width
    if pixels * upscale**2 > 2 * INT32_MAX:
        raise ValueError(f"forward_warp: upscale {upscale} of {height}x{width} makes more rays than 2^32")
    blocks = triton.cdiv(pixels, _BLOCK)
    return (pixels, channels, height, width, blocks), (pixels, height, width, blocks)


def _fwd(
    attribute: Tensor,
    depth: Tensor,
    K: Tensor,
    T_dst_ref: Tensor,
    motion: Tensor | None,
    upscale: int,
    warped: Tensor,
    depth_dst: Tensor,
    winner: Tensor,
    ray: Tensor,
) -> None:
    if depth.numel() == 0:
        return
    sizes, plane_sizes = _sizes(attribute, upscale)
    variant: dict[str, Any] = {"MOTION": motion is not None, "BLOCK": _BLOCK, **SETTINGS}
    cameras, moved, grid = _cameras(K, T_dst_ref), depth if motion is None else motion, (len(depth) * sizes[-1],)
    passes = (False,) if depth.dtype == torch.float32 else (False, True)
    keys, *rays = (
        torch.full((depth.numel(),), -1, dtype=torch.int64, device=depth.device).view(torch.uint64) for _ in passes
    )
    for find_ray in passes:
        _splat[grid](
            depth, moved, cameras, keys, rays[0] if rays else keys, *plane_sizes, upscale, FIND_RAY=find_ray, **variant
        )
    _resample[grid](
        attribute, moved, cameras, keys, rays[0] if rays else keys, warped, depth_dst, winner, ray, *sizes, upscale,
        **variant,
    )  # fmt: skip


def _bwd(
    grad_warped: Tensor,
    grad_depth_dst: Tensor,
    attribute: Tensor,
    depth: Tensor,
    K: Tensor,
    T_dst_ref: Tensor,
    motion: Tensor | None,
    depth_dst: Tensor,
    winner: Tensor,
    ray: Tensor,
    upscale: int,
    need_attribute: bool,
    need_geometry: bool,
    grad_attribute: Tensor,
    grad_depth: Tensor,
    grad_T: Tensor,
    grad_motion: Tensor,
) -> None:
    if depth.numel() == 0:
        return
    sizes, plane_sizes = _sizes(attribute, upscale)
    variant: dict[str, Any] = {"MOTION": motion is not None, "BLOCK": _BLOCK, **SETTINGS}
    cameras, moved, grid = _cameras(K, T_dst_ref), depth if motion is None else motion, (len(depth) * sizes[-1],)
    if need_geometry:
        to_z, to_motion = torch.empty_like(depth), torch.empty_like(moved)
        sums = depth.new_empty(grid[0], SUMS)
        _cell_grad[grid](
            grad_warped, grad_depth_dst, attribute, depth, moved, cameras, depth_dst, winner, ray, to_z, to_motion,
            sums, *sizes, upscale, **variant,
        )  # fmt: skip
        _camera_grad[(len(depth),)](K, T_dst_ref, sums, grad_T, sizes[-1], MOTION=motion is not None, **SETTINGS)
        _pixel_grad[grid](
            depth, moved, cameras, winner, ray, to_z, to_motion, grad_depth, grad_motion, *plane_sizes, upscale,
            **variant,
        )  # fmt: skip
    if need_attribute and attribute.numel():
        largest, total = largest_term(grad_warped), torch.zeros_like(attribute, dtype=torch.int64)
        room = room_for(sizes[0])
        _attribute_grad[grid](
            grad_warped, moved, cameras, depth_dst, winner, total, largest, room, *sizes, **(variant | WIDE)
        )
        read_fixed_point(total, largest, grad_attribute, room)


forward_warp = differentiable(
    native.define_launched("forward_warp_fwd", _fwd), native.define_launched("forward_warp_bwd", _bwd)
)
