"""Flicker of a film's depth and sharpness of its edges, without and with ``--smooth``, for several weights.

    python -m benchmarks.flicker VIDEO [--boxes CSV] [--top 0.72] [--net start]

The camera should drive ahead on a road: there the depth of a pixel of the road stays, so that its change from frame to
frame is flicker, whatever nets say of the motion. Pixels below ``--top`` and outside of all boxes (``frame, x0, y0, x1,
y1`` of vehicles, of any frames) are taken for road. In per cent of the depth, means over frames:

    flicker  |change| of a pixel        jump  |median change| of a frame        rest  |change - median change|

``edge`` is the length of the gradient of ln depth at the hundredth of the pixels where that of the net is longest, and
``off`` the median of smoothed over plain depth, from 1: what a wrong motion would pull along.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.data.files import resize_image
from mcd.data.video import VideoReader
from mcd.inference import smooth
from mcd.inference.motion import CameraMotion
from mcd.inference.predictor import DepthPredictor
from mcd.visualize import from_bytes

# Pixels of the net's picture by which boxes are widened, as vehicles move between the frames that have boxes.
_MARGIN = 6


class Known(CameraMotion):
    """Motion that was computed before, pair after pair."""

    def __init__(self, steps: Sequence[Tensor]):
        self._steps = iter(steps)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return next(self._steps)


def road_pixels(size: tuple[int, int], native: Sequence[int], top: float, boxes: Path | None) -> NDArray[np.bool_]:
    """Pixels [H,W] that show road in every frame."""
    road = np.zeros(size, bool)
    road[round(top * size[0]) :] = True
    if boxes is not None:
        with boxes.open(newline="") as file:
            for row in csv.DictReader(file):
                x0, x1 = (round(float(row[key]) * size[1] / native[1]) for key in ("x0", "x1"))
                y0, y1 = (round(float(row[key]) * size[0] / native[0]) for key in ("y0", "y1"))
                road[max(y0 - _MARGIN, 0) : y1 + _MARGIN, max(x0 - _MARGIN, 0) : x1 + _MARGIN] = False
    return road


def figures(depth: NDArray[Any], plain: NDArray[Any], road: NDArray[np.bool_]) -> dict[str, float]:
    """The figures above of depth [N,H,W]; ``plain`` is that of the net."""
    steps = np.diff(np.log(depth), axis=0)[:, road]
    jump = np.median(steps, axis=1)
    gradients, edges = gradient(depth), gradient(plain)
    sharp = edges >= np.percentile(edges, 99, axis=(1, 2), keepdims=True)
    return {
        "flicker": 100 * float(np.abs(steps).mean()),
        "jump": 100 * float(np.abs(jump).mean()),
        "rest": 100 * float(np.abs(steps - jump[:, None]).mean()),
        "edge": float(gradients[sharp].mean()),
        "off": float(np.median(depth / plain)) - 1,
    }


def gradient(depth: NDArray[Any]) -> NDArray[Any]:
    """Length of the gradient of ln depth [N,H-1,W-1]."""
    values = np.log(depth)
    return np.hypot(np.diff(values, axis=2)[:, :-1], np.diff(values, axis=1)[:, :, :-1])


def measure(video: Path, net: str, top: float, boxes: Path | None, weights: Sequence[float]) -> dict[float, Any]:
    """Figures by weight; 0 is the net alone."""
    predictor, motion = DepthPredictor.load(net), CameraMotion.load(net)
    pictures: list[Tensor] = []
    native: Sequence[int] = ()
    for frame in VideoReader(video):
        native = frame.shape
        pictures.append(from_bytes(resize_image(frame, predictor.size_for(frame.shape)))[None])
    depths = [predictor(picture) for picture in pictures]
    steps = [motion(*pair) for pair in itertools.pairwise(pictures)]
    plain = torch.cat(depths)[:, 0].numpy()
    road = road_pixels(plain.shape[1:], native, top, boxes)
    found = {0.0: figures(plain, plain, road)}
    usual = smooth.WEIGHT
    try:
        for weight in weights:
            smooth.WEIGHT = weight
            steady = smooth.SmoothPredictor(Again(predictor, depths), Known(steps))
            found[weight] = figures(torch.cat([steady(picture) for picture in pictures])[:, 0].numpy(), plain, road)
    finally:
        smooth.WEIGHT = usual
    return found


class Again(DepthPredictor):
    """A predictor whose depths were computed before."""

    def __init__(self, predictor: DepthPredictor, depths: Sequence[Tensor]):
        rest = iter(depths)
        super().__init__(Replay(rest), predictor.size, "cpu", predictor.camera, predictor.any_shape)


class Replay(torch.nn.Module):
    def __init__(self, depths: Any):
        super().__init__()
        self._depths = depths

    def forward(self, images: Tensor) -> list[Tensor]:
        return [next(self._depths)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--top", type=float, default=0.72, help="share of the height from which on there is road")
    parser.add_argument("--net", default="start")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    given = parser.parse_args(arguments)
    found = measure(given.video, given.net, given.top, given.boxes, given.weights)
    print("| weight | flicker % | jump % | rest % | edge | off % |\n|---|---|---|---|---|---|")
    for weight, f in found.items():
        print(
            f"| {weight:g} | {f['flicker']:.2f} | {f['jump']:.2f} | {f['rest']:.2f} | {f['edge']:.4f} | "
            f"{100 * f['off']:+.1f} |"
        )


if __name__ == "__main__":
    main()
