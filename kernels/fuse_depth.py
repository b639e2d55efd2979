"""Depth fusion in Triton. The formula stands in mcd/ops/fuse_depth.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcd.kernels.common import INT32_MAX, SETTINGS, check_plane, is_finite
from mcd.kernels.instances import check_entries, instance_of
from mcd.ops import native
from mcd.ops.fuse_depth import differentiable

_BLOCK = 512
_NOTHING = tl.constexpr(2**64 - 1)  # the key of a pixel that no instance has


@triton.jit(do_not_specialize=["instances"])
def _nearest(
    object_depth, pixel, offset, frame, keys, winner, entries, instances, pixels,
    FIND_WINNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The minimum of (depth, instance) as one number of 64 bits: positive floats are in the order of their bits. In
    float64, whose bits fill it, that of the depths first, then that of the instances which reach it."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    depth = tl.load(object_depth + entry, mask=inside, other=0.0)
    inside &= (depth > 0) & is_finite(depth)
    instance = instance_of(offset, entry, instances)
    at = tl.load(frame + instance).to(tl.int64) * pixels + tl.load(pixel + entry, mask=inside, other=0)
    if depth.dtype == tl.float32:
        bits = depth.to(tl.uint32, bitcast=True).to(tl.uint64)
        tl.atomic_min(keys + at, (bits << 32) | instance.to(tl.uint64), mask=inside, sem="relaxed")
    else:
        bits = depth.to(tl.uint64, bitcast=True)
        if FIND_WINNER:
            reaches = inside & (tl.load(keys + at, mask=inside, other=0) == bits)
            tl.atomic_min(winner + at, instance, mask=reaches, sem="relaxed")
        else:
            tl.atomic_min(keys + at, bits, mask=inside, sem="relaxed")


@triton.jit
def _fuse(background, keys, fused, winner, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    behind = tl.load(background + i, mask=inside, other=0.0)
    key = tl.load(keys + i, mask=inside, other=0)
    empty = key == _NOTHING
    if behind.dtype == tl.float32:
        depth = (key >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
        instance = (key & 0xFFFFFFFF).to(tl.int32)
    else:
        depth = key.to(tl.float64, bitcast=True)
        instance = tl.load(winner + i, mask=inside, other=0)
    tl.store(fused + i, tl.where(empty, behind, depth), mask=inside)
    tl.store(winner + i, tl.where(empty, -1, instance), mask=inside)


@triton.jit
def _background_grad(grad_fused, winner, grad_background, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    behind = tl.load(winner + i, mask=inside, other=0) < 0
    tl.store(grad_background + i, tl.load(grad_fused + i, mask=inside & behind, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["instances"])
def _object_grad(
    grad_fused, winner, pixel, offset, frame, grad_object_depth, entries, instances, pixels, BLOCK: tl.constexpr
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    instance = instance_of(offset, entry, instances)
    at = tl.load(frame + instance).to(tl.int64) * pixels + tl.load(pixel + entry, mask=inside, other=0)
    seen = inside & (tl.load(winner + at, mask=inside, other=-1) == instance)
    tl.store(grad_object_depth + entry, tl.load(grad_fused + at, mask=seen, other=0.0), mask=inside)


def _fwd(
    background: Tensor,
    object_depth: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    fused: Tensor,
    winner: Tensor,
) -> None:
    if background.numel() == 0:
        return
    check_plane("fuse_depth", *background.shape[2:])
    check_entries("fuse_depth", len(pixel))
    keys = torch.full((background.numel(),), -1, dtype=torch.int64, device=background.device).view(torch.uint64)
    passes: tuple[bool, ...] = (False,)
    if background.dtype == torch.float64:
        winner.fill_(INT32_MAX)
        passes = (False, True)
    pixels = background.shape[2] * background.shape[3]
    for find_winner in passes if len(pixel) else ():
        _nearest[(triton.cdiv(len(pixel), _BLOCK),)](
            object_depth, pixel, offset, frame, keys, winner, len(pixel), len(frame), pixels,
            FIND_WINNER=find_winner, BLOCK=_BLOCK, **SETTINGS,
        )  # fmt: skip
    count = background.numel()
    _fuse[(triton.cdiv(count, _BLOCK),)](background, keys, fused, winner, count, BLOCK=_BLOCK, **SETTINGS)


def _bwd(
    grad_fused: Tensor,
    winner: Tensor,
    pixel: Tensor,
    offset: Tensor,
    frame: Tensor,
    grad_background: Tensor,
    grad_object_depth: Tensor,
) -> None:
    count, entries = grad_fused.numel(), len(pixel)
    if count:
        _background_grad[(triton.cdiv(count, _BLOCK),)](
            grad_fused, winner, grad_background, count, BLOCK=_BLOCK, **SETTINGS
        )
    if entries:
        _object_grad[(triton.cdiv(entries, _BLOCK),)](
            grad_fused, winner, pixel, offset, frame, grad_object_depth, entries, len(frame), winner[0].numel(),
            BLOCK=_BLOCK, **SETTINGS,
        )  # fmt: skip


fuse_depth = differentiable(
    native.define_launched("fuse_depth_fwd", _fwd), native.define_launched("fuse_depth_bwd", _bwd)
)
