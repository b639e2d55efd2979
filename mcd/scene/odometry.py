"""The camera's motion from frame to frame, straight from the images: direct visual odometry on depth that is known.

Pixels with texture of each frame are moved by depth and motion into the next one; the motion is what makes them fit
best (Gauss-Newton on robustly weighted differences, coarse to fine: Steinbrücker, Sturm and Cremers, ICCV workshops
2011; Kerl, Sturm and Cremers, ICRA 2013). Half of the pixels are of the road, whose depth a net that knows roads
knows best and on which nothing drives along; the others count less. All frames are solved together: a camera does not
change its speed much from one frame to the next. So the speed is in the unit of depth, and cannot drift with a
net that learns. Not in the paper.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from torch import Tensor

from mcd.geometry import rigid, scale_intrinsics
from mcd.ops.camera import pixel_grid
from mcd.scene.plane import fit_road, pixel_rays, under_camera

_LEVELS = ((4, 8), (2, 8), (1, 6))
"""How many times smaller, and iterations."""
_PIXELS = 2000
_OTHERS = 0.3
"""What a pixel counts that is not of the road, whose depth is known less and which may move."""
_NOISE = 0.02
"""Usual difference of brightness of the same point, from which on it counts less."""
_FREEDOM = 5.0
"""Of Student's distribution, as Kerl et al. found differences to be."""
_CORRELATED = 100.0
"""So many pixels count as one: their errors, above all of depth, are not independent."""
_STEADY = 0.02
"""Usual change of a component of the translation from one frame to the next, in the unit of depth."""
_SMALLEST = 14
"""Height and width of a picture in which anything is to be seen."""
_ON_PLANE = 0.08
"""Height of what counts as road, in heights of the camera."""


@torch.no_grad()
def direct_motion(images: Tensor, depth: Tensor, K: Tensor, begin: Tensor, own: Tensor | None = None) -> Tensor:
    """Motion of a camera over consecutive frames: T [N-1,4,4] that takes points of each frame to the next.

    Args:
        images: [N,3,H,W] in [0,1], N >= 2; depth: [N,1,H,W], > 0; K: [3,3].
        begin: [N-1,4,4] where the search begins, such as a pose net's.
        own: [H,W] bool, what shows the own vehicle; None: nothing.
    """
    road = road_pixels(depth, K)
    if own is not None:
        road &= ~own
    R, t = begin[:, :3, :3].clone(), begin[:, :3, 3].clone()
    for shrink, iterations in _LEVELS:
        if min(images.shape[-2:]) < _SMALLEST * shrink:
            continue
        level = _Level(images, depth, K, road, own, shrink)
        for _ in range(iterations):
            step = _steady_step(*level.normal_equations(R, t), t)
            turn = _rotation(step[:, 3:])
            R, t = turn @ R, (turn @ t[..., None])[..., 0] + step[:, :3]
    return rigid(R, t)


def road_pixels(depth: Tensor, K: Tensor) -> Tensor:
    """Pixels [N,H,W] bool that lie on the plane of the road of their depth map [N,1,H,W]; none where there is none."""
    rays = pixel_rays((depth.shape[-2], depth.shape[-1]), K.double().cpu().numpy())
    under = under_camera(rays)
    found: list[NDArray[np.bool_]] = []
    for values in depth[:, 0].double().cpu().numpy():
        plane = fit_road(values[under], rays[under])
        below = rays[..., 1] > 0
        on_plane = (
            below & (np.abs(plane.height_of(values, rays)) < _ON_PLANE * plane.height) if plane else ~below & below
        )
        found.append(on_plane)
    return torch.from_numpy(np.stack(found)).to(depth.device)


class _Level:
    """Consecutive frames at one size: chosen pixels of all but the last, all of the next."""

    def __init__(self, images: Tensor, depth: Tensor, K: Tensor, road: Tensor, own: Tensor | None, shrink: int):
        height, width = images.shape[-2] // shrink, images.shape[-1] // shrink
        grey = F.avg_pool2d(images.mean(1, keepdim=True), shrink)
        inverse = F.avg_pool2d(1 / depth, shrink)
        of_road = F.avg_pool2d(road[:, None].to(depth), shrink) > 0.5
        self.K = scale_intrinsics(K, 1 / shrink, 1 / shrink)
        along_x = F.pad((grey[..., 2:] - grey[..., :-2]) / 2, (1, 1))
        along_y = F.pad((grey[..., 2:, :] - grey[..., :-2, :]) / 2, (0, 0, 1, 1))
        self.following = torch.cat((grey, along_x, along_y), 1)[1:]
        texture = along_x.square() + along_y.square()
        if own is not None:
            texture = texture.masked_fill(F.max_pool2d(own[None, None].to(depth), shrink)[0, 0] > 0, 0.0)
        texture, of_road = texture[:-1].flatten(1), of_road[:-1].flatten(1)
        count = min(_PIXELS // 2, height * width // 4)
        chosen = torch.cat(
            [texture.masked_fill(~which, 0.0).topk(count, 1).indices for which in (of_road, ~of_road)], dim=1
        )
        self.weight = torch.where(of_road, 1.0, _OTHERS).gather(1, chosen) * (texture.gather(1, chosen) > 0)
        self.brightness = grey[:-1].flatten(1).gather(1, chosen)
        rays = torch.linalg.inv(self.K) @ pixel_grid(height, width, like=depth)
        self.points = rays[:, chosen].transpose(0, 1) / inverse[:-1].flatten(1).gather(1, chosen)[:, None]
        self.size = height, width

    def normal_equations(self, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """J^T W J [n,6,6] and J^T W r [n,6] of the differences, by a small motion (translation, rotation) after it."""
        height, width = self.size
        x, y, z = (R @ self.points + t[..., None]).unbind(1)
        ahead, z = z > 1e-2, z.clamp(min=1e-2)
        x, y = x / z, y / z
        fx, fy, cx, cy = self.K[0, 0], self.K[1, 1], self.K[0, 2], self.K[1, 2]
        u, v = fx * x + cx, fy * y + cy
        seen = ahead & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        grid = torch.stack(((2 * u + 1) / width - 1, (2 * v + 1) / height - 1), -1)[:, None]
        value, along_x, along_y = F.grid_sample(self.following, grid, align_corners=False)[:, :, 0].unbind(1)
        error = value - self.brightness
        weight = self.weight * seen * (_FREEDOM + 1) / (_FREEDOM + (error / _NOISE).square())
        a, b = fx * along_x, fy * along_y
        J = torch.stack(
            (
                a / z,
                b / z,
                -(a * x + b * y) / z,
                -a * x * y - b * (1 + y * y),
                a * (1 + x * x) + b * x * y,
                b * x - a * y,
            ),
            dim=1,
        )
        # How much brighter the next picture is as a whole is one more unknown, and taken out.
        share = (weight / weight.sum(1, keepdim=True).clamp(min=1e-6))[:, None]
        error = error - (share[:, 0] * error).sum(1, keepdim=True)
        J = J - (share * J).sum(2, keepdim=True)
        weighted = J * (weight / (_CORRELATED * _NOISE**2))[:, None]
        return weighted @ J.transpose(1, 2), (weighted @ error[..., None])[..., 0]


def _steady_step(H: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The step [n,6] of all frames together, after which translations change little from frame to frame."""
    count = len(t)
    # Upper bands of the symmetric system, whose unknowns are those of frame after frame.
    bands = np.zeros((7, 6 * count))
    blocks = H.double().cpu().numpy()
    for row in range(6):
        for column in range(row, 6):
            bands[6 - (column - row), column::6] = blocks[:, row, column]
    # Damping of what the images tell nothing of.
    bands[6] += 1e-3 * bands[6] + 1e-2
    right = -b.double().cpu().numpy()
    where, change = t.double().cpu().numpy(), 1 / _STEADY**2
    difference = np.diff(where, axis=0)
    for axis in range(3):
        bands[6, axis::6][1:] += change
        bands[6, axis::6][:-1] += change
        bands[0, axis::6][1:] -= change
    right[:-1, :3] += change * difference
    right[1:, :3] -= change * difference
    step = solveh_banded(bands, right.ravel()).reshape(count, 6)
    return torch.from_numpy(step).to(t)


def _rotation(vector: Tensor) -> Tensor:
    """[n,3,3] about vectors [n,3] by their length in radians."""
    return torch.matrix_exp(
        torch.stack(
            [
                torch.stack([torch.zeros_like(vector[:, 0]), -vector[:, 2], vector[:, 1]], -1),
                torch.stack([vector[:, 2], torch.zeros_like(vector[:, 0]), -vector[:, 0]], -1),
                torch.stack([-vector[:, 1], vector[:, 0], torch.zeros_like(vector[:, 0])], -1),
            ],
            dim=1,
        )
    )
