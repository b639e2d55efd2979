"""What others have written and `mcd evaluate` reads: trajectories, depth, masks of moving objects; and streams."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.door import Door, write_run, write_weights
from fuzz.video_doors import write_video
from mcd.evaluation.command import main as evaluate
from mcd.inference.command import main as predict
from mcd.scene.trajectory import Trajectory, write_kitti, write_tum

_KINDS = ("a.txt", "b.tum", "c.csv")


def _trajectories(folder: Path) -> None:
    positions = np.cumsum(np.random.default_rng(0).uniform(0.5, 1, (8, 3)), axis=0)
    way = Trajectory(positions, np.tile(np.eye(3), (8, 1, 1)))
    place = folder / "in"
    place.mkdir()
    write_kitti(place / "a.txt", way)
    write_tum(place / "b.tum", way)
    rows = [f"{x},{y},{z},0.1,-0.1,{0.1 * n}" for n, (x, y, z) in enumerate(positions)]
    (place / "c.csv").write_text("\n".join(["x,y,z,roll,pitch,yaw", *rows]) + "\n")


def _compare(folder: Path, draw: random.Random) -> int:
    first, second = (folder / "in" / draw.choice(_KINDS) for _ in range(2))
    return evaluate([str(first), "--poses", str(second)])


def _predictions(folder: Path) -> None:
    write_run(folder)
    for number in range(5):
        depth = np.full((16, 24), 2.0 + number)
        for name in ("other", "moving"):
            (folder / "in" / name).mkdir(exist_ok=True)
        if number % 2:
            np.save(folder / "in" / "other" / f"{number:06d}.npy", depth)
        else:
            levels = (256 * depth).astype(np.uint16)
            Image.fromarray(levels).save(folder / "in" / "other" / f"{number:06d}.png")
        mask = np.zeros((32, 48), np.uint8)
        mask[10:20, 10:20] = 1 + number
        Image.fromarray(mask).save(folder / "in" / "moving" / f"{number:06d}.png")


def _others(folder: Path, draw: random.Random) -> int:
    masks = f"evaluation.masks={folder / 'in' / 'moving'}"
    kind = draw.choice(("depth", "disparity"))
    config = str(folder / "in" / "run" / "config.yaml")
    return evaluate([str(folder / "in" / "other"), "--config", config, "--set", masks, "--kind", kind])


def _streams(folder: Path) -> None:
    (folder / "in").mkdir()
    write_weights(folder / "net" / "weights.safetensors")
    for name, codec, pixels in (("a.nut", "rawvideo", "rgb24"), ("b.ts", "mpeg2video", "yuv420p")):
        write_video(folder / "in" / name, codec, pixels)


def _follow(folder: Path, draw: random.Random) -> int:
    source = f"file://{folder / 'in' / draw.choice(('a.nut', 'b.ts'))}"
    return predict([str(folder / "net"), source, "-o", str(folder / "out"), "--every-frame", "--device", "cpu"])


EVALUATION_DOORS = {
    "trajectories": Door(_trajectories, _compare),
    "other methods' depth": Door(_predictions, _others, "in/[om]*/*"),
    "streams": Door(_streams, _follow),
}
