"""What a user would write or install today in place of each operator.

A peer takes the operator's arguments and returns its outputs, or the first few of them. Compositions are our own
writing of the usual PyTorch formulation, without waits for the device that are easily avoided; what comes from a
package is named after it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd import Instances
from mcd.ops.backward_warp import EPSILON, NEAREST

BLOCK = 3  # sub-rays per pixel and axis of forward_warp's default


class Peer(NamedTuple):
    """run: the function. package: what it needs, or None. waits: it synchronises, so no CUDA graph can hold it."""

    run: Callable[..., Any]
    package: str | None = None
    waits: bool = False
    only: str | None = None
    """The kind of device that it runs on, or None for all."""

    def why_not(self, device_type: str) -> str | None:
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        if self.only is not None and self.only != device_type:
            return f"runs on {self.only} only"
        return None


def _pixels(depth: Tensor) -> Tensor:
    """Homogeneous pixel coordinates [3,H·W]."""
    height, width = depth.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype),
        torch.arange(width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    return torch.stack((x, y, torch.ones_like(x))).reshape(3, -1)


def _look_up(image: Tensor, coords: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    x, y = coords.unbind(1)
    grid = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _projected(depth: Tensor, K: Tensor, T: Tensor, motion: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pixel coordinates [B,2,H,W] and depth [B,1,H,W] in the other camera."""
    batch, _, height, width = depth.shape
    points = torch.linalg.inv_ex(K).inverse @ _pixels(depth) * depth.flatten(2)
    points = torch.cat((points, torch.ones_like(points[:, :1])), 1)
    q = (K @ T[:, :3]) @ points
    xy = q[:, :2] if motion is None else q[:, :2] + motion.flatten(2)
    return (xy / (q[:, 2:] + EPSILON)).reshape(batch, 2, height, width), q[:, 2:].reshape(batch, 1, height, width)


def grid_sample_warp(source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor) -> Tensor:
    return _look_up(source, _projected(depth, K, T_src_ref, motion)[0])


def kornia_warp(source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor) -> Tensor:
    from kornia.geometry.depth import depth_to_3d_v2
    from kornia.geometry.linalg import transform_points
    from kornia.geometry.transform import remap

    # The last row is a constant for everyone else.
    T = torch.cat((T_src_ref[:, :3], T_src_ref.new_tensor([[[0, 0, 0, 1]]]).expand(len(K), -1, -1)), 1)
    points = depth_to_3d_v2(depth[:, 0], K)
    moved = transform_points(T, points.flatten(1, 2)) @ K.transpose(1, 2)
    xy = (moved[..., :2] + motion.flatten(2).transpose(1, 2)) / (moved[..., 2:] + EPSILON)
    x, y = xy.reshape(*points.shape[:3], 2).unbind(-1)
    return remap(source, x, y, padding_mode="border", align_corners=True)


def _structural_error(x: Tensor, y: Tensor, c2: float) -> Tensor:
    """(1 - SSIM) / 2 by the usual covariance form, contrast term only, the border mirrored."""
    mean_x, mean_y = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
    variance_x = F.avg_pool2d(x**2, 3, 1) - mean_x**2
    variance_y = F.avg_pool2d(y**2, 3, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, 3, 1) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return F.pad(((1 - contrast) / 2).clamp(0, 1), (1, 1, 1, 1), mode="reflect")


def _pair(reference: Tensor, image: Tensor) -> Tensor:
    ssim = _structural_error(image, reference, 9e-6).mean(1)
    return 3.0 * ssim + 2.0 * (image - reference).abs().mean(1)


def composed_photometric(reference: Tensor, warped: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    error = torch.stack([_pair(reference, image) for image in warped.unbind(1)]).min(0).values
    identity = torch.stack([_pair(reference, image) for image in sources.unbind(1)]).min(0).values
    return error, error < identity


def composed_view_synthesis(
    reference: Tensor, sources: Tensor, depths: Sequence[Tensor], K: Tensor, T_src_ref: Tensor, motion: None = None
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = reference.shape[-2:]
    losses, masks = [], []
    for depth in depths:
        depth = F.interpolate(depth, (height, width), mode="bilinear", align_corners=False)
        errors = []
        for source, T in zip(sources.unbind(1), T_src_ref.unbind(1), strict=True):
            coords, z = _projected(depth, K, T, None)
            x, y = coords.unbind(1)
            valid = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1) & (z[:, 0] > NEAREST)
            errors.append(torch.where(valid, _pair(reference, _look_up(source, coords)), torch.inf))
        error = torch.stack(errors).min(0).values
        identity = torch.stack([_pair(reference, source) for source in sources.unbind(1)]).min(0).values
        mask = error < identity
        losses.append(torch.where(mask, error, 0.0).sum() / (mask.sum() + 1e-10 * mask.numel()))
        masks.append(mask)
    return torch.stack(losses).mean(), torch.stack(losses).detach(), masks[0]


def _splat(depth: Tensor, K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Depth and destination cell [B·H·W·rays] of every sub-ray; what is dropped goes to one cell behind the last."""
    batch, _, height, width = depth.shape
    grid, pixels = _pixels(depth), height * width
    step = (torch.arange(BLOCK, device=depth.device, dtype=depth.dtype) - (BLOCK - 1) / 2) / BLOCK
    offset = torch.stack((step.repeat(BLOCK), step.repeat_interleave(BLOCK), torch.zeros_like(step).repeat(BLOCK)))
    rays = (grid[:, :, None] + offset[:, None, :]).reshape(3, -1)
    points = torch.linalg.inv_ex(K).inverse @ rays * depth.flatten(1).repeat_interleave(BLOCK**2, 1).unsqueeze(1)
    q = K @ (T[:, :3, :3] @ points + T[:, :3, 3:])
    x, y = (q[:, :2] / q[:, 2:] + 0.5).detach().floor().unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (q[:, 2] > NEAREST)
    first = torch.arange(batch, device=depth.device)[:, None] * pixels
    cell = torch.where(inside, first + (y * width + x).long(), batch * pixels)
    return q[:, 2].flatten(), cell.flatten()


def _resampled(attribute: Tensor, nearness: Tensor, K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Attribute and depth in the destination frame, from 1/z per cell (0 in a hole)."""
    batch, _, height, width = attribute.shape
    nearness = nearness[: batch * height * width].reshape(batch, 1, height, width)
    hit = nearness > 0
    depth_dst = torch.where(hit, 1 / torch.where(hit, nearness, 1.0), 0.0)
    rotation, translation = T[:, :3, :3], T[:, :3, 3:]
    points = torch.linalg.inv_ex(K).inverse @ _pixels(depth_dst) * depth_dst.flatten(2)
    back = K @ (rotation.transpose(1, 2) @ (points - translation))
    back = torch.where(hit.flatten(2), back, 1.0)
    coords = (back[:, :2] / back[:, 2:]).reshape(batch, 2, height, width)
    return torch.where(hit, _look_up(attribute, coords), 0.0), depth_dst


def splat_by_sorting(
    attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: None = None
) -> tuple[Tensor, Tensor]:
    """Rays sorted by cell, then the maximum of each segment."""
    z, cell = _splat(depth, K, T_dst_ref)
    cell, order = cell.sort(stable=True)
    lengths = torch.bincount(cell, minlength=depth.numel() + 1)
    nearness = torch.segment_reduce((1 / z)[order], "max", lengths=lengths, initial=0.0, unsafe=True)
    return _resampled(attribute, nearness, K, T_dst_ref)


def splat_by_scatter_reduce(
    attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: None = None
) -> tuple[Tensor, Tensor]:
    z, cell = _splat(depth, K, T_dst_ref)
    nearness = z.new_zeros(depth.numel() + 1).scatter_reduce(0, cell, 1 / z, "amax")
    return _resampled(attribute, nearness, K, T_dst_ref)


def splat_by_torch_scatter(
    attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: None = None
) -> tuple[Tensor, Tensor]:
    from torch_scatter import scatter_max

    z, cell = _splat(depth, K, T_dst_ref)
    nearness = scatter_max(1 / z, cell, out=z.new_zeros(depth.numel() + 1))[0]
    return _resampled(attribute, nearness, K, T_dst_ref)


def _each_mask(instances: Instances) -> list[tuple[int, Tensor]]:
    """Frame and mask [H,W] of every instance, made once: a user of masks has them already."""
    masks = instances.to_masks()
    return [(frame, mask) for frame, every in enumerate(masks) for mask in every.unbind()]


class MaskLoop:
    """A peer that walks over masks; they are made before it is timed."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._masks: tuple[Instances, list[tuple[int, Tensor]]] | None = None

    def __call__(self, *arguments: Any) -> Any:
        instances = next(argument for argument in arguments if isinstance(argument, Instances))
        if self._masks is None or self._masks[0] is not instances:
            self._masks = instances, _each_mask(instances)
        return self._function(self._masks[1], *arguments)


def stats_by_loop(masks: list[tuple[int, Tensor]], values: Tensor, _: Instances, *__: Any) -> tuple[Tensor, ...]:
    rows = []
    for frame, mask in masks:
        chosen = values[frame, 0][mask]
        ninety = torch.quantile(chosen.detach(), 0.9, interpolation="lower")
        rows.append((chosen.mean(), chosen.min().detach(), chosen.max().detach(), chosen.detach().median(), ninety))
    mean, least, largest, median, ninety = (torch.stack(column) for column in zip(*rows, strict=True))
    count = torch.stack([mask.sum() for _, mask in masks]).int()
    return count, mean, least, largest, torch.stack((median, ninety), 1)


def align_by_loop(
    masks: list[tuple[int, Tensor]], object_depth: Tensor, target: Tensor, instances: Instances, scale: Tensor
) -> tuple[Tensor, Tensor]:
    aligned, losses, begin = [], [], 0
    for (frame, mask), factor in zip(masks, scale.unbind(), strict=True):
        wanted = target[frame, 0][mask]
        depth = object_depth[begin : begin + len(wanted)]
        begin += len(wanted)
        aligned.append(depth / depth.mean() * factor)
        losses.append(F.huber_loss(aligned[-1], wanted, delta=0.005))
    return torch.cat(aligned), torch.stack(losses)


def fuse_by_loop(
    masks: list[tuple[int, Tensor]], background: Tensor, object_depth: Tensor, instances: Instances
) -> tuple[Tensor]:
    frames = list(background.new_full(background.shape, torch.inf)[:, 0].unbind())
    begin = 0
    for frame, mask in masks:
        count = int(mask.sum())
        dense = torch.full_like(frames[frame], torch.inf).masked_scatter(mask, object_depth[begin : begin + count])
        begin += count
        frames[frame] = torch.where(dense < frames[frame], dense, frames[frame])
    nearest = torch.stack(frames).unsqueeze(1)
    return (torch.where(nearest.isfinite(), nearest, background),)


def fuse_by_scatter_reduce(background: Tensor, object_depth: Tensor, instances: Instances) -> tuple[Tensor]:
    nearest = torch.full_like(background, torch.inf).flatten()
    nearest = nearest.scatter_reduce(0, instances.address, object_depth, "amin").reshape(background.shape)
    return (torch.where(nearest.isfinite(), nearest, background),)


def fuse_by_torch_scatter(background: Tensor, object_depth: Tensor, instances: Instances) -> tuple[Tensor]:
    from torch_scatter import scatter_min

    far = torch.full_like(background, torch.inf).flatten()
    nearest = scatter_min(object_depth, instances.address, out=far)[0].reshape(background.shape)
    return (torch.where(nearest.isfinite(), nearest, background),)


def composed_smoothness(disparities: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
    total = disparities[0].new_zeros(())
    for scale, (disparity, image) in enumerate(zip(disparities, images, strict=True)):
        disparity = disparity / disparity.mean((2, 3), keepdim=True)
        along_x = (disparity[..., :-1] - disparity[..., 1:]).abs()
        along_y = (disparity[..., :-1, :] - disparity[..., 1:, :]).abs()
        edge_x = (image[..., :-1] - image[..., 1:]).abs().mean(1, keepdim=True)
        edge_y = (image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, keepdim=True)
        term = (along_x * torch.exp(-edge_x)).mean() + (along_y * torch.exp(-edge_y)).mean()
        total = total + term / 2**scale
    return total / len(disparities)


def fused_ssim_error(reference: Tensor, warped: Tensor, sources: Tensor) -> Tensor:
    """Another function: windows of 11×11, its mean alone, no minimum and no mask."""
    from fused_ssim import fused_ssim

    pairs = warped.flatten(0, 1), reference.repeat_interleave(warped.shape[1], 0)
    return 3.0 * (1 - fused_ssim(*pairs)) / 2 + 2.0 * (pairs[0] - pairs[1]).abs().mean()


# Peers that compute something else: they are timed and not compared.
OTHER_FUNCTIONS = {"fused-ssim, 11x11"}

PEERS: dict[str, dict[str, Peer]] = {
    "backward_warp": {"grid_sample": Peer(grid_sample_warp), "kornia": Peer(kornia_warp, "kornia", waits=True)},
    "photometric_error": {
        "composition": Peer(composed_photometric),
        "fused-ssim, 11x11": Peer(fused_ssim_error, "fused_ssim", only="cuda"),
    },
    "view_synthesis_loss": {"composition": Peer(composed_view_synthesis)},
    "forward_warp": {
        "sort + segment max": Peer(splat_by_sorting, waits=True),
        "scatter_reduce amax": Peer(splat_by_scatter_reduce),
        "torch-scatter": Peer(splat_by_torch_scatter, "torch_scatter"),
    },
    "instance_stats": {"mask + median": Peer(MaskLoop(stats_by_loop), waits=True)},
    "align_scale": {"mask loop": Peer(MaskLoop(align_by_loop), waits=True)},
    "fuse_depth": {
        "mask loop": Peer(MaskLoop(fuse_by_loop), waits=True),
        "scatter_reduce amin": Peer(fuse_by_scatter_reduce),
        "torch-scatter": Peer(fuse_by_torch_scatter, "torch_scatter"),
    },
    "smoothness_loss": {"composition": Peer(composed_smoothness)},
}
