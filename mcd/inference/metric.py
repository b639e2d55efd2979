"""Predictions in metres, from the height of the camera above the road that they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcd.data.files import resize_nearest
from mcd.errors import McdError
from mcd.inference.camera import Shares, camera_matrix
from mcd.inference.pictures import Pixels
from mcd.inference.predictor import DepthPredictor, Estimate
from mcd.scene.metres import RunningScale, scale_of_road

# Rows of the depth map that the road is fitted in: more do not make the plane better.
_ROWS = 192


class NoRoadError(McdError, ValueError):
    """No picture so far shows a road under the camera, so nothing says how many metres a unit has."""


class MetricPredictor:
    """A depth net whose predictions are in metres, for pictures of one camera in the order in which they were taken.

    Args:
        camera: of every picture; None: its field of view is ``fov``.
        fov: horizontal, in degrees; it is what counts where both are given.
        camera_height: metres above the road.
        own: [H,W] of any size, True where every picture shows the own vehicle; None: nowhere.
    """

    def __init__(
        self,
        predictor: DepthPredictor,
        camera: Shares | None,
        fov: float | None,
        camera_height: float,
        own: NDArray[np.bool_] | None = None,
    ):
        if camera is None and fov is None:
            raise ValueError("metres need a camera, and the weights do not say which: give its --fov in degrees")
        self._predictor, self._camera, self._fov, self._height = predictor, camera, fov, camera_height
        self._own = own
        self._running = RunningScale()

    def predict(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Depth [H,W] in metres of images [H,W,3].

        Raises:
            NoRoadError: none of these shows a road, nor did any before.
        """
        return [estimate.depth for estimate in self.estimate(images)]

    def estimate(self, images: Sequence[Pixels], *, confidence: bool = False) -> list[Estimate]:
        """As :meth:`DepthPredictor.estimate`, in metres.

        Raises:
            NoRoadError: none of these shows a road, nor did any before.
        """
        found = self._predictor.estimate(images, confidence=confidence)
        scales = [self._running.update(self._measure(estimate.depth)) for estimate in found]
        known = [scale for scale in scales if scale is not None]
        if found and not known:
            raise NoRoadError("no picture shows a road under the camera yet: its depth cannot be put into metres")
        # Pictures before the first road have its scale.
        return [
            estimate._replace(depth=estimate.depth * metres, metres=metres)
            for estimate, metres in zip(found, (scale or known[0] for scale in scales), strict=True)
        ]

    def _measure(self, depth: Tensor) -> float | None:
        height, width = depth.shape
        step = max(height // _ROWS, 1)
        K = camera_matrix(self._camera, self._fov, height, width)
        K[:2] /= step
        small = depth[::step, ::step].cpu().numpy()
        usable = None if self._own is None else ~resize_nearest(self._own, small.shape)
        return scale_of_road(small, K, self._height, usable)


AnyPredictor = DepthPredictor | MetricPredictor
