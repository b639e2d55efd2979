"""Forward warp: push depth into another frame, then look an attribute up where each pixel there came from.

Every source pixel (x, y) sends upscale² rays, ray (i, j) from

    (x', y') = (x + (i - (upscale - 1)/2) / upscale,  y + (j - (upscale - 1)/2) / upscale)
    q        = K · (R · depth · K⁻¹ · (x', y', 1)ᵀ + t + motion)          [R | t] = T_dst_ref
    cell     = ⌊q_xy / q_z + 0.5⌋                                         outside the image: dropped

and the nearest q_z of each cell wins; ties go to the smaller source pixel y·W + x, then to the smaller ray. Depth that
is not positive (or NaN) and q_z <= 1e-3 send nothing. Back from a cell c with depth Z whose winner is w,

    p   = K · Rᵀ · (Z · K⁻¹ · (c, 1)ᵀ - t - motion(w))
    out = attribute(p_xy / p_z)                                           clamped to the image, bilinear; 0 in a hole

Depth is up to scale, motion a translation in the destination frame. K is a constant. Unlike the published code, holes
are not splatted, cells are rounded rather than truncated, and the motion undone is the winner's, not that of the
reference pixel which happens to have the cell's address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.camera import inverse_intrinsics, pixel_grid, points_of, sample_bilinear
from mcd.ops.contract import Shapes, computed, for_each, no_autocast
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register

_NEAREST_DEPTH = 1e-3


class ForwardWarpResult(NamedTuple):
    warped: Tensor
    """[B,C,H,W] in the attribute's dtype, 0 in holes"""
    depth_dst: Tensor
    """[B,1,H,W] of the destination frame, 0 in holes"""
    winner: Tensor
    """[B,H,W] int32, the reference pixel y·W + x that each cell shows, -1 in holes"""


def forward_warp_reference(
    attribute: Tensor,
    depth: Tensor,
    K: Tensor,
    T_dst_ref: Tensor,
    motion: Tensor | None = None,
    *,
    upscale: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = depth.shape
    K = K.detach()
    rays = inverse_intrinsics(K)
    rotation, translation = T_dst_ref[:, :3, :3], T_dst_ref[:, :3, 3:]
    pixels = height * width
    depth = depth.reshape(batch, 1, pixels)
    shift = translation if motion is None else translation + motion.reshape(batch, 3, pixels)
    grid = pixel_grid(height, width, like=depth)
    step = (torch.arange(upscale, dtype=depth.dtype, device=depth.device) - (upscale - 1) / 2) / upscale
    ray_offset = torch.stack(
        (step.repeat(upscale), step.repeat_interleave(upscale), torch.zeros_like(step).repeat(upscale))
    )

    with torch.no_grad():
        ray = _winning_ray(depth, K @ rotation @ rays, K @ shift, grid, ray_offset, height, width)
    hit, winner, sub_ray = ray >= 0, (ray // upscale**2).clamp(min=0), ray % upscale**2
    shift = _of_winner(shift.expand(-1, -1, pixels), winner, hit)

    # The winner's depth once more, this time with its gradient.
    start = rays @ (grid[:, winner] + ray_offset[:, sub_ray]).transpose(0, 1)
    depth_dst = K[:, 2:] @ (rotation @ (_of_winner(depth, winner, hit) * start) + shift)
    depth_dst = torch.where(hit.unsqueeze(1), depth_dst, 0.0)

    back = K @ (rotation.transpose(1, 2) @ (points_of(depth_dst, K, grid) - shift))
    back = torch.where(hit.unsqueeze(1), back, 1.0)
    coords = (back[:, :2] / back[:, 2:]).reshape(batch, 2, height, width)
    hit = hit.reshape(batch, 1, height, width)
    warped = torch.where(hit, sample_bilinear(attribute, coords), 0.0)
    winner = torch.where(ray < 0, -1, winner).to(torch.int32)
    return warped, depth_dst.reshape(batch, 1, height, width), winner.reshape(batch, height, width)


def _winning_ray(
    depth: Tensor, A: Tensor, shift: Tensor, grid: Tensor, ray_offset: Tensor, height: int, width: int
) -> Tensor:
    """Nearest ray of every destination cell [B,H·W] as source pixel · rays + ray, -1 = hole. A = K R K⁻¹."""
    pixels, rays = height * width, ray_offset.shape[1]
    depths, cells = [], []
    for offset in ray_offset.unbind(1):
        q = depth * (A @ (grid + offset.unsqueeze(1))) + shift
        column, row = torch.floor(q[:, :2] / q[:, 2:] + 0.5).unbind(1)
        inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
        inside &= (q[:, 2] > _NEAREST_DEPTH) & (depth[:, 0] > 0)
        cell = torch.where(inside, row, 0.0).long() * width + torch.where(inside, column, 0.0).long()
        cells.append(torch.where(inside, cell, pixels))  # the last cell collects what is dropped
        depths.append(q[:, 2])
    z, cell = torch.stack(depths, -1).flatten(1), torch.stack(cells, -1).flatten(1)
    nearest = z.new_full((len(z), pixels + 1), inf).scatter_reduce(1, cell, z, "amin")
    ray, none = torch.arange(pixels * rays, device=z.device), pixels * rays
    candidate = torch.where(z == nearest.gather(1, cell), ray, none)
    first = cell.new_full((len(z), pixels + 1), none).scatter_reduce(1, cell, candidate, "amin")[:, :pixels]
    return torch.where(first == none, -1, first)


def _of_winner(values: Tensor, winner: Tensor, hit: Tensor) -> Tensor:
    """`values` [B,C,P] at each cell's winner; 1 in a hole, so that nothing not finite meets its zero gradient."""
    picked = values.gather(2, winner.unsqueeze(1).expand(-1, values.shape[1], -1))
    return torch.where(hit.unsqueeze(1), picked, 1.0)


def _allocate_fwd(
    attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: Tensor | None, upscale: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """warped, depth_dst, winner, and which of its rays won."""
    winner = depth.new_empty((depth.shape[0], *depth.shape[2:]), dtype=torch.int32)
    warped = attribute.new_empty(attribute.shape)
    return warped, depth.new_empty(depth.shape), winner, torch.empty_like(winner, dtype=torch.int16)


def _workspace_fwd(attribute: Tensor, depth: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """On CUDA: the cameras, and the z-buffer, for whose atomic minimum depth and ray are one number (float64: two)."""
    if not depth.is_cuda:
        return None, None
    words = depth.numel() * depth.itemsize // 4
    return depth.new_empty(len(depth) * _CAMERAS), depth.new_empty(words, dtype=torch.int64)


def _allocate_bwd(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of attribute, depth, T_dst_ref, motion; those not needed have no elements."""

    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        return depth.new_empty(0) if tensor is None or not needed else tensor.new_empty(tensor.shape)

    geometry = [like(tensor, need_geometry) for tensor in (depth, T_dst_ref, motion)]
    return like(attribute, need_attribute), geometry[0], geometry[1], geometry[2]


def _workspace_bwd(*arguments: Any) -> tuple[Tensor | None, ...]:
    """On CUDA: the cameras, what each cell hands its winner, sums of blocks of cells, and the attribute's gradient in
    fixed point."""
    attribute, depth, motion = arguments[2], arguments[3], arguments[6]
    need_attribute, need_geometry = arguments[-2:]
    if not depth.is_cuda:
        return None, None, None, None
    blocks = len(depth) * -(-depth[0].numel() // _BLOCK_CELLS) if len(depth) else 0
    return (
        depth.new_empty(len(depth) * _CAMERAS),
        depth.new_empty(depth.numel() * (4 if motion is not None else 1) if need_geometry else 0),
        depth.new_empty(blocks * _SUMS if need_geometry else 0, dtype=torch.float64),
        depth.new_empty(attribute.numel() + 1 if need_attribute else 0, dtype=torch.int64),
    )


_CAMERAS, _SUMS = 51, 25  # numbers in WarpCameras, kWarpSums of csrc/forward_warp/forward_warp.h
_BLOCK_CELLS = 1024  # kBlockCells of csrc/forward_warp/forward_warp.cu


_fwd = native.define(
    "forward_warp_fwd(Tensor attribute, Tensor depth, Tensor K, Tensor T_dst_ref, Tensor? motion, int upscale)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_fwd,
    _workspace_fwd,
    batched=True,
)
_bwd = native.define(
    "forward_warp_bwd(Tensor grad_warped, Tensor grad_depth_dst, Tensor attribute, Tensor depth, Tensor K,"
    " Tensor T_dst_ref, Tensor? motion, Tensor depth_dst, Tensor winner, Tensor ray, int upscale, bool need_attribute,"
    " bool need_geometry) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_bwd,
    _workspace_bwd,
    batched=True,
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
        """Inputs, outputs and the number of the ray that won."""
        _, depth_dst, winner, ray = outputs
        ctx.save_for_backward(*inputs[:5], depth_dst, winner, ray)
        ctx.upscale = inputs[5]
        ctx.mark_non_differentiable(winner, ray)

    def gradients(ctx: Any, grad_warped: Tensor, grad_depth_dst: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        attribute, depth, _, T_dst_ref, motion, *_ = ctx.needs_input_grad
        grads = bwd(
            grad_warped, grad_depth_dst, *ctx.saved_tensors, ctx.upscale, attribute, depth or T_dst_ref or motion
        )
        needed = zip(grads, (attribute, depth, T_dst_ref, motion), strict=True)
        to_attribute, to_depth, to_T, to_motion = (grad if need else None for grad, need in needed)
        return to_attribute, to_depth, None, to_T, to_motion, None

    forward = differentiate(fwd, save, gradients)

    def implementation(
        attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: Tensor | None, *, upscale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        warped, depth_dst, winner, _ = forward(attribute, depth, K, T_dst_ref, motion, upscale)
        return warped, depth_dst, winner

    return implementation


def _sample_inputs(device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        value = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return value.to(device, dtype)

    def sample(
        label: str, batch: int, channels: int, height: int, width: int, moving: bool = False, **kwargs: Any
    ) -> Sample:
        angle = 0.05 * (torch.rand(batch, 3, generator=generator, dtype=torch.float64) - 0.5)
        T = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
        skew = torch.zeros(batch, 3, 3, dtype=torch.float64)
        skew[:, [0, 2, 1], [1, 0, 2]], skew[:, [1, 0, 2], [0, 2, 1]] = angle, -angle
        T[:, :3, :3] = torch.linalg.matrix_exp(skew)
        T[:, :3, 3] = 0.3 * (torch.rand(batch, 3, generator=generator, dtype=torch.float64) - 0.5)
        K = torch.tensor([[0.8 * width, 0, 0.48 * width], [0, 0.9 * width, 0.52 * height], [0, 0, 1]])
        args = (
            uniform(0, 1, batch, channels, height, width).requires_grad_(),
            uniform(4, 6, batch, 1, height, width).requires_grad_(),
            K.to(device, dtype).repeat(batch, 1, 1),
            T.to(device, dtype).requires_grad_(),
            uniform(-0.3, 0.3, batch, 3, height, width).requires_grad_() if moving else None,
        )
        return Sample(args, kwargs, label)

    yield sample("image, wider than a vector", 2, 3, 6, 37)
    yield sample("residual motion", 2, 2, 9, 18, moving=True)
    yield sample("one ray a pixel", 1, 1, 5, 7, upscale=1)
    yield sample("even number of rays", 1, 1, 5, 7, upscale=2)
    yield sample("one pixel", 1, 1, 1, 1)
    yield sample("no frames", 0, 3, 4, 5)


def _bytes_moved(sample: Sample) -> int:
    attribute, depth, _, _, motion = sample.args
    read = sum(tensor.numel() * tensor.element_size() for tensor in (attribute, depth, motion) if tensor is not None)
    return read + attribute.numel() * attribute.element_size() + depth.numel() * (depth.element_size() + 4)


OP = register(
    Operator(
        "forward_warp",
        reference=forward_warp_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.forward_warp:forward_warp",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def forward_warp(
    attribute: Tensor,
    depth: Tensor,
    K: Tensor,
    T_dst_ref: Tensor,
    motion: Tensor | None = None,
    *,
    upscale: int = 3,
    backend: str | None = None,
) -> ForwardWarpResult:
    """Splat depth into another frame with a z-buffer and resample `attribute` there.

    Args:
        attribute: [B,C,H,W] what to carry over (an image, a flow, a mask).
        depth: [B,1,H,W] of the reference frame; not positive or NaN: nothing is sent.
        K: [B,3,3] intrinsics for H x W, any invertible matrix; a constant.
        T_dst_ref: [B,4,4] rigid, X_dst = T_dst_ref X_ref. Like K it may be that of all samples: [1,…], or no batch.
        motion: [B,3,H,W] residual translation of each reference pixel, in the destination frame.
        upscale: rays per pixel and axis, 1 to 181 (the number of a ray fits 16 bits).

    Returns:
        warped: [B,C,H,W] in the attribute's dtype, 0 in holes.
        depth_dst: [B,1,H,W] of the destination frame, 0 in holes.
        winner: [B,H,W] int32, the reference pixel y·W + x that each cell shows, -1 in holes.
        Gradients reach attribute, depth, T_dst_ref and motion.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or upscale, named.

    Mended from the forward warp of Nguyen et al., CVPR 2024.
    """
    name = "forward_warp"
    sizes = Shapes(name, attribute, depth, K, T_dst_ref, motion)
    if not sizes.known:
        sizes.tensor("attribute", attribute, "B C H W", image=True)
        depth, K, T_dst_ref, motion = computed(depth, K, T_dst_ref, motion, beside=attribute)
        K, T_dst_ref = for_each(K, sizes["B"]), for_each(T_dst_ref, sizes["B"])
        sizes.tensor("depth", depth, "B 1 H W")
        sizes.tensor("K", K, "B 3 3")
        sizes.tensor("T_dst_ref", T_dst_ref, "B 4 4")
        if motion is not None:
            sizes.tensor("motion", motion, "B 3 H W")
        sizes.at_least(H=1, W=1)
        sizes.remember(attribute, depth, K, T_dst_ref, motion)
    if not isinstance(upscale, int) or not 1 <= upscale <= 181:
        raise ValueError(f"{name}: upscale is {upscale!r}, it should be a whole number from 1 to 181")
    K = K.detach() if K.requires_grad else K
    implementation = OP.implementation(backend, depth)
    with no_autocast(depth.device.type):
        return ForwardWarpResult(*implementation(attribute, depth, K, T_dst_ref, motion, upscale=upscale))
