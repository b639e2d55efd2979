"""A trained depth net for one's own program: ``model = mcd.load("start")``, then ``model("street.jpg").depth``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.errors import McdError
from mcd.inference.metric import AnyPredictor, MetricPredictor
from mcd.inference.pictures import Picture, Pixels, pixels_of
from mcd.inference.predictor import DepthPredictor, choose_device
from mcd.visualize import colour_depth, to_bytes


class LoadError(McdError, ValueError):
    """Settings that no model can have: a scale given twice, no camera for metres."""


@dataclass(frozen=True)
class DepthMap:
    """Depth of an image, or of the images of a batch, at their own size."""

    depth: Tensor
    """[H, W] or [B, H, W], float32, along the viewing axis, on the model's device."""
    unit: Literal["arbitrary", "metres"]
    """Of the depth. Arbitrary: depths of one image compare with each other."""
    inferred_at: tuple[int, int]
    """Height and width at which the net saw the image."""
    confidence: Tensor | None = None
    """[H, W] or [B, H, W]: the probability that the depth is within 25 % of the truth. None if not asked for."""

    def numpy(self) -> NDArray[np.float32]:
        """The depth as an array."""
        return self.depth.cpu().numpy()

    def coloured(self) -> NDArray[np.uint8]:
        """The depth [H, W] in colours, bright near and dark far: uint8 [H, W, 3].

        Raises:
            ValueError: it is of a batch.
        """
        return to_bytes(colour_depth(self.depth))


class DepthModel:
    """Images to depth; made by :func:`mcd.load`.

    Args:
        predictor: the net.
        metres: metres per unit of the net's depth, where they are known.
        camera_height: of the camera above the road, in metres: each image's scale is that of the road that it shows,
            over the last images, which should therefore be of one camera.
        fov: of that camera, horizontal, in degrees; None: of the camera that the net was trained on.

    Raises:
        LoadError: ``metres`` and ``camera_height`` are given both, or there is no camera for the latter.
    """

    def __init__(
        self,
        predictor: DepthPredictor,
        *,
        metres: float | None = None,
        camera_height: float | None = None,
        fov: float | None = None,
    ):
        if metres is not None and camera_height is not None:
            raise LoadError("metres and camera_height both say how many metres a unit has: give one of them")
        for name, value in (("metres", metres), ("camera_height", camera_height), ("fov", fov)):
            if value is not None and not 0 < value < (180 if name == "fov" else float("inf")):
                raise LoadError(f"{name} is {value:g}, which should be positive{' and below 180' * (name == 'fov')}")
        self.predictor = predictor
        self.unit: Literal["arbitrary", "metres"] = "arbitrary" if metres is camera_height is None else "metres"
        self._metres = metres
        self._estimator: AnyPredictor = predictor
        if camera_height is not None:
            try:
                self._estimator = MetricPredictor(predictor, predictor.camera, fov, camera_height, predictor.own)
            except ValueError as error:
                raise LoadError(str(error)) from None

    @property
    def net(self) -> torch.nn.Module:
        """Images [B, 3, H, W] in [0, 1], sides multiples of 32, to a list of depths, the first [B, 1, H, W]."""
        return self.predictor.net

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at which the net sees images; a net for any shape keeps to about as many pixels."""
        return self.predictor.size

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a path, and a sequence of such
        self, image: Picture, *, confidence: bool = False
    ) -> DepthMap: ...
    @overload
    def __call__(self, image: Sequence[Picture], *, confidence: bool = False) -> list[DepthMap]: ...

    def __call__(self, image: Picture | Sequence[Picture], *, confidence: bool = False) -> DepthMap | list[DepthMap]:
        """Depth of one image, of a batch of one size, or of a list of images of any sizes.

        Args:
            image: a path; a PIL image; an array [H, W, 3], [H, W] or [B, H, W, 3]; a tensor [3, H, W] or
                [B, 3, H, W], uint8 or floating-point in [0, 1]; or a list of these. Sizes and shapes are any.
            confidence: fill :attr:`DepthMap.confidence`, which takes three times as long.

        Raises:
            PictureError: an image is none, or holds NaN or numbers outside its range.
            InputError: a file is no image.
            NoRoadError: metres are asked for by ``camera_height``, and no image so far shows a road.
        """
        if isinstance(image, list | tuple):
            return [self._map(*pixels_of(one), confidence) for one in image]
        return self._map(*pixels_of(image), confidence)  # type: ignore[arg-type]

    def _map(self, images: list[Pixels], batch: bool, confidence: bool) -> DepthMap:
        found = self._estimator.estimate(images, confidence=confidence)
        depth = _joined([estimate.depth for estimate in found], batch)
        sure = [estimate.confidence for estimate in found if estimate.confidence is not None]
        return DepthMap(
            depth if self._metres is None else depth * self._metres,
            self.unit,
            found[0].size,
            _joined(sure, batch) if confidence else None,
        )


def _joined(maps: list[Tensor], batch: bool) -> Tensor:
    return torch.stack(maps) if batch else maps[0]


def load_model(
    place: Path | str = "start",
    *,
    device: torch.device | str = "auto",
    stage: str | None = None,
    size: tuple[int, int] | None = None,
    metres: float | None = None,
    camera_height: float | None = None,
    fov: float | None = None,
) -> DepthModel:
    """See :func:`mcd.load`, which is this function."""
    try:
        predictor = DepthPredictor.load(place, stage, device=choose_device(str(device)), size=size)
    except ValueError as error:  # of the device or the size
        raise LoadError(str(error)) from None
    return DepthModel(predictor, metres=metres, camera_height=camera_height, fov=fov)
