"""The classified instances of a frame on disk: what the instances stage leaves and later stages read."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcd.errors import StageError
from mcd.files import reading
from mcd.masks.packed import load_masks, save_masks

FIELDS = ("ids", "dynamic", "coverage", "large", "triplet")
"""What stands beside the masks in a frame's file."""


@dataclass(frozen=True)
class FrameInstances:
    """The n instances of one frame."""

    ids: np.ndarray
    """[n] int64, names of the mask files, or numbers that follow an object from frame to frame."""
    dynamic: np.ndarray
    """[n] bool."""
    coverage: np.ndarray
    """[n] float32, share of the mask whose residual flow is above the threshold."""
    large: np.ndarray
    """[n] bool, mask without road is above the area threshold."""
    triplet: np.ndarray
    """[n] bool, masks in all three frames are above the area threshold."""
    masks: np.ndarray
    """[n,3,H,W] bool, mask without road in the previous, reference and next frame."""

    def save(self, path: Path) -> None:
        save_masks(path, self.masks, **{name: getattr(self, name) for name in FIELDS})

    @staticmethod
    def load(path: Path) -> FrameInstances:
        """Raises DataError: the file is missing or broken."""
        masks, fields = load_masks(path, *FIELDS)
        found = FrameInstances(**dict(zip(FIELDS, fields, strict=True)), masks=masks)
        with reading("masks", path):
            kinds = {"dynamic": "b", "large": "b", "triplet": "b", "ids": "i", "coverage": "f"}
            for name, kind in kinds.items():
                values = getattr(found, name)
                if values.shape != masks.shape[:1] or values.dtype.kind != kind:
                    raise ValueError(f"{name} is {values.dtype} {list(values.shape)}, and masks {list(masks.shape)}")
            if masks.ndim != 4 or masks.shape[1] != 3:
                raise ValueError(f"masks are {list(masks.shape)}, not [n, 3, H, W]")
        return found


@dataclass(frozen=True)
class InstanceRow:
    """A line of ``instances/SPLIT.csv``."""

    frame: str
    row: int
    """Index within the frame's file."""
    id: int
    dynamic: bool
    large: bool
    triplet: bool
    coverage: float


def read_rows(folder: Path, split: str) -> list[InstanceRow]:
    """All instances of a split, in the order of frames.

    Raises:
        StageError: the instances stage has not left its list.
        DataError: the list is broken.
    """
    if not (folder / f"{split}.csv").is_file():
        raise StageError(f"{folder / split}.csv does not exist: the stage 'instances' comes first")
    with reading("list of instances", folder / f"{split}.csv"), (folder / f"{split}.csv").open(newline="") as file:
        rows = [
            InstanceRow(
                line["frame"],
                int(line["row"]),
                int(line["id"]),
                line["dynamic"] == "1",
                line["large"] == "1",
                line["triplet"] == "1",
                float(line["coverage"]),
            )
            for line in csv.DictReader(file)
        ]
        if not all(row.row >= 0 and math.isfinite(row.coverage) for row in rows):
            raise ValueError("a number is out of its range")
        return rows


def middle_band(width: int, k: int) -> tuple[int, int]:
    """First and one past the last column of the central 1/k of an image."""
    return width * (k - 1) // (2 * k), width * (k + 1) // (2 * k)
