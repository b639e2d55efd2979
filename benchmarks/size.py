"""What a data set of many frames costs before and between the steps: ``python -m benchmarks.size [--frames N …]``.

A data set of N frames with lists, cameras, masks and the instances of a run is laid out (its files are few, linked
under many names), and everything that a run does with all of its frames is timed: reading lists, making data sets,
looking for what is done, writing and reading lists of instances, the prediction store, the picture cache. Of each the
time a frame at the smallest and at the largest N; what grows faster than linear shows as a ratio above 1.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from mcd import world
from mcd.config import Augment, Data
from mcd.data import FrameDataset, StepSampler, build_loader, fixed_batches, instance_masks, open_reader, prefetch
from mcd.data.prepare_cache import empty_cache, fill_cache, ready_cache
from mcd.data.store import Prediction, PredictionStore
from mcd.files import frame_path
from mcd.masks.instances import FrameInstances, read_rows
from mcd.stages.instances import write_rows

PUBLISHED = 82_225
"""Training frames of the published experiment."""
SIDE = (16, 32)
_LINKS = 20_000  # a file may have 65,000 names on ext4
_SAMPLE = 2000


def make_data_set(root: Path, frames: int) -> Data:
    """Triplets with masks, road masks and a run's instances (``RUN/instances``) below ``root``, all of them tiny."""
    random = np.random.default_rng(0)
    names = [f"{city}_{number // 30:06d}_{number % 30:06d}" for city, number in _numbered(frames)]
    templates = root / "templates"
    templates.mkdir(parents=True)
    instances = FrameInstances(
        ids=np.arange(2), dynamic=np.array([True, False]), coverage=np.array([0.5, 0.1], np.float32),
        large=np.ones(2, bool), triplet=np.ones(2, bool), masks=random.random((2, 3, *SIDE)) > 0.5,
    )  # fmt: skip
    for turn in range(-(-frames // _LINKS)):
        Image.fromarray(random.integers(0, 256, (SIDE[0], 3 * SIDE[1], 3), dtype=np.uint8)).save(
            templates / f"{turn}.png"
        )
        (templates / f"{turn}.txt").write_text("20,0,15.5,0,20,7.5,0,0,1")
        Image.fromarray(np.where(random.random(SIDE) > 0.5, 255, 0).astype(np.uint8)).save(templates / f"{turn}_m.png")
        instances.save(templates / f"{turn}.npz")
    made: set[Path] = set()

    def link(source: str, to: Path) -> None:
        if to.parent not in made:
            to.parent.mkdir(parents=True, exist_ok=True)
            made.add(to.parent)
        os.link(templates / source, to)

    for number, name in enumerate(names):
        turn, city = number // _LINKS, name.split("_")[0]
        link(f"{turn}.png", root / "triplets" / city / f"{name}.png")
        link(f"{turn}.txt", root / "triplets" / city / f"{name}_cam.txt")
        for place in range(2):
            link(f"{turn}_m.png", root / "masks" / "train" / city / name / f"{place}.png")
        link(f"{turn}_m.png", root / "road_masks" / "train" / city / f"{name}.png")
        link(f"{turn}.npz", frame_path(root / "run" / "instances", "train", f"{city}/{name}"))
    (root / "splits").mkdir()
    lines = [f"{name.split('_')[0]} {name}\n" for name in names]
    (root / "splits" / "train.txt").write_text("".join(lines))
    (root / "splits" / "val.txt").write_text(lines[0])
    return Data(root=root, size=SIDE, workers=0)


def _numbered(frames: int) -> Iterator[tuple[str, int]]:
    """Cities with as many frames as those of Cityscapes have, about 3,000."""
    for number in range(frames):
        yield f"city{number // 3000:02d}", number % 3000


def measure(root: Path, frames: int) -> dict[str, float]:
    """Seconds by what is done; "reads a second", "bytes a frame" and "bytes resident" beside them."""
    data = make_data_set(root, frames)
    run = root / "run"
    found: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        found[name] = time.process_time() - begin

    with timed("lists of frames"):
        reader = open_reader(data, "train")
    random = np.random.default_rng(1).choice(frames, min(_SAMPLE, frames), replace=False).tolist()
    sample = [reader.frames[number] for number in random]
    with timed("a data set, and its first batch"):
        dataset = FrameDataset(reader, data, Augment(), seed=0)
        next(iter(prefetch(build_loader(dataset, StepSampler(frames, 8, 0, 0, 10**6), 0))))
    with timed("a batch in the middle of the tenth epoch"):
        start = 9 * (frames // 8) + frames // 16
        next(iter(prefetch(build_loader(dataset, StepSampler(frames, 8, 0, start, 10**6), 0))))
    with timed("which frames are done"):
        done = [frame_path(run / "instances", "train", frame).is_file() for frame in reader.frames]
        batches = [reader.frames[first : first + 8] for first in range(0, frames, 8)]
        left = {frame for together in batches[::2] for frame in together}
        assert all(done) and fixed_batches(dataset, 8, 0, skip=set(reader.frames) - left) is not None
    with timed("list of instances, written"):
        write_rows(run / "instances", "train", reader.frames)
    with timed("list of instances, read"):
        rows = read_rows(run / "instances", "train")
        FrameDataset(reader, data, Augment(), items=rows)
    with timed("masks of a frame"):
        for frame in sample:
            instance_masks(data, "train", frame)
    found["masks of a frame"] *= frames / len(sample)
    found |= _store(root / "store.sqlite", reader.frames, sample, timed)
    cached = data.model_copy(update={"cache": root / "cache"})
    with timed("picture cache, made"):
        fill_cache(cached, workers=0)
    with timed("picture cache, looked at before a run"):
        ready_cache(cached)
    store = empty_cache(cached)
    begin = time.process_time()
    for frame in sample:
        assert store.read(reader.pictures(frame)) is not None
    found["reads a second, picture cache"] = len(sample) / (time.process_time() - begin)
    # Linux counts KiB.
    found["bytes resident"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def _store(path: Path, frames: list[str], sample: list[str], timed: Callable[[str], Any]) -> dict[str, float]:
    random = np.random.default_rng(0)
    one = Prediction(
        depth=random.uniform(5, 50, (1, *SIDE)).astype(np.float32),
        flow=np.zeros((2, 2, *SIDE), np.float32),
        poses=np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)),
    )
    store = PredictionStore(path, "nets")
    with timed("prediction store, written"):
        for first in range(0, len(frames), 64):
            store.write("train", dict.fromkeys(frames[first : first + 64], one))
    with timed("prediction store, what it holds"):
        assert len(store.frames("train")) == len(frames)
    begin = time.process_time()
    for frame in sample:
        assert store.read("train", frame) is not None
    return {
        "reads a second, prediction store": len(sample) / (time.process_time() - begin),
        "bytes a frame, prediction store": path.stat().st_size / len(frames),
    }


def table(results: dict[int, dict[str, float]]) -> str:
    """What was measured, in Markdown: microseconds a frame, and how they grow."""
    few, many = min(results), max(results)
    lines = [
        f"| processor time | µs a frame, {few:,} frames | {many:,} frames | ratio | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in results[many].items():
        if name.startswith(("reads", "bytes")):
            continue
        before, after = (1e6 * results[count][name] / count for count in (few, many))
        lines.append(f"| {name} | {before:.3g} | {after:.3g} | {after / before:.2f} | {seconds:.3g} |")
    lines += ["", f"| | {few:,} frames | {many:,} frames |", "|---|---|---|"]
    for name in results[many]:
        if name.startswith(("reads", "bytes")):
            lines.append(f"| {name} | {results[few][name]:,.0f} | {results[many][name]:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, PUBLISHED])
    parser.add_argument("--folder", type=Path, help="where the data sets are laid out and deleted again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    assert world.size() == 1
    results = {}
    for frames in sorted(given.frames):
        folder = Path(tempfile.mkdtemp(prefix="mcd-size-", dir=given.folder))
        try:
            results[frames] = measure(folder / "set", frames)
        finally:
            shutil.rmtree(folder)
    about = machine.describe()
    print(f"{about['processor']}, {about['cores']} cores, one thread; commit {about['commit']}\n")
    print(table(results))


if __name__ == "__main__":
    main()
