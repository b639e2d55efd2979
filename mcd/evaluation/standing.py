"""Points that stand on the road: measured points 0.3 to 2.5 m above the plane fitted to the road's.

They are vehicles, people, poles, the lower parts of houses. A net that has learned nothing but which image row is how
far is right on the road, and wrong here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.scene.plane import fit_road, pixel_rays, under_camera

LOWEST, HIGHEST = 0.3, 2.5
"""Metres above the road."""

# Heights of the camera to either side: both lanes, whose points are few in a sparse measurement.
_HALF_WIDTH = 2.5


def standing_points(truth: NDArray[np.float32], K: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Pixels [H,W] whose measured points stand on the road; None where the truth shows no road.

    Args:
        truth: [H,W], metres, 0 where nothing was measured.
        K: [3,3] in pixels of the truth.
    """
    rays = pixel_rays(truth.shape, np.asarray(K, np.float64))
    measured = truth > 0
    asked = measured & under_camera(rays, _HALF_WIDTH)
    plane = fit_road(truth[asked], rays[asked])
    if plane is None:
        return None
    height = plane.height_of(truth, rays)
    return measured & (height >= LOWEST) & (height <= HIGHEST)
