"""The scene loss of Nguyen et al. (CVPR 2024), one formula after the other in plain PyTorch and for any precision.

Nothing of ``mcd`` is used. Where the published code is mended, this follows the mended form: holes are not splatted,
cells are rounded to the nearest pixel, pixels out of the frame take no part, the mean motion is that of seen pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def euler_matrix(angles: Tensor, translation: Tensor) -> Tensor:
    """[N,4,4] with R = Rx Ry Rz."""
    zero, one = torch.zeros_like(angles[:, 0]), torch.ones_like(angles[:, 0])
    (c1, c2, c3), (s1, s2, s3) = angles.cos().unbind(1), angles.sin().unbind(1)
    Rx = torch.stack((one, zero, zero, zero, c1, -s1, zero, s1, c1), 1).view(-1, 3, 3)
    Ry = torch.stack((c2, zero, s2, zero, one, zero, -s2, zero, c2), 1).view(-1, 3, 3)
    Rz = torch.stack((c3, -s3, zero, s3, c3, zero, zero, zero, one), 1).view(-1, 3, 3)
    top = torch.cat((Rx @ Ry @ Rz, translation[:, :, None]), 2)
    return torch.cat((top, top.new_tensor([[[0, 0, 0, 1]]]).expand(len(top), 1, 4)), 1)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel coordinates [3,H*W]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y, torch.ones_like(x))).flatten(1).to(like)


def project(depth: Tensor, K: Tensor, T: Tensor, motion: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Homogeneous q [B,3,H,W] of every pixel of a depth map [B,1,H,W], and its coordinates [B,2,H,W], not clamped."""
    batch, _, height, width = depth.shape
    rays = torch.linalg.inv(K) @ pixel_grid(height, width, depth)
    X = T[:, :3, :3] @ (rays * depth.flatten(2)) + T[:, :3, 3:]
    q = (K @ X).view(batch, 3, height, width)
    if motion is not None:
        q = torch.cat((q[:, :2] + motion, q[:, 2:]), 1)
    return q, q[:, :2] / (q[:, 2:] + 1e-5)


def sample(image: Tensor, coords: Tensor) -> Tensor:
    """Bilinear values at clamped coordinates."""
    height, width = image.shape[-2:]
    x, y = coords[:, 0].clamp(0, width - 1), coords[:, 1].clamp(0, height - 1)
    grid = torch.stack((x / ((width - 1) / 2) - 1, y / ((height - 1) / 2) - 1), -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def forward_warp(attribute: Tensor, depth: Tensor, K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Attribute and depth in the destination frame; nine rays a pixel, the nearest of a cell wins."""
    batch, _, height, width = depth.shape
    steps = (torch.arange(3).to(depth) - 1) / 3
    offsets = torch.stack((steps.repeat(3), steps.repeat_interleave(3), torch.zeros(9).to(depth)))
    # Pixel after pixel, nine rays each: of equally near rays the first wins.
    grid = pixel_grid(height, width, depth).repeat_interleave(9, 1) + offsets.repeat(1, height * width)
    fine = depth.flatten(2).repeat_interleave(9, 2)
    X = T[:, :3, :3] @ (torch.linalg.inv(K) @ grid * fine) + T[:, :3, 3:]
    q = K @ X
    Z, u = q[:, 2], q[:, :2] / q[:, 2:]
    column, row = torch.floor(u.detach() + 0.5).unbind(1)
    kept = (fine[:, 0] > 0) & (Z > 1e-3) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = torch.where(kept, row * width + column, height * width).long()
    far = torch.where(kept, Z.detach(), torch.inf)
    nearest = torch.full((batch, height * width + 1), torch.inf).to(Z).scatter_reduce(1, cell, far, "amin")
    order = torch.arange(cell.shape[1]).expand_as(cell)
    wins = kept & (far == nearest.gather(1, cell))
    first = torch.full_like(nearest, cell.shape[1], dtype=torch.long).scatter_reduce(
        1, torch.where(wins, cell, height * width), torch.where(wins, order, cell.shape[1]), "amin"
    )[:, :-1]
    hole = first == cell.shape[1]
    depth_dst = torch.where(hole, 0.0, Z.gather(1, first.masked_fill(hole, 0))).view(batch, 1, height, width)
    R, t = T[:, :3, :3], T[:, :3, 3:]
    back = torch.cat((torch.cat((R.mT, -R.mT @ t), 2), T[:, 3:]), 1)
    q = project(torch.where(hole.view(batch, 1, height, width), 1.0, depth_dst), K, back)[0]
    coords = q[:, :2] / q[:, 2:]
    warped = torch.where(hole.view(batch, 1, height, width), 0.0, sample(attribute, coords))
    return warped, depth_dst


def residual_motion(
    reference: Tensor, sources: Tensor, depth: Tensor, K: Tensor, T: Tensor, net, filtered: bool
) -> Tensor:
    """[B,S,2,H,W] on the reference grid; ``net(warped, source, index)`` is the motion on the source's grid."""
    aligned = []
    for s in range(sources.shape[1]):
        warped, depth_src = forward_warp(reference, depth, K, T[:, s])
        found = net(warped, sources[:, s], s)
        with torch.no_grad():
            keep = depth_src > 0
            if filtered:
                size = found.norm(dim=1, keepdim=True)
                mean = (size * keep).sum((1, 2, 3), keepdim=True) / keep.sum((1, 2, 3), keepdim=True)
                keep = keep & (size >= 1e-5) & (size >= mean)
        R, t = T[:, s, :3, :3], T[:, s, :3, 3:]
        back = torch.cat((torch.cat((R.mT, -R.mT @ t), 2), T[:, s, 3:]), 1)
        aligned.append(forward_warp(found * keep, depth_src, K, back)[0])
    motion = torch.stack(aligned, 1)
    moves = (motion.detach() != 0).any(2, keepdim=True).all(1, keepdim=True)
    return motion * moves


def ssim_error(x: Tensor, y: Tensor) -> Tensor:
    """[B,C,H,W]: (1 - SSIM) / 2 in [0,1], contrast and structure only, reflection-padded."""
    c2 = 9e-6
    # Moments about one value a window: E[x²] - E[x]² would lose half of the digits.
    windows = [F.unfold(z.flatten(0, 1)[:, None], 3) for z in (x, y)]
    dx, dy = (w - w.mean(1, keepdim=True) for w in windows)
    ssim = (2 * (dx * dy).mean(1) + c2) / ((dx * dx).mean(1) + (dy * dy).mean(1) + c2)
    inner = ssim.view(*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2)
    return F.pad(((1 - inner) / 2).clamp(0, 1), (1, 1, 1, 1), mode="reflect")


def photometric(reference: Tensor, image: Tensor) -> Tensor:
    return 3 * ssim_error(image, reference).mean(1) + 2 * (reference - image).abs().mean(1)


def view_synthesis(
    reference: Tensor, sources: Tensor, depth: Tensor, K: Tensor, T: Tensor, motion: Tensor | None
) -> Tensor:
    """One scale: Σ mask · error / Σ (mask + 1e-10)."""
    size = reference.shape[-2:]
    fine = F.interpolate(depth, size, mode="bilinear", align_corners=False)
    errors, identity = [], []
    for s in range(sources.shape[1]):
        q, coords = project(fine, K, T[:, s], None if motion is None else motion[:, s])
        x, y = coords.detach().unbind(1)
        seen = (q[:, 2] > 1e-3) & (x >= 0) & (x <= size[1] - 1) & (y >= 0) & (y <= size[0] - 1)
        warped = sample(sources[:, s], coords)
        errors.append(torch.where(seen, photometric(reference, warped), torch.inf))
        identity.append(photometric(reference, sources[:, s]))
    error, still = torch.stack(errors).amin(0), torch.stack(identity).amin(0)
    mask = error < still
    return torch.where(mask, error, 0.0).sum() / (mask + 1e-10).sum()


def smoothness(disp: Tensor, image: Tensor) -> Tensor:
    normal = disp / disp.mean((1, 2, 3), keepdim=True)
    across = (normal[..., :-1] - normal[..., 1:]).abs()
    down = (normal[..., :-1, :] - normal[..., 1:, :]).abs()
    edge_x = (image[..., :-1] - image[..., 1:]).abs().mean(1, keepdim=True)
    edge_y = (image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, keepdim=True)
    return (across * (-edge_x).exp()).mean() + (down * (-edge_y).exp()).mean()


def sparsity(motion: Tensor) -> Tensor:
    size = motion.abs()
    mean = size.mean((-2, -1), keepdim=True).detach()
    return (2 * mean * (size / (mean + 1e-24) + 1).sqrt()).mean()


def scene_loss(reference: Tensor, sources: Tensor, K: Tensor, depths: list[Tensor], T: Tensor, net) -> Tensor:
    """Photometric + 0.002 smoothness / 2^s (means over scales) + 0.02 sparsity, all nets training together."""
    motion = residual_motion(reference, sources, depths[0], K, T, net, True)
    terms = []
    for s, depth in enumerate(depths):
        image = F.interpolate(reference, depth.shape[-2:], mode="area")
        terms.append(view_synthesis(reference, sources, depth, K, T, motion))
        terms[-1] = terms[-1] + 0.002 / 2**s * smoothness(1 / depth, image)
    return torch.stack(terms).mean() + 0.02 * sparsity(motion)
