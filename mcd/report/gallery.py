"""Pictures of a few frames with captions: what sections of the report and PNG panels show."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor

from mcd.files import atomic_path
from mcd.visualize import panel, to_bytes

Tiles = list[tuple[str, Tensor]]
"""Captions and pictures [3,H,W] in [0,1] of one frame."""
T = TypeVar("T")
WIDEST = 480
"""Pixels of a picture from left to right, at most."""


@dataclass(frozen=True)
class Gallery:
    """A few frames, and what they show."""

    note: str
    frames: list[tuple[str, Tiles]]
    lines: int = 1
    """Over how many lines the tiles of a frame are laid out, column by column."""

    def write(self, path: Path) -> None:
        """One PNG with a row a frame; what is behind a colon in a caption is of one frame, and heads no column."""
        rows = [[picture for _, picture in tiles] for _, tiles in self.frames]
        sheet = panel(rows, [caption.partition(":")[0] for caption, _ in self.frames[0][1]])
        with atomic_path(path) as temporary:
            Image.fromarray(to_bytes(sheet)).save(temporary, "PNG")


def picture_source(picture: Tensor, quality: int = 90) -> str:
    """A picture as the source of an HTML image, a JPEG; thin coloured lines stay sharp."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def spread(items: Sequence[T], wanted: int) -> list[T]:
    """At most ``wanted`` items, spread evenly."""
    count = min(len(items), wanted)
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def greatest(items: Sequence[T], wanted: int, weight: Callable[[T], int]) -> list[T]:
    """Of each of at most ``wanted`` equal parts, the item of the greatest weight."""
    parts = min(wanted, len(items))
    bounds = [part * len(items) // parts for part in range(parts + 1)] if parts else []
    return [max(items[a:b], key=weight) for a, b in itertools.pairwise(bounds)]
