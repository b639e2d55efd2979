"""Make the start that ships with mcd: ``mcd pretrain OUT``.

Three steps, each of which resumes where it was interrupted: rendered views (OUT/views, or --views), a depth net
(OUT/depth) and a pose net (OUT/pose), and OUT/start.safetensors that holds both. A folder OUT/depth or OUT/pose has
last.pt, the state; log.csv; and weights.safetensors, the mean weights in half precision.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from mcd.data.processes import process_count
from mcd.errors import McdError
from mcd.run.checkpoint import Weights, load_weights, save_tensors
from mcd.streets.roads.store import VIEWS, write_shard
from mcd.training.pretrain.data import Settings
from mcd.training.pretrain.depth import depth_task
from mcd.training.pretrain.loop import run
from mcd.training.pretrain.pose import pose_task

POSE = Settings(net="light", steps=1500, batch=16, decay=0.4, encoder_lr=1.0)
DOCUMENT = "start.safetensors"
SIZE = (192, 320)
"""About as many pixels as this has go into the net: far vehicles need them."""


def draw(folder: Path, settings: Settings, workers: int) -> None:
    """Render the shards that are missing."""
    missing = [number for number in range(settings.shards) if not (folder / f"{number:04d}.npz").exists()]
    if not missing:
        return
    print(f"rendering {len(missing) * VIEWS} views to {folder}", flush=True)
    with ProcessPoolExecutor(process_count(workers, len(missing))) as pool:
        for done in pool.map(write_shard, *zip(*((folder, settings.seed, n) for n in missing), strict=True)):
            print(done, flush=True)


def pack(out: Path, *parts: Weights) -> Path:
    """One file of several nets' weights, with what is known of each."""
    tensors = {role: nets for part in parts for role, nets in part.tensors.items()}
    names = {role: name for part in parts for role, name in part.nets.items()}
    about = {
        role: {key: part.metadata[key] for key in ("step", "seconds", "settings")}
        for part in parts
        for role in part.nets
    }
    save_tensors(out, tensors, names, {"size": SIZE, "any_shape": True, "unit": "camera height", "trained": about})
    return out


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0, or 2 where nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="mcd pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for everything")
    parser.add_argument("--views", type=Path, help="folder of the rendered views (default: OUT/views)")
    parser.add_argument("--only", choices=("views", "depth", "pose", "pack"), help="one step (default: all)")
    parser.add_argument("--init", type=Path, help="weights that the depth net starts from in place of ImageNet's")
    parser.add_argument("--pose-steps", type=int, default=POSE.steps, help=f"default {POSE.steps}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that render")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    given = vars(parser.parse_args(arguments))
    if min(given["workers"], given["pose_steps"]) < 1:
        parser.error("--workers and --pose-steps are at least 1")
    out, views, only, init = (given.pop(name) for name in ("out", "views", "only", "init"))
    pose_steps, workers = given.pop("pose_steps"), given.pop("workers")
    views = views or out / "views"
    try:
        settings = Settings(**given)
        pose = replace(POSE, steps=pose_steps, shards=settings.shards, seed=settings.seed)
        if only in (None, "views"):
            draw(views, settings, workers)
        if only in (None, "depth"):
            run(depth_task(views, settings, init), out / "depth", settings)
        if only in (None, "pose"):
            run(pose_task(views, pose), out / "pose", pose)
        if only in (None, "pack"):
            parts = (load_weights(out / role / "weights.safetensors") for role in ("depth", "pose"))
            print(pack(out / DOCUMENT, *parts))
    except (McdError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
