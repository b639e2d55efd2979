"""Do vehicles stand on the road, upright? Figures of a depth map and boxes or masks, that need no ground truth.

For each object, the road's depth at its foot is the median of the four rows below its box, in the middle 60 % of its
width; with h the height of the box,

    contact   median depth of the object's lower third / road        about 1; above it, the object is a hole
    upright   median depth from h/8 to h/3 below its top / road      1.0 to 1.15, for a vehicle is nearly a wall

A net that knows nothing but rows has an upright of 2 and more: the figures of its own row medians stand beside.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.files import DataError, reading

FIGURES = ("contact", "upright")
NEAR = 45 / 960
"""A near object is at least so wide, as a share of the image."""

_FOOT_ROWS = 4
_MIDDLE = 0.2  # of the width is left out at either side
_COLUMNS = ("frame", "x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Thing:
    """An object in a frame: its box in pixels of the depth map, ``x1`` and ``y1`` exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int
    moving: bool | None = None
    """None where it is not known."""
    mask: NDArray[np.bool_] | None = None
    """[H,W]; None: all that is in the middle of the box."""

    @staticmethod
    def of_mask(mask: NDArray[np.bool_], moving: bool | None = None) -> Thing | None:
        """An object by its mask [H,W]; None for an empty one."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        return Thing(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, moving, mask)


def contact_and_upright(depth: NDArray[Any], thing: Thing) -> tuple[float, float] | None:
    """The two figures of an object in a depth map [H,W]; None where it is too small or cut off."""
    height, width = thing.y1 - thing.y0, thing.x1 - thing.x0
    left = thing.x0 + int(_MIDDLE * width)
    middle = slice(left, max(thing.x1 - int(_MIDDLE * width), left + 1))
    foot = depth[thing.y1 + 1 : thing.y1 + 1 + _FOOT_ROWS, middle]
    parts = (
        slice(thing.y1 - height // 3, thing.y1),
        slice(thing.y0 + height // 8, thing.y0 + height // 3 + 1),
    )
    found = []
    for rows in parts:
        values = depth[rows, middle]
        if thing.mask is not None:
            values = values[thing.mask[rows, middle]]
        if not values.size or not foot.size:
            return None
        found.append(float(np.median(values) / np.median(foot)))
    return found[0], found[1]


def row_medians(depths: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """What a net that knows rows alone would have said: the median [H,W] of each row over all maps."""
    medians = np.median(np.concatenate(depths, axis=1), axis=1)
    return np.repeat(medians[:, None].astype(np.float64), depths[0].shape[1], axis=1)


def contact_figures(
    depths: Mapping[str, NDArray[Any]], things: Mapping[str, Sequence[Thing]]
) -> dict[str, dict[str, float]]:
    """Quartiles of both figures by group: all, near, far, and moving and static where that is known.

    Args:
        depths: maps [H,W] by frame, all of one size.
        things: objects by frame; frames without a map are left out.

    Returns:
        ``{group: {"count", "contact", "contact_25", "contact_75", "upright", …, "upright_rows", …}}``, the names with
        ``_rows`` being those of the row medians; groups without an object are left out.
    """
    frames = [frame for frame in things if frame in depths]
    if not frames:
        return {}
    rows = row_medians([depths[frame] for frame in frames])
    measured: list[tuple[Thing, tuple[float, ...]]] = []
    for frame in frames:
        for thing in things[frame]:
            own, flat = contact_and_upright(depths[frame], thing), contact_and_upright(rows, thing)
            if own is not None and flat is not None:
                measured.append((thing, own + flat))
    wide = NEAR * rows.shape[1]
    groups = {
        "all": measured,
        "near": [m for m in measured if m[0].x1 - m[0].x0 >= wide],
        "far": [m for m in measured if m[0].x1 - m[0].x0 < wide],
        "moving": [m for m in measured if m[0].moving],
        "static": [m for m in measured if m[0].moving is False],
    }
    return {name: _quartiles([values for _, values in group]) for name, group in groups.items() if group}


def _quartiles(values: Sequence[tuple[float, ...]]) -> dict[str, float]:
    found: dict[str, float] = {"count": len(values)}
    names = (*FIGURES, *(f"{name}_rows" for name in FIGURES))
    for name, column in zip(names, np.array(values).T, strict=True):
        low, median, high = np.percentile(column, (25, 50, 75)).tolist()
        found |= {name: median, f"{name}_25": low, f"{name}_75": high}
    return found


def read_boxes(path: Path, names: Sequence[str]) -> dict[str, list[Thing]]:
    """Boxes of a CSV file with the columns frame, x0, y0, x1, y1 and, if it is known, moving (0 or 1).

    Args:
        path: the file; boxes are in pixels of the original frames, ``x1`` and ``y1`` exclusive.
        names: of the frames of the sequence, in order. A number in the file is a position in it, from 0.

    Raises:
        DataError: the file is missing or has other columns, or a frame or box that is not there.
    """
    found: dict[str, list[Thing]] = {}
    with reading("boxes", path), path.open(newline="") as file:
        table = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"boxes {path} have no column '{missing[0]}'; expected {', '.join(_COLUMNS)}")
        for number, row in enumerate(table, start=2):
            try:
                frame, *box = (int(row[name]) for name in _COLUMNS)
                moving = None if row.get("moving") in (None, "") else bool(int(row["moving"]))
            except (TypeError, ValueError):
                raise DataError(f"boxes {path}, line {number}: {row} are no whole numbers") from None
            if not 0 <= frame < len(names):
                raise DataError(f"boxes {path}, line {number}: there is no frame {frame}; there are {len(names)}")
            if not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
                raise DataError(f"boxes {path}, line {number}: x0 {box[0]} and y0 {box[1]} lie not before x1 and y1")
            found.setdefault(names[frame], []).append(Thing(box[0], box[1], box[2], box[3], moving))
    return found


def in_order(frames: Iterable[str], names: Sequence[str]) -> list[str]:
    """Frames as the sequence has them."""
    position = {name: number for number, name in enumerate(names)}
    return sorted(frames, key=position.__getitem__)
