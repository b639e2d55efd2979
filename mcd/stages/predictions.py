"""Predictions stage: what the scene stage's nets see in every frame goes into the store, so that no later stage has to
look again.

Consumes image triplets and the scene stage's nets. Leaves the run's ``predictions.sqlite``
(:class:`mcd.data.store.PredictionStore`), which later stages read through :class:`ScenePredictions`, and
``predictions/SPLIT.csv``: how much of each frame moves, read by :func:`read_moving`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mcd import world
from mcd.data import FrameDataset
from mcd.files import reading, write_text
from mcd.run.context import Context
from mcd.run.progress import progress
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import moving_pixels
from mcd.stages.stage import Preparation


class PredictionsPreparation(Preparation):
    name = "predictions"

    def __init__(self, context: Context):
        super().__init__(context)
        self._open()

    def _open(self) -> None:
        self._predictions = ScenePredictions(self.context)
        assert self._predictions.store is not None, "a config with this stage asks for a store"
        self._store = self._predictions.store

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            dataset, stored = self.frames(split, None), self._store.frames(split)
            batch = self.config.predictions.batch
            for loaded in self.batches_left(dataset, split, batch, stored.__contains__, should_stop):
                self._predictions(split, loaded)
            if world.machines() > 1:
                self._open()  # what all have written, in one file
            facts[split] = self._summary_of(split, dataset)
        return facts

    def _summary_of(self, split: str, dataset: FrameDataset) -> dict[str, Any]:
        return world.from_first(lambda: self._summary(split, [item.frame for item in dataset.items]))

    def _summary(self, split: str, frames: list[str]) -> dict[str, Any]:
        shares: dict[str, float] = {}
        with progress(len(frames), f"what moves in {split}", "image") as bar:
            for frame in frames:
                found = self._store.read(split, frame)
                # Not stored: its image could not be read, and data.on_error is skip.
                if found is not None:
                    flow = torch.from_numpy(found.flow)[None]
                    moving = moving_pixels(flow, self.config.predictions.flow_threshold)
                    shares[frame] = float(moving.float().mean())
                bar.update()
        lines = "".join(f"{frame},{share:.6f}\n" for frame, share in shares.items())
        write_text(self.folder / f"{split}.csv", "frame,moving\n" + lines)
        return {
            "frames": len(shares),
            "frames_with_motion": sum(share > 0 for share in shares.values()),
            "moving_share": sum(shares.values()) / len(shares) if shares else 0.0,
        }


def read_moving(folder: Path, split: str) -> dict[str, float]:
    """The share of every frame that moves.

    Args:
        folder: the stage's folder, ``RUN/predictions``.

    Raises:
        DataError: the list is missing or broken.
    """
    path = folder / f"{split}.csv"
    with reading("list of what moves", path), path.open(newline="") as file:
        return {line["frame"]: float(line["moving"]) for line in csv.DictReader(file)}
