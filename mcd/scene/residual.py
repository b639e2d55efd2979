"""Residual motion: what is left of a pixel's motion when the camera's is taken away (Nguyen et al., CVPR 2024).

The reference image is moved rigidly into the source frame; the motion net compares it with the source that was
really seen; what it finds is carried back to the reference pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcd import ops
from mcd.geometry import backproject, invert_rigid
from mcd.nets.layers import widen
from mcd.run.context import Context


def fold(values: Tensor, sources: int) -> Tensor:
    """Repeat a per-sample tensor [B,...] for every source: [B·S,...], sources of a sample side by side."""
    return values.repeat_interleave(sources, dim=0)


def residual_motion(
    context: Context,
    net: nn.Module,
    reference: Tensor,
    sources: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    *,
    filtered: bool = True,
    floor: float = 1e-5,
) -> Tensor:
    """Residual motion of every reference pixel towards every source.

    Args:
        net: motion net; ``net(warped, source)`` is the residual on the source's grid.
        reference: [B,3,H,W]; sources: [B,S,3,H,W]; depth: [B,1,H,W]; K: [B,3,3]; T_src_ref: [B,S,4,4].
        filtered: drop motion below ``floor`` and below the sample's mean. False, as while the motion net is being
            initialised, keeps whatever was seen.

    Returns:
        [B,S,2,H,W], homogeneous (pixel · depth): added to q_xy before the division. 0 where a pixel does not move
        towards every source.
    """
    batch, count = sources.shape[:2]
    source = sources.flatten(0, 1)
    depth_n, K_n, T = fold(depth, count), fold(K, count), T_src_ref.flatten(0, 1)
    warped, depth_src, _ = ops.forward_warp(fold(reference, count), depth_n, K_n, T)
    with context.networks():
        motion_src = widen(net(warped, source))
    motion_src = motion_src * keep(motion_src.detach(), depth_src.detach(), filtered, floor)
    motion, _, _ = ops.forward_warp(motion_src, depth_src, K_n, invert_rigid(T))
    motion = motion.unflatten(0, (batch, count))
    # Every component counts: a sum, as published, would drop motion along (1, -1).
    moves = (motion.detach() != 0).any(dim=2, keepdim=True).all(dim=1, keepdim=True)
    return torch.where(moves, motion, motion.new_zeros(()))


def keep(motion: Tensor, depth: Tensor, filtered: bool, floor: float) -> Tensor:
    """Mask [N,1,H,W] of the motion [N,2,H,W] that is kept on the source's grid; ``depth`` [N,1,H,W] is 0 in holes."""
    seen = depth > 0
    if not filtered:
        return seen
    magnitude = motion.square().sum(dim=1, keepdim=True).sqrt()
    # The mean is taken over pixels that were seen: holes would pull it down.
    mean = (magnitude * seen).sum(dim=(1, 2, 3), keepdim=True) / seen.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    return seen & (magnitude >= floor) & (magnitude >= mean)


def homogeneous_motion(flow: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor) -> Tensor:
    """The motion [B,S,2,H,W] (pixel · depth) whose :func:`pixel_flow` is ``flow``, where that stays in the image."""
    height, width = depth.shape[-2:]
    points = backproject(depth, K).flatten(2)
    moved = T_src_ref[..., :3, :3] @ points[:, None] + T_src_ref[..., :3, 3:]
    # The divisor of the projection.
    z = (K[:, None, 2:] @ moved).unflatten(-1, (height, width)) + 1e-5
    return flow * z


def moving_pixels(flow: Tensor, threshold: float) -> Tensor:
    """[B,1,H,W] bool: where |x| + |y| of the residual flow [B,S,2,H,W], a mean over the sources, reaches a threshold in
    pixels at a width of 512."""
    return flow.abs().sum(dim=2).mean(dim=1, keepdim=True) >= threshold * flow.shape[-1] / 512


def fast_flow(flow: Tensor, threshold: float) -> Tensor:
    """The residual flow [B,S,2,H,W], 0 where |x| + |y| is below a threshold in pixels at a width of 512."""
    length = flow.abs().sum(dim=2, keepdim=True)
    return torch.where(length >= threshold * flow.shape[-1] / 512, flow, flow.new_zeros(()))


def pixel_flow(
    reference: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor, floor: float = 0.01
) -> Tensor:
    """Residual motion as a displacement in pixels [B,S,2,H,W]: where a pixel goes with its motion, less without.

    Displacements whose |x|+|y| is below ``floor`` are 0.
    """
    count = T_src_ref.shape[1]
    image, depth_n, K_n = fold(reference, count), fold(depth, count), fold(K, count)
    T = T_src_ref.flatten(0, 1)
    moved = ops.backward_warp(image, depth_n, K_n, T, motion.flatten(0, 1), return_coords=True)[1]
    still = ops.backward_warp(image, depth_n, K_n, T, return_coords=True)[1]
    flow = (moved - still).unflatten(0, (-1, count))
    return torch.where(flow.abs().sum(dim=2, keepdim=True) < floor, flow.new_zeros(()), flow)
