"""The baseline of all figures of depth: a predictor that knows how far each image row is, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.config import Config
from mcd.data import EvaluationSet, SequenceFolder
from mcd.files import DataError


def row_median(config: Config) -> Tensor:
    """A baseline without a net: median depth [1,1,H,1] of each image row over measurements.

    These are the training frames' of a sequence. Other data have none for training: there it is up to 100 of the
    evaluated frames themselves, which is kinder to the baseline than to any net. A row without a measurement takes the
    nearest one that has some.
    """
    limits = config.evaluation
    found: list[list[NDArray[np.float32]]] = []
    for depth in _row_measurements(config):
        found = found or [[] for _ in depth]
        # Images of KITTI differ by a few rows.
        for number, row in enumerate(depth):
            values = row[(row > limits.min_depth) & (row < limits.max_depth)]
            found[number * len(found) // len(depth)].append(values)
    measured = [np.concatenate(values) for values in found]
    rows = np.flatnonzero([values.size for values in measured])
    if not rows.size:
        raise DataError(f"the frames of {config.data.root} that the row median is taken from have no measured depth")
    medians = np.array([np.median(measured[row]) for row in rows])
    nearest = np.abs(np.arange(len(measured))[:, None] - rows).argmin(axis=1)
    return torch.from_numpy(medians[nearest]).float()[None, None, :, None]


def _row_measurements(config: Config) -> Iterator[NDArray[np.float32]]:
    if config.data.kind == "sequence":
        folder = SequenceFolder(config.data, "train")
        yield from map(folder.read_depth, folder.every_frame)
        return
    dataset = EvaluationSet(config)
    for index in np.unique(np.linspace(0, len(dataset) - 1, 100).astype(int)).tolist():
        yield dataset[index]["depth_gt"]
