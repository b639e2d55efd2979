"""Where the masks of a frame come from: given by files of the data set, or discovered by stages of this run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcd.config import Data
from mcd.data import instance_masks, road_mask
from mcd.files import DataError, frame_path, reading
from mcd.masks.packed import Masks, load_masks
from mcd.run.folder import Run

CANDIDATES = "detector/candidates"
"""The part of the detector stage that finds objects among the slots' masks."""

OBJECT_STAGES = frozenset(("detector", "segment", "proposals"))
"""Stages that find the objects of a frame; a run has one of them, or masks that come with its data."""


def round_name(number: int) -> str:
    """The part of the detector stage that is a round, counted from 0."""
    return f"detector/round_{number}"


class MaskSource(Protocol):
    """Masks at the networks' size."""

    def instances(self, split: str, frame: str) -> tuple[Masks, list[int]]:
        """Masks [n,H,W] of the objects in a frame, and a number that names each.

        Raises:
            DataError: they are missing or broken.
        """

    def ground(self, split: str, frame: str) -> Masks:
        """Ground of a frame, [1,H,W].

        Raises:
            DataError: it is missing or broken.
        """

    def moving(self, split: str, frame: str) -> Masks | None:
        """What moves in a frame, [1,H,W], if its objects are known to move or not; None: the motion has to say.

        Raises:
            DataError: it is broken.
        """


@dataclass(frozen=True)
class GivenMasks:
    """Files beside the images, of any segmenter: see :mod:`mcd.data.labels`."""

    data: Data

    def instances(self, split: str, frame: str) -> tuple[Masks, list[int]]:
        return instance_masks(self.data, split, frame)

    def ground(self, split: str, frame: str) -> Masks:
        return road_mask(self.data, split, frame)

    def moving(self, split: str, frame: str) -> Masks | None:
        return None


class DiscoveredMasks:
    """What ``ground``, and a stage that finds objects, of a run found; without one of them, its masks are given."""

    def __init__(self, run: Run):
        self._run = run
        self._given = GivenMasks(run.config.data)

    def instances(self, split: str, frame: str) -> tuple[Masks, list[int]]:
        stages = self._run.config.stages
        if not OBJECT_STAGES & set(stages):
            return self._given.instances(split, frame)
        folder = self._detections if "detector" in stages else self._found_by
        if folder is None:
            return self._images.instances(split, frame)
        path = frame_path(folder, split, frame)
        # Without a file: its image could not be read, and data.on_error is skip.
        masks = load_masks(path)[0] if path.is_file() else np.zeros((0, *self._run.config.data.size), bool)
        return masks, list(range(len(masks)))

    def ground(self, split: str, frame: str) -> Masks:
        if "ground" not in self._run.config.stages:
            return self._given.ground(split, frame)
        ground = read_ground(self._run.path, split, frame) > 0.5
        if "proposals" in self._run.config.stages:  # what stands on the ground is none, whatever the net thinks
            ground &= ~self.instances(split, frame)[0].any(axis=0)
        return ground

    def moving(self, split: str, frame: str) -> Masks | None:
        if "proposals" not in self._run.config.stages:
            return None
        path = frame_path(self._found_by, split, frame)
        if not path.is_file():
            return np.zeros((1, *self._run.config.data.size), bool)
        masks, (moves,) = load_masks(path, "moves")
        with reading("masks", path):
            moving: Masks = masks[moves.astype(bool)].any(axis=0, keepdims=True)
        return moving

    @cached_property
    def _detections(self) -> Path | None:
        """The folder of the detections that count, as the last round says; None where that is not there any more."""
        last = self._run.finished(round_name(len(self._run.config.detector.scores) - 1)) or {}
        folder = self._run.stage(last["masks_from"]) if isinstance(last.get("masks_from"), str) else None
        return folder if folder is not None and folder.is_dir() else None

    @cached_property
    def _found_by(self) -> Path:
        """The folder of the stage that finds objects without a detector."""
        name = next(iter(OBJECT_STAGES & set(self._run.config.stages)))
        if self._run.finished(name) is None:
            raise DataError(f"{self._run.path} has no masks of objects: the stage '{name}' comes first")
        return self._run.stage(name)

    @cached_property
    def _images(self) -> GivenMasks:
        """What versions before 0.2 left of the detector stage, one PNG an object in the layout of given masks."""
        folder = self._run.stage("detector") / "masks"
        if not folder.is_dir():
            raise DataError(f"{self._run.path} has no masks of objects: the stage 'detector' comes first")
        # An absolute path does not end up below the data set's root.
        return GivenMasks(self._run.config.data.model_copy(update={"masks": folder.absolute()}))


def mask_source(run: Run) -> MaskSource:
    """The masks that the stages of a run work with."""
    discovers = ({"ground"} | OBJECT_STAGES) & set(run.config.stages)
    return DiscoveredMasks(run) if discovers else GivenMasks(run.config.data)


def read_ground(run_folder: Path, split: str, frame: str) -> NDArray[np.float32]:
    """The probability of ground [1,H,W] that the ground stage of a run has left of a frame.

    Raises:
        DataError: the file is missing or broken.
    """
    path = frame_path(run_folder / "ground" / "masks", split, frame, ".png")
    with reading("ground", path), Image.open(path) as file:
        return np.asarray(file.convert("L"), dtype=np.float32)[None] / np.float32(255)


def newest_labels(run: Run, before: int) -> str:
    """The part whose objects a round trains on: the last one before it that found enough, else the candidates."""
    names = [round_name(number) for number in reversed(range(before))]
    return next((name for name in names if (run.finished(name) or {}).get("usable")), CANDIDATES)
