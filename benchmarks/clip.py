"""The shipped start, adapted to a piece of real driving: ``python -m benchmarks.clip`` (`make clip`).

Minutes on two cores. Runs the scene stage of ``configs/video.yaml`` on tests/clip/highway.mp4, of which nothing but the
frames is used, and writes the run's report. Then ``--picture`` (docs/clip.png) shows image, depth of the start and
depth after adapting, and contact and upright of the boxes of vehicles are printed for both
(:mod:`mcd.evaluation.contact`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mcd.data.video import VideoReader
from mcd.evaluation.contact import contact_figures, read_boxes
from mcd.inference.predictor import DepthPredictor
from mcd.train import main as train
from mcd.visualize import colour_depth, depth_range, from_bytes, panel, resize_picture, to_bytes

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "clip"
SHOWN = (15, 40, 65)
"""The frames with boxes."""

DRAWN = (225, 400)
"""Height and width of each tile."""
_NEAREST = 1.6

Pictures = list[NDArray[np.uint8]]
Depths = Mapping[str, dict[int, NDArray[np.float32]]]


def adapt(folder: Path, runs: Path, steps: int) -> Path:
    """Train on a copy of the clip, beside which its frames are written; returns the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / "highway.mp4"
    if not video.is_file():
        shutil.copyfile(CLIP / "highway.mp4", video)
    settings = {
        "run": "clip",
        "runs": runs,
        "stages": "[scene]",
        "data.root": video,
        "data.fov": 60,
        "data.size": "[192, 352]",
        "scene.batch": 3,
        "scene.steps": steps,
        "scene.motion_from": "null",
        "scene.joint_from": "null",
        "evaluation.boxes": CLIP / "vehicles.csv",
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if train([str(ROOT / "configs" / "video.yaml"), *assignments]) != 0:
        raise SystemExit(1)
    return runs / "clip"


def predict(net: DepthPredictor, pictures: Pictures) -> dict[int, NDArray[np.float32]]:
    depths = net.predict(pictures)
    return {number: depth.numpy() for number, depth in zip(SHOWN, depths, strict=True)}


def draw(pictures: Pictures, depths: Depths, target: Path) -> None:
    """A row a frame; each net has its own unit, and so its own range of colours, one for all its frames.

    The nearest road is one colour, so that colours are left for what is as far away as the vehicles.
    """
    limits = {}
    for name, maps in depths.items():
        near, far = depth_range(torch.from_numpy(np.stack(list(maps.values()))))
        limits[name] = (_NEAREST * near, far)
    rows = [
        [
            resize_picture(tile, DRAWN)
            for tile in (
                from_bytes(picture),
                *(colour_depth(torch.from_numpy(maps[number]), limits[name]) for name, maps in depths.items()),
            )
        ]
        for number, picture in zip(SHOWN, pictures, strict=True)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_bytes(panel(rows, ["image", *depths]))).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="of the scene stage (default 50)")
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "clip", help="where the frames go")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the run folder is")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "clip.png", help="file to draw")
    options = parser.parse_args()
    run = adapt(options.folder, options.runs, options.steps)
    frames = list(VideoReader(CLIP / "highway.mp4"))
    pictures = [frames[number] for number in SHOWN]
    nets = {"depth, as shipped": "start", "depth, adapted": run}
    depths = {name: predict(DepthPredictor.load(place), pictures) for name, place in nets.items()}
    draw(pictures, depths, options.picture)
    things = read_boxes(CLIP / "vehicles.csv", [str(number) for number in range(len(frames))])
    for name, maps in depths.items():
        figures = contact_figures({str(number): depth for number, depth in maps.items()}, things)
        for group in ("all", "near"):
            f = figures[group]
            print(
                f"{name:18} {group:5} {f['count']:3.0f} boxes   contact {f['contact']:.2f}   upright "
                f"{f['upright']:.2f}   of its rows {f['upright_rows']:.2f}"
            )
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
