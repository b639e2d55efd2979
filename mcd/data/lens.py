"""From the frames of a camera to those of a pinhole camera: lens distortion taken out, then cut.

With x and y the coordinates of a ray at a distance of 1 and r² = x² + y², a lens shows it at (OpenCV's models)

    pinhole   x·(1 + k1·r² + k2·r⁴ + k3·r⁶) + 2·p1·x·y + p2·(r² + 2·x²)
              y·(1 + k1·r² + k2·r⁴ + k3·r⁶) + p1·(r² + 2·y²) + 2·p2·x·y
    fisheye   (x, y)·θd/r with θ = atan r, θd = θ·(1 + k1·θ² + k2·θ⁴ + k3·θ⁶ + k4·θ⁸)

(Brown, 1966; Kannala and Brandt, TPAMI 2006). The undistorted frame has the same K and size, so these formulas say of
every pixel of it where it was; nothing has to be inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.data.files import Picture

Floats = NDArray[np.float64]


def distort(x: Floats, y: Floats, camera: str, coefficients: Sequence[float]) -> tuple[Floats, Floats]:
    """Where a ``pinhole`` lens (k1, k2, p1, p2, k3) or a ``fisheye`` (k1 … k4) shows rays at a distance of 1."""
    square = x * x + y * y
    if camera == "fisheye":
        k1, k2, k3, k4 = coefficients
        radius = np.sqrt(square)
        angle = np.arctan(radius)
        s = angle * angle
        bent = angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
        factor = np.where(radius > 1e-9, bent / np.maximum(radius, 1e-9), 1.0)
        return x * factor, y * factor
    k1, k2, p1, p2, k3 = coefficients
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    return (
        x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
        y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
    )


@dataclass(frozen=True)
class Lens:
    """What is done to every frame of a camera. Frozen and of plain numbers, so that its maps are made once."""

    size: tuple[int, int]
    """Height and width of the frames as they come."""
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy in their pixels."""
    camera: str = "pinhole"
    distortion: tuple[float, ...] | None = None
    crop: tuple[float, float, float, float] | None = None
    """Top, bottom, left, right as shares; what is cut off is cut off after the lens."""

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns that are kept."""
        if self.crop is None:
            return slice(0, self.size[0]), slice(0, self.size[1])
        top, bottom, left, right = (
            round(share * side) for share, side in zip(self.crop, (*self.size[:1] * 2, *self.size[1:] * 2), strict=True)
        )
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))

    @property
    def kept_size(self) -> tuple[int, int]:
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def intrinsic_matrix(self) -> Floats:
        """[3,3] in pixels of what is kept."""
        fx, fy, cx, cy = self.intrinsics
        rows, columns = self.window
        return np.array([[fx, 0, cx - columns.start], [0, fy, cy - rows.start], [0, 0, 1]], np.float64)

    def picture(self, image: Picture) -> Picture:
        """A frame [H,W,3], interpolated bilinearly; beyond its border it is black."""
        if self.distortion is not None:
            image = _bilinear(image, *_source(self.size, self.intrinsics, self.camera, self.distortion))
        rows, columns = self.window
        return image[rows, columns]

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Depth or a mask [H,W] of a frame, each pixel the nearest; 0 beyond the border."""
        if self.distortion is not None:
            u, v = (np.rint(p).astype(int) for p in _source(self.size, self.intrinsics, self.camera, self.distortion))
            inside = (u >= 0) & (v >= 0) & (u < self.size[1]) & (v < self.size[0])
            values = np.where(inside, values[v.clip(0, self.size[0] - 1), u.clip(0, self.size[1] - 1)], 0)
        rows, columns = self.window
        return values[rows, columns]


@lru_cache(maxsize=4)
def _source(
    size: tuple[int, int], intrinsics: tuple[float, float, float, float], camera: str, coefficients: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """Column and row [H,W] of the distorted frame that every pixel of the undistorted one shows."""
    fx, fy, cx, cy = intrinsics
    v, u = np.mgrid[: size[0], : size[1]].astype(np.float64)
    x, y = distort((u - cx) / fx, (v - cy) / fy, camera, coefficients)
    return fx * x + cx, fy * y + cy


def _bilinear(image: Picture, u: Floats, v: Floats) -> Picture:
    height, width = image.shape[:2]
    inside = (u > -1) & (v > -1) & (u < width) & (v < height)
    u, v = u.clip(0, width - 1), v.clip(0, height - 1)
    left, top = np.minimum(u.astype(int), width - 2), np.minimum(v.astype(int), height - 2)
    across, down = (u - left)[..., None], (v - top)[..., None]
    upper = image[top, left] * (1 - across) + image[top, left + 1] * across
    lower = image[top + 1, left] * (1 - across) + image[top + 1, left + 1] * across
    blended = upper * (1 - down) + lower * down
    return np.where(inside[..., None], blended + 0.5, 0).astype(np.uint8)
