"""Proposals of objects that need no training: what stands on the road, and whether it moves as the standing world.

A net that knows roads says where everything is. On the road's plane the inverse depth is linear in the pixel; markings
and shadows lie in it and are no candidates, whatever they seem to do. What stands up from it would, if it stood still,
move in the picture by the camera's rotation and, in proportion to its inverse depth, by the camera's way. The share k
of that second part that is seen,

    k = Σ f·s / Σ s·s,      f = optical flow less the rotation's,      s = flow by the way, at the depth of the net

over a window, is 1 for what stands still, 0 for what drives along, below 0 for what is faster, 2 and more for what
comes towards the camera. The rotation is fitted to what is far; the way is that of the pose net, along the road.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mcd.config import Proposals
from mcd.scene.flow import optical_flow, window_mean
from mcd.scene.plane import Floats, pixel_rays

_TEXTURE = 5e-6
"""Of a window whose flow is believed, and of one that takes part in the fit of the rotation four times as much."""
_WINDOW = 2
_LEAST = 0.25
"""Pixels by which the static world has to move for a statement."""
_FAR = 40.0
"""Heights of the camera from which on a picture moves by the rotation alone, nearly."""
_STILL, _FEWEST = 0.75, 50
"""The camera's way is that for which such a share of what is seen stands still or moves along; of so many pixels."""
_SQUARE = np.ones((3, 3), dtype=bool)
_LEVELS, _NEAREST = 40, 2.5
_OVERLAP = 0.3
"""Of the smaller of two objects, at most."""
_CONTACT = 1.4
"""The road at the foot of an object is by no larger factor farther than it."""
_INSIDE, _APART, _PART = 0.8, 0.05, 0.35
"""An object is two if two lie inside it by so much, share no more, and stand out by such a share of what it does."""
_MOST = 2000
"""Points of that fit."""


@dataclass(frozen=True)
class Road:
    """The road below the camera."""

    inverse: Floats
    """[H,W] inverse depth of the plane, 0 and less above its horizon."""
    normal: Floats
    """[3] of length 1, towards the ground."""
    height: float
    """Of the camera above it, in the unit of depth."""


@dataclass(frozen=True)
class Evidence:
    """What a frame says of each pixel."""

    road: Road
    visible: NDArray[np.bool_]
    """[H,W], it is not the own vehicle."""
    told: NDArray[np.bool_]
    """[H,W], the camera moves enough for a statement."""
    moving: NDArray[np.bool_]
    """[H,W], k is that of no static world."""
    still: NDArray[np.bool_]
    """[H,W], k is that of the static world."""


class Objects(NamedTuple):
    """What stands on the road in a frame, moving objects first, those that stand out most before others."""

    masks: NDArray[np.bool_]
    """[n,H,W]"""
    scores: NDArray[np.float32]
    """[n], how far each stands out, in [0, 1]."""
    moves: NDArray[np.bool_]
    """[n], False: it stands still."""


def no_objects(size: tuple[int, ...]) -> Objects:
    """What a frame [H,W] has that shows no road."""
    return Objects(np.zeros((0, *size), dtype=bool), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=bool))


def find_road(depth: NDArray[np.float32], rays: Floats) -> Road | None:
    """The plane of the road, from the bottom of the picture outwards; None where nothing there is one."""
    height, width = depth.shape
    chosen = np.zeros(depth.shape, dtype=bool)
    chosen[round(0.8 * height) :, round(0.25 * width) : round(0.75 * width)] = True
    inverse: Floats = np.zeros(depth.shape)
    w: Floats = np.zeros(3)
    for tolerance in (0.25, 0.22, 0.19, 0.16, 0.13, 0.1, 0.08, 0.08, 0.08, 0.08):
        points = rays[chosen] * depth[chosen][:, None]
        if len(points) < 30:
            return None
        w = np.linalg.lstsq(points, np.ones(len(points)), rcond=None)[0].astype(np.float64)
        inverse = rays @ w
        chosen = (np.abs(inverse * depth - 1) < tolerance) & (inverse > 0.06 * inverse.max())
    length = float(np.linalg.norm(w))
    # Roads lie about level below a camera: 30 degrees of pitch, roll and slope.
    return Road(inverse, w / length, 1 / length) if length > 0 and w[1] > 0.86 * length else None


def look(
    reference: Tensor,
    sources: Tensor,
    depth: NDArray[np.float32],
    K: NDArray[np.float32],
    T_src_ref: NDArray[np.float32],
    settings: Proposals,
    own: NDArray[np.bool_] | None = None,
) -> Evidence | None:
    """What stands and what moves in a frame; None where no road is seen.

    Args:
        reference: [3,H,W]; sources: [S,3,H,W], in [0, 1]; depth: [H,W], > 0; K: [3,3].
        T_src_ref: [S,4,4], in the unit of the depth; of its translation the part along the road counts.
        own: [H,W], True where the picture shows the own vehicle.
    """
    rays = pixel_rays((depth.shape[0], depth.shape[1]), K.astype(np.float64))
    road = find_road(depth, rays)
    if road is None:
        return None
    flows = optical_flow(reference.expand_as(sources), sources)
    by_way, by_turn = _motion_fields(rays, K.astype(np.float64))
    flow = flows.flow.double().numpy().transpose(0, 2, 3, 1)
    texture = flows.texture[:, 0].numpy()
    ways = T_src_ref[:, :3, 3].astype(np.float64)
    ways -= (ways @ road.normal)[:, None] * road.normal
    still = np.stack([(by_way @ way) / depth[..., None] for way in ways])
    visible = np.ones(depth.shape, dtype=bool) if own is None else ~own
    far = depth > _FAR * road.height
    pace, share, length = 0.0, np.zeros(depth.shape), np.zeros(depth.shape)
    for _ in range(2):  # the rotation needs the pace, and the pace the rotation
        turned = [
            by_turn @ _rotation(f - pace * s, t, far & visible, by_turn)
            for f, s, t in zip(flow, still, texture, strict=True)
        ]
        sums = np.stack((((flow - turned) * still).sum(-1), np.square(still).sum(-1)))
        sums = np.where(texture > _TEXTURE, sums, 0.0).sum(1)
        along, length = window_mean(torch.from_numpy(sums)[None], _WINDOW)[0].numpy() / len(sources)
        share = along / np.maximum(length, 1e-9)
        strong = visible & (texture.mean(0) > 4 * _TEXTURE) & (length > _LEAST**2)
        # The pose net may take the camera for faster than it is, and then everything seems to move along.
        pace = float(np.clip(np.quantile(share[strong], _STILL), 0, 1)) if strong.sum() > _FEWEST else 0.0
    told = visible & (length * pace**2 > _LEAST**2)
    share = np.where(told, share / max(pace, 1e-9), np.nan)
    with np.errstate(invalid="ignore"):
        moving = (share < settings.along) | (share > settings.towards)
        still = (share > settings.still) & (share < 1 / settings.still)
    return Evidence(road, visible, told, moving, still)


def _motion_fields(rays: Floats, K: Floats) -> tuple[Floats, Floats]:
    """Flow [H,W,2,3] by a way of one unit at a depth of one, and by a turn of one radian, for small motions."""
    x, y, one = rays[..., 0], rays[..., 1], np.ones_like(rays[..., 0])
    zero = np.zeros_like(one)
    way = np.stack((np.stack((one, zero, -x), -1), np.stack((zero, one, -y), -1)), -2)
    turn = np.stack((np.stack((-x * y, 1 + x * x, -y), -1), np.stack((-1 - y * y, x * y, x), -1)), -2)
    return K[:2, :2] @ way, K[:2, :2] @ turn


def _rotation(flow: Floats, texture: NDArray[np.float32], far: NDArray[np.bool_], field: Floats) -> Floats:
    """Small rotation [3] in radians that explains the flow [H,W,2] of most of what is far."""
    inside = np.zeros(far.shape, dtype=bool)
    inside[4:-4, 4:-4] = True
    chosen = np.flatnonzero(inside & far & (texture > 4 * _TEXTURE))
    if len(chosen) < 50:
        chosen = np.flatnonzero(inside & (texture > 4 * _TEXTURE))
    if len(chosen) < 50:
        return np.zeros(3)
    chosen = chosen[:: max(len(chosen) // _MOST, 1)]
    A, b = field.reshape(-1, 2, 3)[chosen], flow.reshape(-1, 2)[chosen]
    turn = np.zeros(3)
    for _ in range(10):
        error = np.linalg.norm(b - A @ turn, axis=1)
        weight = 1 / (1 + np.square(error / max(1.5 * float(np.median(error)), 0.1)))
        normal = np.einsum("nij,nik,n->jk", A, A, weight)
        turn = np.linalg.lstsq(normal, np.einsum("nij,ni,n->j", A, b, weight), rcond=None)[0]
    return turn


def propose(seen: Evidence, depth: NDArray[np.float32], settings: Proposals) -> Objects:
    """Objects of a frame, by its depth [H,W].

    For a level L of inverse depth, what is nearer than L where the road is farther stands up from the road at that
    distance. Its connected parts that do not move as the static world are candidates, of every level; of those that
    overlap, the one that stands out most is the object. Then the same is asked for what moves as the static world.
    """
    masks, scores, moves = list[NDArray[np.bool_]](), list[float](), list[bool]()
    for told in (seen.moving, seen.still):
        candidates = _candidates(seen, told, depth, settings)
        for mask, score in sorted(_whole(candidates, depth.shape), key=lambda found: -found[1]):
            if all((mask & other).sum() < _OVERLAP * min(mask.sum(), other.sum()) for other in masks):
                masks.append(mask)
                scores.append(score)
                moves.append(told is seen.moving)
    if not masks:
        return no_objects(depth.shape)
    return Objects(np.stack(masks), np.array(scores, dtype=np.float32), np.array(moves, dtype=bool))


def _candidates(
    seen: Evidence, told: NDArray[np.bool_], depth: NDArray[np.float32], settings: Proposals
) -> list[_Candidate]:
    """The parts, at every level, of what is ``told`` [H,W] to move, or to stand still."""
    inverse: Floats = seen.road.height / depth.astype(np.float64)
    ground = seen.road.height * seen.road.inverse
    possible = (told | ~seen.told) & seen.visible
    candidates = list[_Candidate]()
    for level in 1 / np.geomspace(settings.farthest, _NEAREST, _LEVELS):
        begins = ground < (1 - settings.above) * level
        stands = ndimage.binary_opening((inverse > level) & begins & possible, _SQUARE)
        labels, count = ndimage.label(stands)
        large = np.bincount(labels.ravel(), minlength=count + 1) >= settings.min_area * depth.size
        for label, place in enumerate(ndimage.find_objects(labels), start=1):
            if large[label]:
                found = _candidate(place, labels[place] == label, begins, inverse, ground, told, settings)
                if found is not None:
                    candidates.append(found)
    return candidates


@dataclass(frozen=True)
class _Candidate:
    place: tuple[slice, slice]
    part: NDArray[np.bool_]
    score: float


def _whole(candidates: list[_Candidate], size: tuple[int, ...]) -> list[tuple[NDArray[np.bool_], float]]:
    """Masks [H,W] and scores of the candidates that are not two others side by side."""
    masks = np.zeros((len(candidates), *size), dtype=bool)
    for mask, candidate in zip(masks, candidates, strict=True):
        mask[candidate.place] = candidate.part
    flat = masks.reshape(len(masks), math.prod(size)).astype(np.float32)
    shared = flat @ flat.T
    area = shared.diagonal()
    kept = []
    for index, (mask, candidate) in enumerate(zip(masks, candidates, strict=True)):
        inside = (shared[index] > _INSIDE * area) & (area < _INSIDE * area[index])
        inside &= np.array([other.score > _PART * candidate.score for other in candidates])
        parts = np.flatnonzero(inside)
        apart = shared[np.ix_(parts, parts)] < _APART * np.minimum.outer(area[parts], area[parts])
        if not apart.any():
            kept.append((mask, candidate.score))
    return kept


def _candidate(
    place: tuple[slice, slice],
    part: NDArray[np.bool_],
    begins: NDArray[np.bool_],
    inverse: Floats,
    ground: Floats,
    told: NDArray[np.bool_],
    settings: Proposals,
) -> _Candidate | None:
    """A part of what stands at a level as an object, carried on to the ground; None if it is none."""
    rows, columns = place
    fill, agrees = float(part.mean()), float(told[place][part].mean())
    own = float(np.median(inverse[place][part]))
    middle = (columns.start + columns.stop) // 2
    tall = 1 - ground[rows.start, middle] / own
    slope = (ground[-1, middle] - ground[0, middle]) / (len(ground) - 1)
    wide = (columns.stop - columns.start) * slope / own
    foot = ground[min(rows.stop + max(2, (rows.stop - rows.start) // 4), len(ground) - 1), middle]
    if (
        fill < settings.fill
        or agrees < settings.share
        or not settings.lowest < tall < settings.tallest
        or wide > settings.widest
        or (foot * _CONTACT < own and rows.stop < len(ground) - 3)
    ):
        return None
    margin = max(2, (columns.stop - columns.start) // 8)
    window = (
        slice(max(rows.start - margin, 0), min(int((ground[:, middle] < own).sum()) + 1, len(ground))),
        slice(max(columns.start - margin, 0), columns.stop + margin),
    )
    mask = np.zeros(begins.shape, dtype=bool)
    mask[place] = part
    mask = mask[window]
    around = ndimage.binary_dilation(mask, _SQUARE, iterations=margin) & ~ndimage.binary_dilation(mask, _SQUARE)
    around &= begins[window]
    behind = float(np.median(inverse[window][around])) if around.any() else own
    contrast = 1 - behind / own
    if contrast < settings.contrast:
        return None
    mask |= np.maximum.accumulate(mask, axis=0) & (ground[window] < own)
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, _SQUARE))
    return _Candidate(window, mask, min(contrast, 1.0) * fill * agrees)
