"""A small rendered world: a road, a hillside far away, and textured boxes that stand on the road or drive along."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcd.scene.plane import pixel_rays

SIZE = (96, 192)
K = np.array([[110.0, 0, 95.5], [0, 110.0, 40.0], [0, 0, 1]])
SPEED = 0.4


class Box(NamedTuple):
    """A textured front that stands on the road, seen from z = 0 at time 0."""

    x: float
    z: float
    width: float
    height: float
    speed: float = 0.0
    """Ahead, a frame."""


class Frame(NamedTuple):
    image: Tensor
    depth: np.ndarray
    owner: np.ndarray
    """[H,W], number of the box; -1 for the world."""


def noise(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """A smooth random texture on a plane, in [0, 1]."""
    table = np.random.default_rng(seed).random((64, 64))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    at = [table[(i + di) % 64, (j + dj) % 64] for di in (0, 1) for dj in (0, 1)]
    return (at[0] * (1 - b) + at[1] * b) * (1 - a) + (at[2] * (1 - b) + at[3] * b) * a


def render(time: int, boxes: list[Box], speed: float = SPEED, marking: bool = False) -> Frame:
    """What a camera one unit above a road sees: the road, a hillside far away, and boxes."""
    rays = pixel_rays(SIZE, K)
    x, y = rays[..., 0], rays[..., 1]
    gone = speed * time
    depth = np.where(y > 1 / 60, 1 / np.maximum(y, 1e-6), 60.0)
    # Texture of about four pixels a cell wherever it is, so that there is some everywhere.
    road = noise(x * depth * 2.5, (depth + gone) * 1.2, 0)
    wall = noise(x * 60 / 2.5, y * 60 / 2.5, 1)
    value = np.where(depth < 60, 0.25 + 0.3 * road, 0.2 + 0.7 * wall)
    if marking:  # light that keeps its place before the camera, on the road
        lit = (np.abs(x * depth + 1.5) < 0.7) & (depth > 4) & (depth < 9)
        value = np.where(lit, noise(x * depth * 6, depth * 3, 2), value)
    owner = np.full(SIZE, -1)
    for number, box in sorted(enumerate(boxes), key=lambda item: -item[1].z):
        z = box.z + (box.speed * time - gone)
        u, v = x * z - box.x, 1 - y * z
        inside = (np.abs(u) < box.width / 2) & (v > 0) & (v < box.height)
        cells = 110 / z / 5
        value = np.where(inside, noise(u * cells + 20, v * cells + 20, 10 + number), value)
        depth, owner = np.where(inside, z, depth), np.where(inside, number, owner)
    image = torch.from_numpy(value).float().expand(3, -1, -1).contiguous()
    return Frame(image, depth.astype(np.float32), owner)


def pose(ahead: float) -> np.ndarray:
    T = np.eye(4, dtype=np.float32)
    T[2, 3] = -ahead
    return T
