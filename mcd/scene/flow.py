"""Optical flow by image gradients, with no network: Lucas and Kanade (IJCAI 1981), from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from mcd.ops.camera import pixel_grid

_COARSEST = 12
"""Pixels of the smaller side of the coarsest image, about: there, what moves by a twelfth moves by one pixel."""
_ITERATIONS = 3
_RADIUS = 4
"""Of the window that moves as one."""
_NOISE = 1e-5
"""Squared gradients of a textureless surface, for images in [0, 1]."""


@dataclass(frozen=True)
class Flow:
    """Of B pairs of images."""

    flow: Tensor
    """[B,2,H,W] in pixels, x and y: what is at p in the first image is at p + flow in the second."""
    texture: Tensor
    """[B,1,H,W]: smaller eigenvalue of the structure tensor, mean of squared gradients in [0, 1]² over the window."""


def optical_flow(first: Tensor, second: Tensor) -> Flow:
    """Displacement of every window of the first image, in full where the images have texture and only there.

    Args:
        first, second: [B,3,H,W] in [0, 1], on the CPU.
    """
    pyramid = [(first.mean(1, keepdim=True), second.mean(1, keepdim=True))]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _COARSEST:
        a, b = pyramid[-1]
        pyramid.append((F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)))
    flow = texture = torch.empty(0)
    for level, (a, b) in enumerate(reversed(pyramid)):
        size = (a.shape[-2], a.shape[-1])
        if level == 0:
            flow = a.new_zeros(len(a), 2, *size)
        else:
            flow = 2 * F.interpolate(flow, size, mode="bilinear", align_corners=False)
        flow, texture = _refined(a, b, flow)
    return Flow(flow, texture)


def _refined(a: Tensor, b: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The flow at one level, and the smaller eigenvalue of the structure tensor."""
    gx = F.pad((a[..., 2:] - a[..., :-2]) / 2, (1, 1))
    gy = F.pad((a[..., 2:, :] - a[..., :-2, :]) / 2, (0, 0, 1, 1))
    xx, yy, xy = window_mean(torch.cat((gx * gx, gy * gy, gx * gy), 1), _RADIUS).split(1, 1)
    det = (xx + _NOISE) * (yy + _NOISE) - xy * xy
    height, width = a.shape[-2:]
    grid = pixel_grid(height, width, like=a).reshape(-1, height, width)[:2]
    half = a.new_tensor([width, height]).view(1, 2, 1, 1) / 2
    for _ in range(_ITERATIONS):
        place = ((grid + flow + 0.5) / half - 1).permute(0, 2, 3, 1)
        difference = a - F.grid_sample(b, place, padding_mode="border", align_corners=False)
        bx, by = window_mean(torch.cat((gx * difference, gy * difference), 1), _RADIUS).split(1, 1)
        step = torch.cat(((yy + _NOISE) * bx - xy * by, (xx + _NOISE) * by - xy * bx), 1) / det
        flow = flow + step.clamp(-1, 1)
    return flow, (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()


def window_mean(values: Tensor, radius: int) -> Tensor:
    """Mean [B,C,H,W] of the square window around every pixel, on the CPU; beyond the border is what is at it."""
    # A running sum: torch's pooling takes ten times as long.
    side = 2 * radius + 1
    return torch.from_numpy(ndimage.uniform_filter(values.cpu().numpy(), (1, 1, side, side), mode="nearest"))
