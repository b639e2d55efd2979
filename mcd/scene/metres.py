"""Metres for depth that has no unit: from the height of the camera above the road, or from how far it has moved.

Every frame says how many metres a unit of its depth has; the median of the last frames is what counts, so that a frame
whose road is hidden, or whose measurement is off, does not make the scale jump.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.files import DataError
from mcd.scene.plane import fit_road, pixel_rays, under_camera
from mcd.scene.trajectory import read_trajectory

# On KITTI 2011_09_26_drive_0001, half as many scatter more and twice as many no less.
_MEMORY = 15


class RunningScale:
    """The median of the last measurements of a scale, frame after frame; robust against single wrong ones."""

    def __init__(self, memory: int = _MEMORY):
        self._logarithms: deque[float] = deque(maxlen=memory)

    def update(self, measured: float | None) -> float | None:
        """The scale of this frame, given what it measured (None: nothing); None as long as nothing was measured."""
        if measured is not None and math.isfinite(measured) and measured > 0:
            self._logarithms.append(math.log(measured))
        return math.exp(float(np.median(self._logarithms))) if self._logarithms else None


def scale_of_road(
    depth: NDArray[Any], K: NDArray[Any], camera_height: float, usable: NDArray[np.bool_] | None = None
) -> float | None:
    """Metres per unit of a depth map [H,W], from the road under the camera; None where it shows no road.

    Args:
        K: [3,3] in pixels of the depth map.
        camera_height: of the camera above the road, in metres.
        usable: [H,W], False where the picture shows the own vehicle.
    """
    rays = pixel_rays(depth.shape[:2], np.asarray(K, np.float64))
    asked = under_camera(rays)
    if usable is not None:
        asked &= usable
    plane = fit_road(depth[asked].astype(np.float64), rays[asked])
    return None if plane is None else camera_height / plane.height


def read_positions(path: Path, frames: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Where the camera was, [3] in metres, by frame.

    The file has a line a frame, in the order of the sequence; :mod:`mcd.scene.trajectory` says of which kinds it may
    be. Latitude, longitude and altitude become metres east, north and up of the first line.

    Raises:
        DataError: the file is missing or of no kind, a number is none, or there is not a line a frame.
    """
    trajectory = read_trajectory(path)
    if len(trajectory) != len(frames):
        raise DataError(f"poses {path} have {len(trajectory)} lines, and there are {len(frames)} frames")
    return dict(zip(frames, trajectory.positions, strict=True))


def scale_of_motion(
    positions: Mapping[str, NDArray[np.float64]], around: Sequence[str], translations: Sequence[NDArray[Any]]
) -> float | None:
    """Metres per unit, from how far the camera went and how far a pose net says that it went.

    Args:
        positions: of :func:`read_positions`.
        around: consecutive frames.
        translations: between them [3], one fewer.

    Returns:
        None for a camera that stands: less than 5 cm a frame is noise of the measurement.
    """
    steps = [positions[after] - positions[before] for before, after in itertools.pairwise(around)]
    moved = sum(float(np.linalg.norm(step)) for step in steps)
    predicted = sum(float(np.linalg.norm(translation)) for translation in translations)
    return moved / predicted if moved > 0.05 * len(steps) and predicted > 0 else None
