"""The camera of a picture: given by shares of its width and height, or by a field of view."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from mcd.data.files import pinhole

Shares = tuple[float, float, float, float]
"""fx, fy, cx, cy in terms of width and height of the picture, whose left upper corner is 0."""


def camera_matrix(camera: Shares | None, fov: float | None, height: int, width: int) -> NDArray[Any]:
    """K [3,3] in pixels of a picture; the field of view, horizontal in degrees, is what counts where both are given.

    Raises:
        ValueError: neither is given.
    """
    if fov is not None:
        focal = width / 2 / math.tan(math.radians(fov) / 2)
        return pinhole(focal, focal, (width - 1) / 2, (height - 1) / 2)
    if camera is None:
        raise ValueError("there is no camera: the weights do not say which, and no --fov is given")
    fx, fy, cx, cy = camera
    return pinhole(fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)
