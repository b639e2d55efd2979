"""What ``model(image)`` of `mcd.load` takes above the bare network: ``python -m benchmarks.bench_model_call``.

Beside it, in the same run and in turns, the network itself on a tensor of its size. The image has that size, 192x640,
or that of KITTI's frames, which have to be made smaller and whose depth has to be made larger. Seconds are those of the
processor, on one thread: what else runs on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

import mcd
from benchmarks.machine import describe

SIZE, FRAME = (192, 640), (375, 1242)
ALLOWED = 0.10
"""Of the network's time, for an image of the network's size."""
ROUNDS = 30


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of the network, and of the model on images of its size and of KITTI's."""
    model = mcd.load("start", size=SIZE, device="cpu")
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in (SIZE, FRAME))
    tensor = torch.from_numpy(small).movedim(-1, 0)[None].float().contiguous() / 255
    calls: dict[str, Callable[[], Any]] = {
        "network": lambda: model.net(tensor),
        "same size": lambda: model(small),
        "KITTI's size": lambda: model(large),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for number in range(rounds + 2):  # the first two warm up
            for name, call in calls.items():
                begun = time.process_time()
                call()
                if number > 1:
                    taken[name].append(time.process_time() - begun)
    return {name: median(seconds) for name, seconds in taken.items()}


def lines(found: dict[str, float]) -> list[str]:
    bare = found["network"]
    return [f"{name:13} {1e3 * seconds:6.1f} ms  {seconds / bare - 1:+7.1%}" for name, seconds in found.items()]


@pytest.mark.slow
def test_a_call_of_a_model() -> None:
    torch.set_num_threads(1)
    found = measure()
    verdict = "met" if found["same size"] <= (1 + ALLOWED) * found["network"] else "missed"
    print("\n" + "\n".join(lines(found)), f"bar {ALLOWED:.0%} at the network's size: {verdict}", sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, one thread, torch {torch.__version__}, commit {machine['commit']}")
    print("\n".join(lines(measure())))
