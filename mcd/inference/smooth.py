"""Depth that does not flicker: the depth before, moved as the camera moves, takes part in that of every frame.

For a pixel p with depth d, the pose net says where it was in the frame before, p', and how much its depth has changed
since. The steady depth that was there, moved along, is off from d by e(p) (:func:`mcd.inference.motion.disagreement`),
and

    ln d_steady = ln d + w (m + k(p) (e(p) - m)),      m = median e,      k = 1 - |e - m| / ln 1.2, at least 0

over pixels whose colour is found again at p'. Elsewhere (what was hidden, what moves) k is 0, and the common change m,
which makes whole frames jump nearer or farther, is taken out all the same. No edge is mixed with what is behind it:
there e is large, and k is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcd.geometry import invert_rigid
from mcd.inference.camera import camera_matrix
from mcd.inference.motion import CameraMotion, Change, disagreement
from mcd.inference.predictor import DepthPredictor

WEIGHT = 0.7
"""Of the depth before; `python -m benchmarks.flicker` has what others would do."""

_FARTHEST = math.log(1.2)
# A smaller share that is found again, or a larger change of the whole: another scene.
_LEAST_SHARE, _CUT = 0.2, math.log(1.5)
# Degrees, for nets that do not say which camera they are for.
_FOV = 60.0


class SmoothPredictor(DepthPredictor):
    """A depth net for the frames of one film, in their order.

    Args:
        motion: the pose net that was trained with the depth net, so that its unit is the same.
        fov: horizontal, in degrees; None: of the camera that the net was trained on, else 60.
    """

    def __init__(self, predictor: DepthPredictor, motion: CameraMotion, fov: float | None = None):
        super().__init__(predictor.net, predictor.size, predictor.device, predictor.camera, predictor.any_shape)
        self._motion, self._fov = motion, fov
        self._before: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        depths = super().__call__(images)
        images = images.to(depths.device)
        return torch.cat([self._steady(images[i : i + 1], depths[i : i + 1]) for i in range(len(images))])

    def _steady(self, image: Tensor, depth: Tensor) -> Tensor:
        before, self._before = self._before, (image, depth)
        if before is None or before[0].shape != image.shape:
            return depth
        change = Change(depth, invert_rigid(self._motion(before[0], image)), self._intrinsics(image))
        e, counted = disagreement(change, (image, before[0]), (depth, before[1]))
        if counted.float().mean() < _LEAST_SHARE:
            return depth
        common = e[counted].median()
        if common.abs() > _CUT:
            return depth
        rest = e - common
        kept = torch.where(counted, (1 - rest.abs() / _FARTHEST).clamp(min=0), 0.0)
        steady = depth * (WEIGHT * (common + kept * rest.nan_to_num(0.0))).exp()
        self._before = image, steady
        return steady

    def _intrinsics(self, image: Tensor) -> Tensor:
        fov = _FOV if self.camera is None and self._fov is None else self._fov
        return torch.from_numpy(camera_matrix(self.camera, fov, *image.shape[-2:])).to(image)[None]
