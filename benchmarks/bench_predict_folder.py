"""`mcd predict` on a folder of images beside its parts: ``python -m benchmarks.bench_predict_folder [--images 1000]``.

The parts are measured apart, in the same process: decoding on as many threads as the command has, the network alone on
batches that are in memory, encoding on those threads. The bar: the command takes no longer than their sum.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import describe
from mcd.files import atomic_path
from mcd.inference.command import Options, draw, predict_images
from mcd.inference.inputs import find_inputs, plan, read_image
from mcd.inference.predictor import DepthPredictor

FRAME, BATCH, THREADS = (375, 1242), 8, 8


def measure(count: int, size: tuple[int, int] = FRAME) -> dict[str, float]:
    """Seconds of each part and of the command, for this many JPEGs."""
    predictor = DepthPredictor.load("start")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for number in range(count):
            Image.fromarray(coarse[number % 8]).resize(size[::-1]).save(source / f"{number:04d}.jpg", quality=92)
        paths = find_inputs([str(source)])
        pool = ThreadPoolExecutor(THREADS)
        images = list(pool.map(read_image, paths[:BATCH]))
        estimates = predictor.estimate(images)
        batch = torch.rand(BATCH, 3, *estimates[0].size)

        def encode(number: int) -> None:
            with atomic_path(out / f"{number}.png") as path:
                Image.fromarray(draw(images[number % BATCH], estimates[number % BATCH].depth, False)).save(path)

        def network() -> None:
            for begin in range(0, count, BATCH):
                predictor(batch[: min(BATCH, count - begin)])

        parts: dict[str, Callable[[], Any]] = {
            "decode": lambda: [None for _ in pool.map(read_image, paths)],
            "network": network,
            "encode": lambda: list(pool.map(encode, range(count))),
            "mcd predict": lambda: list(predict_images(predictor, plan(paths, out, ("png",), True), Options(), out)),
        }
        taken = {}
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            taken[name] = time.perf_counter() - begun
        pool.shutdown()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    machine = describe()
    print(f"{machine['processor']}, {torch.get_num_threads()} threads for the network, commit {machine['commit']}")
    found = measure(given.images)
    for name, seconds in found.items():
        print(f"{name:12} {seconds:7.2f} s  {1e3 * seconds / given.images:6.1f} ms an image")
    apart = sum(seconds for name, seconds in found.items() if name != "mcd predict")
    verdict = "met" if found["mcd predict"] <= apart else "missed"
    print(f"together {apart:.2f} s apart; mcd predict is {found['mcd predict'] / apart:.2f} of it: {verdict}")


if __name__ == "__main__":
    main()
