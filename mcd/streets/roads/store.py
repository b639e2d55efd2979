"""Rendered roads on disk: ``python -m mcd.streets.roads.store OUT --shards N``.

A shard OUT/NNNN.npz holds views of one size: image uint8 [n,H,W,3], depth float16 [n,H,W] in m (0: sky), moving bool,
K [n,3,3] in pixels, pose [n,4,4] (world from camera), height [n] above the ground in m, and clip [n]: equal numbers in
a row are consecutive frames. Shard N depends on the seed and N alone; one that is there is not drawn again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.files import atomic_path
from mcd.streets.roads.views import View, make_views, textures

SIZES = ((160, 288), (128, 416))
VIEWS = 96  # a shard
CAMERAS, FRAMES = 3, 3


def make_shard(seed: int, number: int, views: int = VIEWS, size: tuple[int, int] | None = None) -> dict[str, NDArray]:
    """The arrays of shard `number`; its size takes turns unless one is given."""
    rng = np.random.default_rng([seed, number])
    size = size or SIZES[number % len(SIZES)]
    noise = textures(rng)
    found: list[tuple[int, View]] = []
    clip = 0
    while len(found) < views:
        # Most worlds are seen by several cameras once, some by one in consecutive frames.
        consecutive = rng.random() < 0.3
        cameras, frames = (1, FRAMES) if consecutive else (CAMERAS, 1)
        for taken in make_views(rng, noise, size, cameras, frames):
            found += [(clip, view) for view in taken]
            clip += 1
    found = found[:views]
    return {
        "image": np.stack([view.image for _, view in found]),
        "depth": np.stack([view.depth for _, view in found]).astype(np.float16),
        "moving": np.stack([view.moving for _, view in found]),
        "K": np.stack([view.K for _, view in found]).astype(np.float32),
        "pose": np.stack([view.T_world_cam for _, view in found]),
        "height": np.array([view.height for _, view in found], np.float32),
        "clip": np.array([clip for clip, _ in found], np.int32),
    }


def write_shard(out: Path, seed: int, number: int) -> Path:
    """Write a shard, whole or not at all, unless it is there."""
    path = out / f"{number:04d}.npz"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {**make_shard(seed, number)}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mcd.streets.roads.store", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--shards", type=int, default=84, help=f"of {VIEWS} views (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first shard (default: 0)")
    parser.add_argument("--step", type=int, default=1, help="draw every so many, for several processes (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for number in range(given.first, given.shards, given.step):
        started = time.monotonic()
        path = write_shard(given.out, given.seed, number)
        print(f"{path} {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
