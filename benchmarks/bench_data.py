"""The data pipeline alone: reading, augmentation and collation of triplets, in this process and in workers.

From files: the published PNGs, twice as large as the networks' images, and the cache of `mcd prepare cache`. The
system's memory is told to forget them before every round, so that each is read from the disk once; the data set itself
keeps nothing. Rates are by the clock, and, of this process alone with one thread, by its processor time: what one core
does.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.conftest import Settings, record
from mcd.config import Augment, Data
from mcd.data import FrameDataset, StepSampler, build_loader, dataset, open_reader, prefetch
from mcd.data.prepare_cache import fill_cache
from mcd.streets.synthetic import generate
from mcd.training.memory import keep_freed_memory

pytestmark = pytest.mark.timeout(0)

WORKERS = (0, 2)
RENDERED = 24


def make_files(root: Path, frames: int, size: tuple[int, int]) -> Data:
    """A data set in the published layout, of files of twice the size; few are rendered and the others are copies."""
    rendered = min(frames, RENDERED)
    generate(root, train=rendered, val=1, size=(2 * size[0], 2 * size[1]), seed=0, workers=2)
    lines = (root / "splits" / "train.txt").read_text().split("\n")[:rendered]
    for number in range(rendered, frames):
        city, source = lines[number % rendered].split()
        name = f"{city}_copy_{number:06d}"
        for ending in (".png", "_cam.txt"):
            folder = root / "triplets" / city
            shutil.copyfile(folder / f"{source}{ending}", folder / f"{name}{ending}")
        lines.append(f"{city} {name}")
    (root / "splits" / "train.txt").write_text("\n".join(lines) + "\n")
    return Data(root=root, size=size)


def forget(paths: Iterable[Path]) -> None:
    """Let the system's page cache drop the contents of files."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bench_data(
    benchmark: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(dataset, "CACHE_BYTES", 0)
    batch, height, width = (2, 32, 48) if settings.quick else settings.sizes[0]
    data = make_files(tmp_path / "streets", batch * (8 if settings.quick else 40), (height, width))
    fast = data.model_copy(update={"cache": tmp_path / "cache"})
    fill_cache(fast, workers=2)
    keep_freed_memory()  # as training on a CPU does
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {}

    def measure(name: str, config: Data, workers: int, batches: int) -> None:
        forget(path for path in tmp_path.rglob("*") if path.is_file())
        frames = FrameDataset(open_reader(config, "train"), config, augment=Augment(), seed=0)
        # Batches that were loaded ahead before the clock started would count for nothing.
        ahead = 2 * workers + 1
        sampler = StepSampler(len(frames), batch, 0, 0, ahead + batches)
        loaded = prefetch(build_loader(frames, sampler, workers, settings.device), settings.device)
        for _ in range(ahead):
            next(loaded)
        begin, used = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(loaded)
        seconds, used = time.perf_counter() - begin, time.process_time() - used
        loaded.close()  # type: ignore[attr-defined]
        rates.setdefault(f"{name}, {workers} workers", []).append(batch * batches / seconds)
        if workers == 0:
            rates.setdefault(f"{name}, one core", []).append(batch * batches / used)

    def one_round() -> None:
        for workers in WORKERS:
            measure("PNG", data, workers, 2 if settings.quick else 6)
            measure("cache", fast, workers, 2 if settings.quick else 32)

    benchmark.pedantic(one_round, rounds=2 if settings.quick else 3)
    record(
        benchmark,
        kind="data",
        size=[batch, height, width],
        images_per_s={name: statistics.median(measured) for name, measured in rates.items()},
    )
