"""Backward warp in Triton. The formula stands in mcd/ops/backward_warp.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.bilinear import (
    bilinear,
    bilinear_grad,
    clamp_coord,
    corner,
    load_patch,
    load_upsampled,
    moves_freely,
    readers,
    upsampling_adjoint,
)
from mcd.kernels.camera import (
    CAMERA,
    SUMS,
    apply_column,
    apply_row,
    camera_grad,
    find_cameras,
    inverse,
    load_column,
    load_tile,
    project,
    store_tile,
    sum_of_programs,
    tile_axes,
)
from mcd.kernels.common import SETTINGS, check_plane, is_finite, nan_like
from mcd.kernels.fixed_point import add_fixed_point, fixed_point_scale, largest_term, read_fixed_point, room_for
from mcd.ops import native
from mcd.ops.backward_warp import EPSILON, NEAREST, differentiable

_CAMERA, _SUMS, _EPSILON, _NEAREST = (tl.constexpr(value) for value in (CAMERA, SUMS, EPSILON, NEAREST))
_BLOCK = 256  # pixels of a program
# Sums over a program's pixels that make up the cameras' gradients: of grad_q · depth · (x, y, 1), grad_q, and, in
# the other half, grad_q · motionᵀ of a 3-D motion.
_SIZES = ["channels", "height", "width", "depth_height", "depth_width", "blocks"]


@triton.jit
def _look(
    camera, depth, motion, b, pixel, inside, pixels, height, width, depth_height, depth_width,
    MOTION: tl.constexpr, FULL_DEPTH: tl.constexpr,
):  # fmt: skip
    """Where pixels look. An unusable one (depth or motion not finite, or 0/0) reads NaN without gradient."""
    dtype: tl.constexpr = depth.dtype.element_ty
    row, column = pixel // width, pixel % width
    x, y = column.to(dtype), row.to(dtype)
    if FULL_DEPTH:
        distance = tl.load(depth + b * pixels + pixel, mask=inside, other=1.0)
    else:
        plane = depth + b * depth_height * depth_width
        distance = load_upsampled(plane, row, column, height, width, depth_height, depth_width, inside)
    usable = inside & is_finite(distance)
    motion_x, motion_y, motion_z = tl.zeros_like(distance), tl.zeros_like(distance), tl.zeros_like(distance)
    if MOTION > 0:
        plane = motion + b * MOTION * pixels + pixel
        motion_x = tl.load(plane, mask=inside, other=0.0)
        motion_y = tl.load(plane + pixels, mask=inside, other=0.0)
        if MOTION == 3:
            motion_z = tl.load(plane + 2 * pixels, mask=inside, other=0.0)
        usable &= is_finite(motion_x) & is_finite(motion_y) & is_finite(motion_z)
        motion_x, motion_y = tl.where(usable, motion_x, 0.0), tl.where(usable, motion_y, 0.0)
        motion_z = tl.where(usable, motion_z, 0.0)
    distance = tl.where(usable, distance, 1.0)
    shift_x, shift_y, shift_z = motion_x, motion_y, motion_z
    if MOTION == 3:
        shift_x = apply_row(camera + 12, motion_x, motion_y, motion_z)
        shift_y = apply_row(camera + 15, motion_x, motion_y, motion_z)
        shift_z = apply_row(camera + 18, motion_x, motion_y, motion_z)
    ray_x, ray_y, ray_z, u_x, u_y, q_z, scale = project(camera, x, y, distance, shift_x, shift_y, shift_z, _EPSILON)
    usable &= (u_x == u_x) & (u_y == u_y)
    motions = (motion_x, motion_y, motion_z)
    return x, y, distance, motions, (ray_x, ray_y, ray_z), u_x, u_y, q_z, scale, usable


@triton.jit(do_not_specialize=_SIZES)
def _warp(
    source, depth, motion, cameras, warped, coords, valid,
    pixels, channels, height, width, depth_height, depth_width, blocks,
    MOTION: tl.constexpr, FULL_DEPTH: tl.constexpr, COORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    _, _, _, _, _, u_x, u_y, q_z, _, usable = _look(
        cameras + b * _CAMERA, depth, motion, b, pixel, inside, pixels, height, width, depth_height, depth_width,
        MOTION, FULL_DEPTH,
    )  # fmt: skip
    at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    nothing = nan_like(u_x)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upper_left, upper_right, lower_left, lower_right = load_patch(
            source + plane, at, right, down, inside, u_x.dtype
        )
        value = bilinear(upper_left, upper_right, lower_left, lower_right, w_x, w_y)
        value = tl.where(usable, value, nothing)
        tl.store(warped + plane + pixel, value.to(warped.dtype.element_ty), mask=inside)
        plane += pixels
    if COORDS:
        last_x, last_y = (width - 1).to(u_x.dtype), (height - 1).to(u_x.dtype)
        found = coords + 2 * b * pixels + pixel
        tl.store(found, tl.where(usable, clamp_coord(u_x, last_x), nothing), mask=inside)
        tl.store(found + pixels, tl.where(usable, clamp_coord(u_y, last_y), nothing), mask=inside)
        in_image = (u_x >= 0) & (u_x <= last_x) & (u_y >= 0) & (u_y <= last_y)
        tl.store(valid + b * pixels + pixel, usable & in_image & (q_z > _NEAREST), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _geometry_grad(
    grad_warped, source, depth, motion, cameras, grad_depth, grad_motion, sums,
    pixels, channels, height, width, depth_height, depth_width, blocks,
    MOTION: tl.constexpr, FULL_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    camera = cameras + b * _CAMERA
    x, y, distance, motions, ray, u_x, u_y, _, scale, usable = _look(
        camera, depth, motion, b, pixel, inside, pixels, height, width, depth_height, depth_width, MOTION, FULL_DEPTH
    )
    at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    grad_x, grad_y = tl.zeros_like(u_x), tl.zeros_like(u_x)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upper_left, upper_right, lower_left, lower_right = load_patch(
            source + plane, at, right, down, inside, u_x.dtype
        )
        by_x, by_y = bilinear_grad(upper_left, upper_right, lower_left, lower_right, w_x, w_y)
        upstream = tl.load(grad_warped + plane + pixel, mask=inside, other=0.0).to(u_x.dtype)
        grad_x += upstream * by_x
        grad_y += upstream * by_y
        plane += pixels
    moves_x = usable & moves_freely(u_x, (width - 1).to(u_x.dtype))
    moves_y = usable & moves_freely(u_y, (height - 1).to(u_x.dtype))
    # Choices, not products: u and its scale may be infinite where nothing moves.
    grad_q_x, grad_q_y = tl.where(moves_x, grad_x * scale, 0.0), tl.where(moves_y, grad_y * scale, 0.0)
    grad_q_z = -(tl.where(moves_x, grad_q_x * u_x, 0.0) + tl.where(moves_y, grad_q_y * u_y, 0.0))
    to_depth = grad_q_x * ray[0] + grad_q_y * ray[1] + grad_q_z * ray[2]
    tl.store(grad_depth + b * pixels + pixel, to_depth, mask=inside)
    to_motion = grad_motion + b * MOTION * pixels + pixel
    if MOTION == 2:
        tl.store(to_motion, grad_q_x, mask=inside)
        tl.store(to_motion + pixels, grad_q_y, mask=inside)
    if MOTION == 3:
        for j in tl.static_range(3):
            tl.store(to_motion + j * pixels, apply_column(camera + 12 + j, grad_q_x, grad_q_y, grad_q_z), mask=inside)
    sums += tl.program_id(0).to(tl.int64) * _SUMS
    grad_q = (grad_q_x, grad_q_y, grad_q_z)
    for i in tl.static_range(3):
        by_depth = grad_q[i] * distance
        tl.store(sums + 3 * i, tl.sum(by_depth * x, 0))
        tl.store(sums + 3 * i + 1, tl.sum(by_depth * y, 0))
        tl.store(sums + 3 * i + 2, tl.sum(by_depth, 0))
        tl.store(sums + 9 + i, tl.sum(grad_q[i], 0))
        if MOTION == 3:
            for j in tl.static_range(3):
                tl.store(sums + 16 + 3 * i + j, tl.sum(grad_q[i] * motions[j], 0))


@triton.jit(do_not_specialize=["blocks"])
def _camera_grads(K, T_src_ref, sums, grad_K, grad_T, blocks, MOTION: tl.constexpr):
    """One program for each sample: its sums, added in the order of the programs that made them."""
    b = tl.program_id(0).to(tl.int64)
    K += b * 9
    T_src_ref += b * 16
    i, j = tile_axes()
    inside = (i < 3) & (j < 3)
    first = b * blocks
    grad_A = sum_of_programs(sums, first, blocks, 3 * i + j, inside)
    grad_b = tl.sum(sum_of_programs(sums, first, blocks, 9 + i + 0 * j, inside & (j == 0)), 1)
    grad_motion_K = tl.zeros([4, 4], tl.float64)
    if MOTION == 3:
        grad_motion_K = sum_of_programs(sums, first, blocks, 16 + 3 * i + j, inside)
    translation = load_column(T_src_ref + 3, 4)
    grad_rotation, grad_translation, to_K = camera_grad(
        load_tile(K, 3, 1), load_tile(T_src_ref, 4, 1), translation, inverse(K), grad_A, grad_b, grad_motion_K
    )
    store_tile(grad_K + b * 9, to_K)
    to_T = tl.where(i < 3, tl.where(j < 3, grad_rotation, grad_translation[:, None]), 0.0)
    tl.store(grad_T + b * 16 + i * 4 + j, to_T.to(grad_T.dtype.element_ty))


@triton.jit(do_not_specialize=["room", *_SIZES])
def _source_grad(
    grad_warped, depth, motion, cameras, sums, largest, room,
    pixels, channels, height, width, depth_height, depth_width, blocks,
    MOTION: tl.constexpr, FULL_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    _, _, _, _, _, u_x, u_y, _, _, usable = _look(
        cameras + b * _CAMERA, depth, motion, b, pixel, inside, pixels, height, width, depth_height, depth_width,
        MOTION, FULL_DEPTH,
    )  # fmt: skip
    at, right, down, w_x, w_y = corner(u_x, u_y, height, width)
    scale = fixed_point_scale(largest, room)
    plane, end = b * channels * pixels, (b + 1) * channels * pixels
    while plane < end:
        upstream = tl.load(grad_warped + plane + pixel, mask=inside, other=0.0).to(u_x.dtype)
        bottom = w_y * upstream
        top = upstream - bottom
        upper = sums + plane + at
        add_fixed_point(upper, (1 - w_x) * top, scale, usable)
        add_fixed_point(upper + right, w_x * top, scale, usable)
        add_fixed_point(upper + down, (1 - w_x) * bottom, scale, usable)
        add_fixed_point(upper + down + right, w_x * bottom, scale, usable)
        plane += pixels


def _sizes(source: Tensor, depth: Tensor) -> tuple[int, ...]:
    _, channels, height, width = source.shape
    pixels = height * width
    return pixels, channels, height, width, depth.shape[2], depth.shape[3], triton.cdiv(pixels, _BLOCK)


def _variant(source: Tensor, depth: Tensor, motion: Tensor | None) -> dict[str, object]:
    full = depth.shape[2:] == source.shape[2:]
    return {"MOTION": 0 if motion is None else motion.shape[1], "FULL_DEPTH": full, "BLOCK": _BLOCK, **SETTINGS}


def _cameras(K: Tensor, T_src_ref: Tensor) -> Tensor:
    cameras = K.new_empty(len(K), CAMERA)
    find_cameras[(len(K),)](K, T_src_ref, cameras, **SETTINGS)
    return cameras


def _fwd(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    return_coords: bool,
    warped: Tensor,
    coords: Tensor,
    valid: Tensor,
) -> None:
    if depth.numel() == 0:
        return
    check_plane("backward_warp", *source.shape[2:])
    cameras, sizes = _cameras(K, T_src_ref), _sizes(source, depth)
    moved = depth if motion is None else motion
    _warp[(len(source) * sizes[-1],)](
        source, depth, moved, cameras, warped, coords, valid, *sizes,
        COORDS=return_coords, **_variant(source, depth, motion),
    )  # fmt: skip


def _bwd(
    grad_warped: Tensor,
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    need_source: bool,
    need_geometry: bool,
    grad_source: Tensor,
    grad_depth: Tensor,
    grad_K: Tensor,
    grad_T: Tensor,
    grad_motion: Tensor,
) -> None:
    if depth.numel() == 0:
        return
    check_plane("backward_warp", *source.shape[2:])
    cameras, sizes, variant = _cameras(K, T_src_ref), _sizes(source, depth), _variant(source, depth, motion)
    moved = depth if motion is None else motion
    pixels, _, height, width, depth_height, depth_width, blocks = sizes
    programs = len(source) * blocks
    if need_geometry:
        full = variant["FULL_DEPTH"]
        grad_of_pixels = grad_depth if full else depth.new_empty(len(source), height, width)
        sums = depth.new_empty(programs, SUMS)
        _geometry_grad[(programs,)](
            grad_warped, source, depth, moved, cameras, grad_of_pixels, grad_motion, sums, *sizes, **variant
        )
        _camera_grads[(len(source),)](K, T_src_ref, sums, grad_K, grad_T, blocks, MOTION=variant["MOTION"], **SETTINGS)
        if not full:
            upsampling_adjoint[(triton.cdiv(depth.numel(), _BLOCK),)](
                grad_of_pixels, grad_depth, depth.numel(), height, width, depth_height, depth_width,
                readers(height, depth_height), readers(width, depth_width), BLOCK=_BLOCK, **SETTINGS,
            )  # fmt: skip
    if need_source and source.numel():
        largest, total = largest_term(grad_warped), torch.zeros_like(source, dtype=torch.int64)
        room = room_for(pixels)
        _source_grad[(programs,)](grad_warped, depth, moved, cameras, total, largest, room, *sizes, **variant)
        read_fixed_point(total, largest, grad_source, room)


backward_warp = differentiable(
    native.define_launched("backward_warp_fwd", _fwd), native.define_launched("backward_warp_bwd", _bwd)
)
