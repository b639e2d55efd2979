"""Depth that any method has written: a folder with a file a frame, or one array of all.

    FOLDER/FRAME.npy, FRAME.png             the name of the frame, with its folders or without
    FOLDER/FRAME_depth.npy, _depth16.png    as ``mcd predict`` writes them
    FILE.npy                                [N,H,W], in the order of the evaluated frames

PNG has 16 bits; a level is 1/256 of a unit, as KITTI has it, unless the file or ``factor`` says otherwise.
``disparity`` are inverse depths, in any unit: whatever is larger is nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcd.data import Batch
from mcd.data.files import text
from mcd.files import DataError, reading
from mcd.inference.predictor import resize_depth

Kind = Literal["depth", "disparity"]

_ENDINGS = (".npy", ".png", "_depth.npy", "_depth16.png")
_LEVELS = 256.0
# Shapes that differ by rounding to a multiple of 32 and by little more.
_SHAPE = 0.15


@dataclass(frozen=True)
class Reading:
    """What the numbers of the files are."""

    kind: Kind = "depth"
    unit: float = 1.0
    """Metres of a unit of depth: 0.001 for millimetres. Of disparity, it is the depth at a disparity of 1."""
    factor: float | None = None
    """Levels a unit of a 16-bit PNG; None: as the file says, else 256."""


class Predictions:
    """The predictor of a folder or an array: it knows the frames that it has files of, and no other.

    Args:
        frames: evaluated frames in their order, which is that of an array.

    Raises:
        DataError: there is no file of one of the frames, or an array has another number of them.
    """

    def __init__(self, place: Path, frames: Sequence[str], how: Reading):
        self._place, self._how = place, how
        self._array: NDArray[Any] | None = None
        self._index = {frame: number for number, frame in enumerate(frames)}
        self.notes: list[str] = []
        """What is odd about the files."""
        if place.is_file():
            with reading("predictions", place):
                self._array = np.load(place, mmap_mode="r", allow_pickle=False)
            if self._array.ndim == 4 and self._array.shape[1] == 1:
                self._array = self._array[:, 0]
            if self._array.ndim != 3 or len(self._array) != len(frames):
                raise DataError(
                    f"predictions {place} have the shape {list(self._array.shape)}; expected [{len(frames)}, height, "
                    "width], a map for every evaluated frame"
                )
            return
        missing = [frame for frame in frames if self._find(frame) is None]
        if missing:
            names = ", ".join(f"{missing[0]}{ending}" for ending in _ENDINGS)
            raise DataError(
                f"predictions {place} have no file of {len(missing)} of {len(frames)} evaluated frames; looked for "
                f"{names}, with and without the folders of the name"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Depths [B,1,h,w] of the frames of a batch; smaller maps of other sizes are brought to the largest."""
        depths = [self.depth(frame) for frame in batch["frame"]]
        size = max((depth.shape for depth in depths), key=lambda shape: shape[0] * shape[1])
        return torch.stack([resize_depth(depth[None, None], size)[0] for depth in depths])

    def depth(self, frame: str) -> Tensor:
        """Depth [h,w] of a frame, float32, times the unit.

        Raises:
            DataError: the file is missing, broken, of another kind, or holds what is neither finite nor positive.
        """
        values, source = self._read(frame)
        if values.ndim != 2:
            raise DataError(f"prediction {source} has the shape {list(values.shape)}; expected [height, width]")
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            raise DataError(
                f"prediction {source}: {int(wrong.sum())} of {values.size} pixels are not positive and finite; a "
                f"{self._how.kind} is wanted for every pixel"
            )
        values = values.astype(np.float64)
        depth = self._how.unit * (values if self._how.kind == "depth" else 1 / values)
        return torch.from_numpy(depth.astype(np.float32))

    def check_shape(self, frame: str, size: Sequence[int]) -> None:
        """Say of a frame's file if its shape is not that of the picture [H,W,…]: it may show a part of it alone."""
        shape = self._read(frame)[0].shape[-2:]
        if abs(shape[1] * size[0] / (shape[0] * size[1]) - 1) > _SHAPE:
            self.notes.append(
                f"predictions {self._place} are {text(shape)}, and frames {text(size)}: they are stretched over the "
                "whole frame; if they show a part of it, pad them"
            )

    def _read(self, frame: str) -> tuple[NDArray[Any], str]:
        if self._array is not None:
            if frame not in self._index:
                raise DataError(f"predictions {self._place} are of the evaluated frames; {frame} is none of them")
            return np.asarray(self._array[self._index[frame]]), f"{self._place}[{self._index[frame]}]"
        path = self._find(frame)
        if path is None:
            raise DataError(f"predictions {self._place} have no file of frame {frame}")
        with reading("prediction", path):
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
                return (values[0] if values.ndim == 3 and len(values) == 1 else values), str(path)
            with Image.open(path) as file:
                if not file.mode.startswith("I"):
                    raise DataError(
                        f"prediction {path} has pixels of kind '{file.mode}'; expected 16-bit grey: colours and 8 bits "
                        "are for looking at"
                    )
                levels = np.asarray(file)
                factor = self._how.factor or float(getattr(file, "text", {}).get("depth_factor", _LEVELS))
        if not factor > 0:
            raise DataError(f"prediction {path} says that a unit has {factor:g} levels")
        if (levels == 65535).mean() > 0.01:
            self._say("has more than 1 % of its pixels at the last level, 65535: what is farther is cut off", path)
        return levels / factor, str(path)

    def _say(self, what: str, path: Path) -> None:
        if not any(what in note for note in self.notes):
            self.notes.append(f"prediction {path} {what}")

    def _find(self, frame: str) -> Path | None:
        names = dict.fromkeys((frame, frame.replace("/", "_"), frame.rpartition("/")[2]))
        places = (self._place / f"{name}{ending}" for name in names for ending in _ENDINGS)
        return next((place for place in places if place.is_file()), None)


def is_predictions(place: Path) -> bool:
    """Whether a place holds another method's files rather than nets: an array, or a folder of npy and PNG files."""
    if place.is_file():
        return place.suffix == ".npy"
    return place.is_dir() and any(path.suffix in (".npy", ".png") for path in place.rglob("*"))


def oddities(agreements: Sequence[tuple[float, float]], how: Reading, metric: bool) -> list[str]:
    """What the numbers themselves say against their reading.

    Args:
        agreements: of every frame, the correlation of the logarithms of prediction and truth, and the ratio of their
            medians, truth over prediction.
        metric: whether the prediction is taken for metres.
    """
    if not agreements:
        return []
    correlation, ratio = (float(np.median(column)) for column in np.array(agreements).T)
    if correlation < -0.2:
        other = "disparity" if how.kind == "depth" else "depth"
        return [
            f"what is farther in the truth is nearer in the predictions (correlation {correlation:.2f}): are they "
            f"{other}? Then say --kind {other}"
        ]
    if metric and not 0.5 < ratio < 2:
        return [
            f"the truth is {ratio:.3g} times the predictions: are they in another unit? --unit says how many metres "
            "one has, --scale median takes no unit"
        ]
    return []
