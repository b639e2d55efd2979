"""The 3-D view of a report as data for ``view.js``, and as a still picture for a browser without WebGL.

Depth travels as 16-bit codes, even in its logarithm, one a point: that and the camera are the points of a frame. Their
colours are those of the picture beside them, so that a point costs two bytes a stage, and one bit if it is shown.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from mcd.config import Config
from mcd.report.clip import POINTS, Clip, ClipFrame, collect_clip
from mcd.report.gallery import Gallery, picture_source
from mcd.visualize import colour_depth, colour_error, depth_range, from_bytes, to_bytes

Eye = tuple[float, float, float, float, float, float]
"""Yaw and pitch (radians), distance, and the point x, y, z that is looked at, in the axes of the frame's camera."""

VIEWS: dict[str, Eye] = {
    "Behind": (-0.2, 0.17, 1.5, 0.0, -0.03, 1.0),
    "Camera": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "Side": (-1.2, 0.25, 2.8, 0.0, 0.0, 1.3),
    "Above": (0.0, 1.5, 3.2, 0.0, 0.0, 1.4),
}
"""From where the points can be seen at once; the first is where one starts."""
CHANGE = "what the labels changed"
_STILL, _SMALL = (450, 800), (270, 480)
_FIELD = 1 / math.tan(math.radians(25))
MARK, PATH, HERE, GROUND = (255, 158, 28), (87, 181, 232), (245, 245, 245), (43, 47, 54)
"""Colours of what moves, of the camera's path, of where it is, and of nothing."""


def pack(clip: Clip) -> dict[str, Any]:
    """A clip as ``view.js`` reads it: numbers, base64, and pictures as data URLs.

    ``range`` are the depths of the codes 0 and 65535, ``limits`` those of the brightest and the darkest colour;
    ``depth`` and ``shown`` are by stage, ``moving`` has runs [first point, length, number of the thing], ``boxes`` are
    corners [x, y, z, x, y, z] by thing and stage, in the camera's axes.
    """
    depths = np.stack([depth for frame in clip.frames for depth in frame.depth.values()])
    near, far = float(depths.min()), float(depths.max())
    far = max(far, near * 1.000001)
    layers = ["image", *(f"{stage} depth" for stage in clip.stages), *([CHANGE] if len(clip.stages) > 1 else [])]
    return {
        "grid": clip.frames[0].moving.shape,
        "stages": clip.stages,
        "layers": layers,
        "range": [near, far],
        "limits": depth_range(torch.from_numpy(depths)),
        "paths": [_rounded(path) for path in clip.paths],
        "frames": [_packed(frame, near, far) for frame in clip.frames],
    }


def shared(views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the views of a page have in common: stages, layers of the picture, number of frames and whether they are
    consecutive, milliseconds a frame, tables of colours, and from where to look.
    """
    layers = dict.fromkeys(layer for view in views for layer in view["layers"])
    rising = torch.linspace(0, 1, 256)[None]
    clip = all(len(view["paths"]) == 1 and len(view["frames"]) > 1 for view in views)
    return {
        "layers": sorted(layers, key=lambda layer: layer == CHANGE),
        "stages": max((view["stages"] for view in views), key=len),
        "frames": max(len(view["frames"]) for view in views),
        "clip": clip,
        "depths": _text(to_bytes(colour_depth(1 / (1 + rising), (0.5, 1.0)))),
        "ratios": _text(to_bytes(colour_error(4**rising / 2, torch.ones_like(rising)))),
        "colours": [MARK, PATH, HERE, GROUND],
        "views": [{"name": name, "eye": eye} for name, eye in VIEWS.items()],
        "interval": 200 if clip else 1500,
    }


def still(clip: Clip, number: int = 0, stage: str | None = None, size: tuple[int, int] = _STILL) -> Tensor:
    """The points of a frame [3,H,W] as the view shows them at first; what moves is marked, and so is the path.

    Args:
        number: of the frame.
        stage: whose depth; None takes the last one.
    """
    frame, stage = clip.frames[number], stage or clip.stages[-1]
    rows, columns = np.nonzero(frame.shown[stage])
    depth = frame.depth[stage][rows, columns].astype(np.float64)
    places, apart = _seen(backprojected(frame, stage)[rows, columns], size)
    grid = frame.moving.shape
    colours = np.asarray(Image.fromarray(frame.image).resize(grid[::-1], Image.Resampling.BOX))[rows, columns] / 1.0
    marked = frame.moving[rows, columns] > 0
    colours[marked] = 0.35 * colours[marked] + 0.65 * np.array(MARK)
    side = np.clip(1.7 * _FIELD * size[0] / 2 * depth / (frame.K[0, 0] * apart), 1, 24).round().astype(int)
    sheet = np.full((*size, 3), GROUND, np.uint8)
    # Painter's algorithm: what is nearer is painted later.
    for point in np.argsort(-apart):
        (x, y), half = places[point], side[point] / 2
        if apart[point] > 0.02 and -half < x < size[1] + half and -half < y < size[0] + half:
            top, left = max(round(y - half), 0), max(round(x - half), 0)
            sheet[top : max(round(y + half), 0), left : max(round(x + half), 0)] = colours[point]
    picture = Image.fromarray(sheet)
    if clip.paths:
        path = np.hstack((clip.paths[frame.shot], np.ones((len(clip.paths[frame.shot]), 1))))
        places, apart = _seen((path @ np.linalg.inv(frame.T_world_camera).T)[:, :3], size)
        ImageDraw.Draw(picture).line([tuple(place) for place in places[apart > 0.02]], fill=PATH, width=2)
    return from_bytes(np.asarray(picture))


def view_of(config: Config, run_folder: Path, points: int = POINTS) -> dict[str, Any] | None:
    """The view of a run: data for the script, a still picture and a note; None for a run without a depth net.

    Raises:
        As :func:`mcd.report.clip.collect_clip`.
    """
    clip = collect_clip(config, run_folder, points)
    if clip is None:
        return None
    return {"data": pack(clip), "still": still(clip), "marks": clip.marks}


def view_panel(config: Config, run_folder: Path) -> Gallery | None:
    """Stills of the points of a frame by stage, beside its picture. Raises as above."""
    clip = collect_clip(config, run_folder)
    if clip is None:
        return None
    frames = []
    for number in sorted({0, len(clip.frames) // 2}):
        frame = clip.frames[number]
        tiles = [(f"points of the {stage} net", still(clip, number, stage, _SMALL)) for stage in clip.stages]
        frames.append((frame.name, tiles))
    return Gallery("", frames)


def backprojected(frame: ClipFrame, stage: str) -> NDArray[np.float64]:
    """The points of a frame [h,w,3] in its camera's axes."""
    height, width = frame.moving.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack((x, y, np.ones_like(x)), axis=-1) @ np.linalg.inv(frame.K).T
    return rays * frame.depth[stage][..., None]


def _packed(frame: ClipFrame, near: float, far: float) -> dict[str, Any]:
    return {
        "name": frame.name,
        "shot": frame.shot,
        "image": picture_source(from_bytes(frame.image), 80),
        "K": _rounded(frame.K[[0, 1, 0, 1], [0, 1, 2, 2]]),
        "pose": _rounded(frame.T_world_camera.ravel()),
        "depth": [_text(_codes(depth, near, far)) for depth in frame.depth.values()],
        "shown": [_text(np.packbits(shown)) for shown in frame.shown.values()],
        "moving": _runs(frame.moving.ravel()),
        "boxes": [
            [_box(frame, stage, number) for stage in frame.depth] for number in range(1, int(frame.moving.max()) + 1)
        ],
    }


def _codes(depth: NDArray[np.float32], near: float, far: float) -> NDArray[np.uint16]:
    share = np.log(depth.astype(np.float64) / near) / math.log(far / near)
    return np.rint(65535 * share.clip(0, 1)).astype("<u2")


def _runs(numbers: NDArray[np.uint8]) -> list[list[int]]:
    """[first, length, number] of the runs of one number that is not 0."""
    bounds = [*np.flatnonzero(np.diff(numbers, prepend=0)).tolist(), len(numbers)]
    return [[first, end - first, int(numbers[first])] for first, end in itertools.pairwise(bounds) if numbers[first]]


def _box(frame: ClipFrame, stage: str, number: int) -> list[float]:
    """Corners around a thing that moves; a twentieth of its points may stick out on each side."""
    inside = frame.moving == number
    points = backprojected(frame, stage)[inside & frame.shown[stage] if (inside & frame.shown[stage]).any() else inside]
    return _rounded(np.quantile(points, (0.05, 0.95), axis=0).ravel())


def _seen(points: NDArray[np.float64], size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels [n,2] and distances [n] of points [n,3] in the camera's axes, from where the view starts."""
    yaw, pitch, distance, *centre = next(iter(VIEWS.values()))
    (s, c), (t, d) = ((math.sin(angle), math.cos(angle)) for angle in (yaw, pitch))
    turn = np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    seen = (points - centre) @ turn.T + (0, 0, distance)
    apart = np.where(np.abs(seen[:, 2]) > 1e-6, seen[:, 2], 1e-6)
    return np.array(size[::-1]) / 2 + _FIELD * size[0] / 2 * seen[:, :2] / apart[:, None], seen[:, 2]


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _rounded(values: NDArray[Any]) -> Any:
    """Nested lists of numbers with six digits after the point, which is beyond what can be seen."""
    return np.round(values, 6).tolist()
