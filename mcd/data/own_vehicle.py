"""What the camera carries along: bonnet, dashboard, reflections on the windscreen, a logo, a time stamp.

While the world moves, these stay, to a fraction of a pixel. What also stays about where it is, a car ahead, a lane
marking, the horizon, trembles with the camera by some pixels. So the test is made at edges, over frames of the whole
clip: an edge is static if its gradient is there, in one direction, in nearly all of them.

Static edges are what overlays are made of; they are closed and filled. A bonnet has one edge, from side to side, across
whatever passes behind it; below that edge nothing may pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Region = NDArray[np.bool_]
Floats = NDArray[np.float32]

FRAMES = 60
"""So many frames are looked at, evenly over the clip."""
LEAST = 12
"""With fewer frames that differ nothing can be told apart from what stays by chance."""

_WIDTH = 480  # pixels at which edges are compared
_STRENGTH = 3.5  # grey levels a pixel: of an edge in the median frame
# An edge that is there in all frames but 15 % has at least this share of what it has in the strongest 15 %.
_STEADY = 0.55
# Static edge pixels around one another: single ones are chance.
_TOGETHER = 8
# The edge of a bonnet: rows, share of the columns in which it is seen, what of its gradients has one direction.
_ROWS, _SEEN, _COHERENT = (0.55, 0.985), 0.85, 0.7
_BONNET_STRENGTH = 1.5
_RIDGE = 0.3
# What passes below the edge, against what passes above it.
_PASSING, _QUANTILES = 0.6, (90, 97)
# A mask of more is a camera that stands.
_MOST = 0.5


def find_own_vehicle(count: int, read: Callable[[int], NDArray[np.uint8]]) -> Region | None:
    """Pixels [H,W] of a clip that stay while the world moves; None if the clip is too short or does not move.

    Args:
        count: frames of the clip.
        read: a frame [H,W,3] by its number; all have one size.
    """
    frames = _moving_frames(count, read)
    if frames is None:
        return None
    grey, size = frames
    gradients = np.stack([np.gradient(grey, axis=axis) for axis in (2, 1)])  # x, y
    found = _overlays(gradients) | _bonnet(gradients)
    if found.mean() > _MOST:
        return None
    return np.asarray(Image.fromarray(found).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _moving_frames(count: int, read: Callable[[int], NDArray[np.uint8]]) -> tuple[Floats, tuple[int, int]] | None:
    """Grey frames [N,h,w] between which the world has moved, and their native height and width."""
    grey: list[Floats] = []
    size = (0, 0)
    for number in np.unique(np.linspace(0, count - 1, FRAMES).astype(int)) if count >= LEAST else ():
        frame = read(int(number))
        size = (frame.shape[0], frame.shape[1])
        factor = max(round(size[1] / _WIDTH), 1)
        grey.append(np.asarray(Image.fromarray(frame).convert("L").reduce(factor), dtype=np.float32))
    if len(grey) < LEAST:
        return None
    changes = np.array([np.abs(b - a).mean() for a, b in itertools.pairwise(grey)])
    # A red light: the same picture again and again would outvote the rest of the clip.
    kept = [grey[0]] + [frame for frame, change in zip(grey[1:], changes, strict=True) if change > changes.max() / 4]
    return (np.stack(kept), size) if len(kept) >= LEAST else None


def _overlays(gradients: Floats) -> Region:
    """Closed and filled static edges of gradients [2,N,H,W]."""
    along = _along_mean(gradients)
    weak, usual, strong = np.percentile(along, (15, 50, 85), axis=0)
    static = (usual > _STRENGTH) & (weak > _STEADY * strong)
    static &= _count_around(static, 5) >= _TOGETHER
    reach = 2 * max(round(static.shape[0] / 120), 1) + 1
    return _filled(_shrink(_grow(static, reach + 2), reach))


def _along_mean(gradients: Floats) -> Floats:
    """Each frame's gradient in the direction of the mean gradient, [N,H,W]."""
    mean = gradients.mean(axis=1)
    direction = mean / (np.hypot(*mean) + 1e-6)
    return (gradients * direction[:, None]).sum(axis=0)


def _bonnet(gradients: Floats) -> Region:
    """All that lies below an edge that runs from side to side, if nothing passes there."""
    height = gradients.shape[2]
    mean = gradients.mean(axis=1)
    size = np.hypot(*mean)
    coherent = size / (np.hypot(*gradients).mean(axis=0) + 0.5)
    level = (coherent > _COHERENT) & (size > _BONNET_STRENGTH) & (np.abs(mean[1]) > np.abs(mean[0]))
    top, bottom = (round(share * height) for share in _ROWS)
    ridge = _ridge(np.median(np.abs(gradients[1]), axis=0))
    path = top + _best_path((np.where(level, coherent, 0) + 0.7 * ridge)[top:bottom])
    level |= ridge > _RIDGE
    seen = np.mean([level[max(row - 1, 0) : row + 2, column].any() for column, row in enumerate(path)])
    below = np.arange(height)[:, None] >= path
    if seen < _SEEN:
        return np.zeros_like(below)
    passing = np.percentile(np.hypot(*(gradients - mean[:, None])), 95, axis=0)
    margin = max(height // 60, 2)
    inside = np.arange(height)[:, None] >= path + margin
    depth = max(int((height - path).mean()), 2 * margin)
    above = (np.arange(height)[:, None] < path - margin) & (np.arange(height)[:, None] >= path - margin - depth)
    if not inside.any():
        return np.zeros_like(below)
    # Most of a smooth road shows nothing that passes, but for its markings.
    below_edge, above_edge = (np.percentile(passing[where], _QUANTILES) for where in (inside, above))
    if (below_edge > _PASSING * above_edge).any():
        return np.zeros_like(below)
    # The edge itself is blurred over a pixel or two.
    return np.arange(height)[:, None] >= path - 1


def _ridge(change: Floats) -> Floats:
    """Where rows change more than those above and below, [0, 1]: an edge whose far side is now brighter, now darker."""
    reach = max(change.shape[0] // 60, 3)
    padded = np.pad(change, ((reach, reach), (0, 0)), mode="edge")
    higher = change - np.maximum(padded[: -2 * reach], padded[2 * reach :])
    return (higher / (_BONNET_STRENGTH * 2)).clip(0, 1)


def _best_path(score: Floats) -> NDArray[np.intp]:
    """The row of each column of the path from left to right with the highest sum of scores; steps of 2 rows at most."""
    rows, columns = score.shape
    best = np.zeros((rows, columns), np.float64)
    step = np.zeros((rows, columns), np.intp)
    best[:, 0] = score[:, 0]
    for column in range(1, columns):
        before = np.pad(best[:, column - 1], 2, constant_values=-np.inf)
        choices = np.stack([before[shift : shift + rows] - 0.3 * abs(shift - 2) for shift in range(5)])
        step[:, column] = choices.argmax(axis=0) - 2
        best[:, column] = choices.max(axis=0) + score[:, column]
    path = np.empty(columns, np.intp)
    path[-1] = best[:, -1].argmax()
    for column in range(columns - 1, 0, -1):
        path[column - 1] = path[column] + step[path[column], column]
    return path


def _count_around(region: Region, size: int) -> NDArray[np.int64]:
    """True pixels in the square of this size around each pixel."""
    padded = np.pad(region.astype(np.int64), size // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return windows.sum(axis=(2, 3))


def _grow(region: Region, size: int) -> Region:
    return np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MaxFilter(size))) > 0


def _shrink(region: Region, size: int) -> Region:
    return np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MinFilter(size))) > 0


def _filled(region: Region) -> Region:
    """The region and what it encloses."""
    outside = Image.fromarray(np.pad(region, 1)).convert("L")
    ImageDraw.floodfill(outside, (0, 0), 128)
    return (np.asarray(outside) != 128)[1:-1, 1:-1]


def own_vehicle_in(images: Sequence[NDArray[np.uint8]]) -> Region | None:
    """:func:`find_own_vehicle` of frames that are in memory."""
    return find_own_vehicle(len(images), images.__getitem__)
