"""Masks of a sequence, followed through its frames: numbers that stay with an object, and what holds for all of it.

A track looks for its mask of the next frame where the predicted motion has carried it (what the stage ``instances``
leaves beside every mask), or where it would be if it went on as between its last two frames; whichever overlaps more.
The pairs of most overlap are taken (:func:`mcd.masks.morphology.pairs`). A track that finds nothing goes on at its own
speed for a few frames, for an object that is hidden or missed, and then ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.config import InstancesStage
from mcd.masks.instances import FrameInstances, middle_band
from mcd.masks.morphology import areas, boxes, overlap, pairs

OVERLAP = 0.3
"""Intersection over union from which a mask is a track's."""
PATIENCE = 3
"""Frames in a row that a track may miss."""

Numbers = NDArray[np.int64]
"""[n], the track of each mask of a frame."""


@dataclass
class _Tracked:
    number: int
    mask: Tensor
    """[H,W] bool, as last seen, carried on at ``speed`` through frames that miss it."""
    carried: Tensor
    """[H,W] bool, where the predicted motion carries it."""
    speed: tuple[int, int] = (0, 0)
    """Rows and columns a frame."""
    missed: int = 0


class Follower:
    """Numbers the masks of one frame after the other."""

    def __init__(self) -> None:
        self._tracks: list[_Tracked] = []
        self._count = 0

    def cut(self) -> None:
        """The next frame does not follow the last one: all tracks end."""
        self._tracks = []

    def __call__(self, found: FrameInstances) -> Numbers:
        """The numbers of a frame's masks, whose neighbour in ``found`` is the frame of the next call."""
        own, following = torch.from_numpy(found.masks[:, 1]), torch.from_numpy(found.masks[:, 2])
        numbers = np.full(len(own), -1, dtype=np.int64)
        steady = [_shifted(track.mask, track.speed) for track in self._tracks]
        continued = dict(_continuations(self._tracks, steady, own))
        for place, track in enumerate(self._tracks):
            row = continued.get(place)
            if row is None:
                track.missed += 1
                track.mask = track.carried = steady[place]
                continue
            numbers[row] = track.number
            track.speed = _speed(track, own[row])
            track.mask, track.carried, track.missed = own[row], following[row], 0
        self._tracks = [track for track in self._tracks if track.missed <= PATIENCE]
        for row in np.flatnonzero(numbers < 0).tolist():
            numbers[row] = self._count
            self._tracks.append(_Tracked(self._count, own[row], following[row]))
            self._count += 1
        return numbers


def _continuations(tracks: Sequence[_Tracked], steady: Sequence[Tensor], masks: Tensor) -> list[tuple[int, int]]:
    """Pairs of a track's place and the mask that goes on with it."""
    if not tracks or not len(masks):
        return []
    carried = overlap(torch.stack([track.carried for track in tracks]), masks)
    return pairs(torch.maximum(carried, overlap(torch.stack(list(steady)), masks)), OVERLAP)


def _shifted(mask: Tensor, speed: tuple[int, int]) -> Tensor:
    """The mask [H,W] moved by rows and columns; what leaves the image is gone."""
    moved = torch.zeros_like(mask)
    if all(abs(by) < length for by, length in zip(speed, mask.shape, strict=True)):
        to, origin = (
            tuple(
                slice(max(sign * by, 0), length + min(sign * by, 0))
                for by, length in zip(speed, mask.shape, strict=True)
            )
            for sign in (1, -1)
        )
        moved[to] = mask[origin]
    return moved


def _speed(track: _Tracked, now: Tensor) -> tuple[int, int]:
    """Rows and columns a frame by which the middle of a track's box moves to that of its new mask."""
    if not bool(track.mask.any()):
        return track.speed
    left, top, right, bottom = boxes(torch.stack((track.mask, now))).unbind(1)
    gone = (float((near + far).diff()) / 2 for near, far in ((top, bottom), (left, right)))
    # Through the frames that missed it, the mask was carried on at the speed of before.
    rows, columns = (
        round((by + track.missed * before) / (track.missed + 1)) for by, before in zip(gone, track.speed, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class Track:
    """What holds for all frames of an object."""

    frames: int
    coverage: float
    """Share of its pixels, over all frames, that move."""
    ahead: float
    """Share of its pixels that are of masks that touch the middle columns."""

    def moves(self, settings: InstancesStage) -> bool:
        """As a mask does of one frame: enough of it moves, or it is straight ahead most of the time."""
        return self.coverage >= settings.coverage or (settings.middle is not None and self.ahead >= 0.5)


class TrackSums:
    """Adds up the frames of each track.

    A large mask says more than a small one: near, an object moves by more pixels, and more of them.
    """

    def __init__(self, settings: InstancesStage) -> None:
        self._middle = settings.middle or 1
        self._sums: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))

    def add(self, found: FrameInstances, numbers: Numbers) -> None:
        """The masks of one more frame and the track of each."""
        own = torch.from_numpy(found.masks[:, 1])
        begin, end = middle_band(own.shape[-1], self._middle)
        ahead = own[..., begin:end].flatten(1).any(dim=1).numpy()
        area = areas(own).numpy().astype(np.float64)
        for number, *values in zip(numbers.tolist(), area, area * found.coverage, area * ahead, strict=True):
            self._sums[number] += (1, *values)

    def tracks(self) -> dict[int, Track]:
        """What holds for each track, by its number."""
        return {
            number: Track(round(frames), coverage / max(area, 1), ahead / max(area, 1))
            for number, (frames, area, coverage, ahead) in ((n, sums.tolist()) for n, sums in self._sums.items())
        }
