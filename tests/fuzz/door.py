"""A way in for files and words, and what the valid examples behind several of them are made of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from mcd.errors import McdError
from mcd.nets import build_depth_net, build_pose_net
from mcd.run.checkpoint import save_weights

SIZE = (64, 64)


@dataclass(frozen=True)
class Door:
    """A way in: ``build`` writes a valid example below a folder; ``enter`` goes through, and returns an exit status.

    Files matching ``inputs`` are damaged, and must be left as they were; results go into ``out`` below the folder.
    """

    build: Callable[[Path], None]
    enter: Callable[[Path, random.Random], int]
    inputs: str = "in/**/*"


def library(call: Callable[[Path], None]) -> Callable[[Path, random.Random], int]:
    """A door of the library: an error that a command would print is an exit status of 1."""

    def enter(folder: Path, draw: random.Random) -> int:
        try:
            call(folder)
        except McdError as error:
            print(error)
            return 1
        return 0

    return enter


def texture(number: int) -> np.ndarray:
    rows = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    return np.kron(rows, np.ones((4, 4, 1), np.uint8))[:, 2 * number : 2 * number + 48]


def write_frames(folder: Path, count: int = 5) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(texture(number)).save(folder / f"{number:06d}.{'jpg' if number % 2 else 'png'}")


def write_weights(path: Path) -> None:
    torch.manual_seed(0)
    nets = {"depth": build_depth_net("light"), "pose": build_pose_net("light")}
    save_weights(path, nets, dict.fromkeys(nets, "light"), {"size": SIZE, "stage": "scene"})


def document(folder: Path) -> dict[str, object]:
    data = {"kind": "sequence", "root": str(folder / "in" / "data"), "images": "images", "size": list(SIZE)}
    data |= {"depth": "depth", "calibration": "calib_cam_to_cam.txt", "workers": 0}
    return {"run": "run", "runs": str(folder / "in"), "stages": ["scene"], "threads": 1, "data": data}


def write_sequence(folder: Path) -> None:
    place = folder / "in" / "data"
    write_frames(place / "images")
    (place / "depth").mkdir()
    for number in range(5):
        Image.fromarray(np.full((32, 48), 256 * (number + 2), np.uint16)).save(place / "depth" / f"{number:06d}.png")
    (place / "calib_cam_to_cam.txt").write_text(
        "S_rect_02: 48.0 32.0\nP_rect_02: 40 0 23.5 1 0 40 15.5 0.2 0 0 1 0.003\n"
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(document(folder)))


def write_run(folder: Path) -> None:
    write_sequence(folder)
    run = folder / "in" / "run"
    write_weights(run / "scene" / "weights.safetensors")
    (run / "log").mkdir()
    metrics = dict.fromkeys(("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3"), 0.5)
    regions = {"all": metrics, "dynamic": metrics}
    figures = {"stages": {"scene": regions, "final": regions}, "seconds": {"scene": 3.5}, "warnings": ["a warning"]}
    (run / "metrics.json").write_text(json.dumps(figures, indent=2))
    (run / "env.json").write_text(json.dumps({"processor": "any", "commit": "0123456789abcdef", "gpu": None}))
    (run / "config.yaml").write_text(yaml.safe_dump(document(folder)))
    (run / "log" / "scene.csv").write_text("step,total,forward,images_per_s\n1,0.5,3,9\n2,0.25,3,9\n")
    (run / "log" / "warnings.json").write_text(json.dumps({"data": ["a warning"]}))
    (run / "scene" / "done.json").write_text(json.dumps({"seconds": 3.5, "frames": 5, "metrics": regions}))
    (run / "predictions").mkdir()
    seen = {"frames": 3, "frames_with_motion": 2}
    (run / "predictions" / "done.json").write_text(json.dumps({"seconds": 1, "train": seen}))
