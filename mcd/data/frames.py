"""What a reader of any data set gives: a frame, its neighbours and the camera that took them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mcd.data.files import Picture


@dataclass(frozen=True)
class Frames:
    """Three consecutive frames at their native size, or the middle one alone."""

    images: tuple[Picture, ...]
    """Previous, reference, next; or the reference."""
    K: NDArray[np.float64]
    """[3, 3] in pixels of ``images``."""


class Reader(Protocol):
    """A split of a data set."""

    frames: list[str]
    """Sorted names of the reference frames, such as ``"ulm/ulm_000002_000025"`` or ``"0000000012"``."""

    def spacings(self, frame: str) -> tuple[int, ...]:
        """Distances to the sources that can be had for this frame; the first is the usual one."""
        ...

    def pictures(self, frame: str, spacing: int | None = None) -> tuple[str, ...]:
        """Names of the previous, the reference and the next picture of a frame; equal names are equal pictures."""
        ...

    def read(self, frame: str, spacing: int | None = None, *, sources: bool = True) -> Frames:
        """The frame between its neighbours at a distance (None: the usual one), or without them.

        Raises:
            DataError: a file is missing, broken or does not fit the others.
        """
        ...


SHARES = ("fx", "fy", "cx", "cy")


def camera_shares(frames: Frames) -> list[float]:
    """fx, fy, cx, cy in terms of width and height of the picture, whose left upper corner is 0: of any size of it."""
    height, width = frames.images[0].shape[:2]
    K = frames.K
    return [
        round(float(share), 6)
        for share in (K[0, 0] / width, K[1, 1] / height, (K[0, 2] + 0.5) / width, (K[1, 2] + 0.5) / height)
    ]
