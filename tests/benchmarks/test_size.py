from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import scaling, size


def test_work_on_all_frames_does_not_grow_faster_than_they_do(tmp_path: Path) -> None:
    """`python -m benchmarks.size` does the same with 82,225 frames; here a search through a list would show as 8."""
    few, many = 150, 1200
    results = {frames: size.measure(tmp_path / str(frames), frames) for frames in (few, many)}
    growth = {
        name: (results[many][name] / many) / (results[few][name] / few)
        for name in results[many]
        if not name.startswith(("reads", "bytes"))
    }
    assert max(growth.values()) < 4, growth
    for name in ("reads a second, prediction store", "reads a second, picture cache"):
        assert results[many][name] > 500  # 2,000 on a machine that does nothing else
    text = size.table(results)
    assert "| prediction store, written |" in text and "1,200 frames" in text


def phase(**changes: object) -> scaling.Phase:
    usual = scaling.Phase("scene", "scene: depth, pose", 1.0, 60e9, 100_000_000)
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def test_an_estimate_is_bound_by_its_slowest_part() -> None:
    assumed, modelled = scaling.Assumed(dispatches=0), scaling.kernels()
    one, many = (scaling.rate(phase(), gpus, assumed, modelled) for gpus in (1, 64))
    operators = 1e-6 * (modelled["view_synthesis_loss"] + modelled["smoothness_loss"])
    assert one == pytest.approx(12 / (12 * 60e9 / (495e12 * 0.15) + operators))
    assert 32 * one < many < 64 * one, "sums cost something"
    waiting = dataclasses.replace(assumed, dispatches=100_000)
    assert scaling.rate(phase(), 1, waiting, modelled) == pytest.approx(12 / 0.6)
    starved = dataclasses.replace(assumed, loader=1.0)
    assert scaling.rate(phase(), 8, starved, modelled) == 64
    free = phase(exchanged=0)
    parts = scaling.step_parts(free, 8, assumed, modelled)
    assert parts["exchange"] == 0
    between = scaling.step_parts(phase(), 16, assumed, modelled)["exchange"]
    # 7/8 of 200 MB at 300 GB/s, 1/2 of it at 50 GB/s, two hops.
    assert between == pytest.approx(200e6 * 7 / 8 / 300e9 + 100e6 / 50e9 + 40e-6)
