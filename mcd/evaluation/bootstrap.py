"""How far a mean over frames would be off with other frames: bootstrap intervals, and which differences are real.

Frames are drawn with replacement (Efron, Annals of Statistics 1979), the same draws for all that is compared, so that a
difference is that of a frame with itself (paired). Neighbouring frames of a clip show nearly the same: there whole
blocks of n^(1/3) consecutive frames are drawn, round the end (Politis and Romano 1992; the length: Hall, Horowitz and
Jing, Biometrika 1995). An interval holds the middle 95 % of 2,000 draws; a difference is real if 0 lies outside of its
interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mcd.evaluation.metrics import METRICS

DRAWS = 2000
LEVEL = 0.95
LEAST = 5
"""Fewer frames say nothing of their spread."""

Interval = tuple[float, float]
PerFrame = Mapping[str, Mapping[str, float]]
"""Metrics by frame, in the order of the frames."""


@dataclass
class FrameFigures:
    """What :func:`mcd.evaluation.protocol.evaluate_depth` finds frame by frame."""

    regions: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Metrics by region and frame."""
    agreement: list[tuple[float, float]] = field(default_factory=list)
    """Of every frame the correlation of the logarithms of prediction and truth, and the ratio of their medians."""


@dataclass(frozen=True)
class Difference:
    """One figure of two results, over the frames that both have."""

    mean: float
    interval: Interval
    frames: int

    @property
    def real(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]


def block_length(frames: int, *, clip: bool) -> int:
    """Consecutive frames that are drawn together."""
    return max(round(frames ** (1 / 3)), 1) if clip else 1


def intervals(rows: PerFrame, *, clip: bool) -> dict[str, Interval]:
    """The interval of the mean of every metric; empty for fewer than five frames.

    Args:
        clip: whether the frames are consecutive.
    """
    if len(rows) < LEAST:
        return {}
    values = np.array([[row[name] for name in METRICS] for row in rows.values()])
    return dict(zip(METRICS, _bounds(values, block_length(len(rows), clip=clip)), strict=True))


def difference(first: PerFrame, second: PerFrame, metric: str, *, clip: bool) -> Difference | None:
    """How much larger a metric of the first is than that of the second; None where they share under five frames."""
    shared = [frame for frame in first if frame in second]
    if len(shared) < LEAST:
        return None
    apart = np.array([first[frame][metric] - second[frame][metric] for frame in shared])
    (interval,) = _bounds(apart[:, None], block_length(len(shared), clip=clip))
    return Difference(float(apart.mean()), interval, len(shared))


def draw_weights(frames: int, block: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often [draws, frames] each frame is drawn, over the number of frames: the weights of a mean."""
    rng = np.random.default_rng(seed)
    blocks = -(-frames // block)
    starts = rng.integers(frames, size=(draws, blocks))
    chosen = ((starts[..., None] + np.arange(block)) % frames).reshape(draws, -1)[:, :frames]
    flat = chosen + frames * np.arange(draws)[:, None]
    return np.bincount(flat.ravel(), minlength=draws * frames).reshape(draws, frames) / frames


def _bounds(values: NDArray[np.float64], block: int) -> Sequence[Interval]:
    means = draw_weights(len(values), block) @ values
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, (tail, 100 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
