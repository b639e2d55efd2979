"""The plane of the road in a depth map, whatever stands on it: a robust fit that gives the same plane every time.

On a plane n·X = h, with X = z·r and r = K⁻¹·(u, v, 1), the inverse depth is linear in the ray: 1/z = w·r, w = n/h. A
pixel of the road has z·(w·r) = 1; how far it is from 1 is the relative error of its depth, and times h its height
above or below the plane. So one tolerance serves depth in any unit, near and far.

Planes through three random pixels are tried (Fischler and Bolles, CACM 1981; the numbers are drawn from a fixed seed),
the one that most pixels lie on is fitted again to those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Relative error of the depth of a pixel that lies on the plane: 8 cm of height for a camera at 1.6 m.
_TOLERANCE = 0.05
_TRIES = 400
# More pixels do not move the plane by a tenth of a per cent.
_PIXELS = 3000
_REFITS = 5
# Degrees between the plane's normal and the camera's y axis: pitch and roll of a mounted camera, slopes.
_TILT = 20.0
# Fewer, and it is chance; a smaller share, and it is no road.
_LEAST, _LEAST_SHARE = 30, 0.3


@dataclass(frozen=True)
class RoadPlane:
    """n·X = h in the camera's frame (x right, y down, z forward)."""

    normal: Floats
    """[3], of length 1, towards the ground."""
    height: float
    """Of the camera above the plane, in the unit of the depth."""
    share: float
    """Of the pixels asked, how many lie on it."""

    def height_of(self, depth: NDArray[Any], rays: Floats) -> Floats:
        """Height [...] above the plane of pixels with this depth [...] and these rays [...,3]."""
        return self.height - depth * (rays @ self.normal)


def pixel_rays(size: tuple[int, int], K: Floats) -> Floats:
    """K⁻¹·(u, v, 1) of every pixel [H,W,3]."""
    v, u = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return np.stack((u, v, np.ones_like(u)), axis=-1) @ np.linalg.inv(K).T


def under_camera(rays: Floats, half_width: float = 1.5, horizon: float = 0.1) -> NDArray[np.bool_]:
    """Pixels [H,W] that show road if the road is flat and straight ahead.

    Args:
        rays: [H,W,3].
        half_width: of the strip ahead of the camera, in heights of the camera.
        horizon: slope of the rays (tangent) below which they are left out: there a small pitch moves the plane far.
    """
    return (rays[..., 1] > horizon) & (np.abs(rays[..., 0]) < half_width * rays[..., 1])


def fit_road(depth: NDArray[Any], rays: Floats, tolerance: float = _TOLERANCE) -> RoadPlane | None:
    """The plane that most of the pixels lie on, or None where no plane of a road is among them.

    Args:
        depth: [n], > 0, in any unit.
        rays: [n,3].
        tolerance: relative error of the depth of a pixel on the plane.
    """
    if len(depth) < _LEAST:
        return None
    rng = np.random.default_rng(0)
    if len(depth) > _PIXELS:
        chosen = rng.choice(len(depth), _PIXELS, replace=False)
        depth, rays = depth[chosen], rays[chosen]
    points = depth[:, None].astype(np.float64) * rays
    triples = points[rng.integers(len(points), size=(_TRIES, 3))]
    # Three pixels in a line span no plane.
    triples = triples[np.abs(np.linalg.det(triples)) > 1e-9 * np.linalg.norm(triples, axis=2).prod(axis=1)]
    planes = np.linalg.solve(triples, np.ones((len(triples), 3, 1)))[..., 0] if len(triples) else np.empty((0, 3))
    planes = planes[_is_road(planes)]
    if not len(planes):
        return None
    w = planes[(np.abs(planes @ points.T - 1) < tolerance).sum(axis=1).argmax()]
    inside = np.abs(points @ w - 1) < tolerance
    for _ in range(_REFITS):
        w = np.linalg.lstsq(points[inside], np.ones(inside.sum()), rcond=None)[0]
        inside = np.abs(points @ w - 1) < tolerance
        if inside.sum() < _LEAST or not _is_road(w[None])[0]:
            return None
    share = float(inside.mean())
    length = float(np.linalg.norm(w))
    return RoadPlane(w / length, 1 / length, share) if share >= _LEAST_SHARE else None


def _is_road(planes: Floats) -> NDArray[np.bool_]:
    """Whether w [n,3] are planes below the camera, about level."""
    return planes[:, 1] > np.cos(np.radians(_TILT)) * np.linalg.norm(planes, axis=1).clip(min=1e-12)
