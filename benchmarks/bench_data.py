"""The data pipeline alone: reading, augmentation and collation of triplets, in this process and in workers."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Settings, record
from mcd.config import Augment, Data
from mcd.data import FrameDataset, StepSampler, build_loader, open_reader, prefetch
from mcd.streets.synthetic import generate

pytestmark = pytest.mark.timeout(0)

WORKERS = (0, 2)


def bench_data(benchmark: Any, settings: Settings, tmp_path: Path) -> None:
    batch, height, width = (2, 64, 96) if settings.quick else settings.sizes[0]
    frames, batches = (2 * batch, 3) if settings.quick else (4 * batch, 20)
    root = tmp_path / "streets"
    generate(root, train=frames, val=1, size=(height, width), seed=0, workers=2)
    data = Data(root=root, size=(height, width))
    dataset = FrameDataset(open_reader(data, "train"), data, augment=Augment(), seed=0)
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}

    def images_per_second(workers: int) -> float:
        # Batches that were loaded ahead before the clock started would count for nothing.
        ahead = 2 * workers + 1
        sampler = StepSampler(frames, batch, 0, 0, ahead + batches)
        loaded = prefetch(build_loader(dataset, sampler, workers, settings.device), settings.device)
        for _ in range(ahead):
            next(loaded)
        begin = time.perf_counter()
        for _ in range(batches):
            next(loaded)
        seconds = time.perf_counter() - begin
        loaded.close()  # type: ignore[attr-defined]
        return batch * batches / seconds

    def one_round() -> None:
        for workers, measured in rates.items():
            measured.append(images_per_second(workers))

    benchmark.pedantic(one_round, rounds=2 if settings.quick else 3)
    record(
        benchmark,
        kind="data",
        size=[batch, height, width],
        images_per_s={f"{workers} workers": statistics.median(measured) for workers, measured in rates.items()},
    )
