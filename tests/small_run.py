"""A small run of the variant that finds masks by itself, every stage a few steps long, and what such a run leaves.

Nets of a few steps find nothing. So what the slots and the detector look for is whatever is there: every slot has every
pixel, no candidate is turned down but for its size, and all below the camera is ground. What is straight ahead counts
as moving, the rest stands still. What such nets see depends on how the machine rounds, so the seed is looked for.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mcd.config import Config, parse_config

SIZE = (64, 96)
STAGES = ["scene", "predictions", "ground", "slots", "detector", "instances", "object", "scale", "pseudo", "final"]
SHORT = {"batch": 4, "validate_every": 3, "validate_batches": 1, "checkpoint_every": 2}
ANYTHING = {"largest_box": 1, "fill": 0, "reach": 500, "open": 0, "close": 0}


class StopAfter:
    """A stop signal that comes when it is asked for the n-th time."""

    def __init__(self, asked: int):
        self._left = asked

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


def make_document(folder: Path, runs: str, seed: int = 0, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    return {
        "seed": seed,
        "run": "tiny",
        "runs": str(folder / runs),
        "device": "cpu",
        "stages": list(stages),
        "store": "sqlite",
        "data": {
            "root": str(folder / "data"),
            "size": SIZE,
            "synthetic": {"frames": 10, "val_frames": 3},
            "workers": 0,
        },
        "loss": {"scales": 2},
        "scene": {"steps": 4, "motion_from": 1, "joint_from": 2, **SHORT},
        "predictions": {"batch": 4, "flow_threshold": 0.05},
        "ground": {
            "steps": 8,
            "lr": 0.02,
            "angle": 90,
            "hide_depth": 0.5,
            "thirds_from": 2,
            "thirds_full_from": 4,
            **SHORT,
        },
        "slots": {"steps": 5, "size": (32, 32), "emptiness_from": 2, "emptiness_full_from": 4, "threshold": 0, **SHORT},
        "detector": {"steps": 2, "scores": [None, 0.5], "filter_after": [1], "box_excess": 9, **ANYTHING, **SHORT}
        | {"checkpoint_every": 1},
        "instances": {"flow_threshold": 1000, "middle": 2, "min_area": 0.001},
        "object": {"steps": 3, **SHORT, "batch": 1},
        "scale": {"steps": 3, **SHORT, "batch": 1},
        "final": {"steps": 3, **SHORT, "batch": 1},
    }


def make_config(folder: Path, runs: str, seed: int = 0, stages: Sequence[str] = STAGES) -> Config:
    return parse_config(make_document(folder, runs, seed, stages))


def classes(config: Config) -> dict[str, int]:
    """Numbers of objects in the training split."""
    numbers: dict[str, int] = json.loads((config.runs / "tiny" / "instances" / "done.json").read_text())["train"]
    return numbers


def files(config: Config) -> dict[str, bytes]:
    """What the stages leave, predictions frame by frame: in a database, their order is that of the writing."""
    run = config.runs / "tiny"
    left = {
        str(path.relative_to(run)): path.read_bytes()
        for stage in STAGES
        for path in (run / stage).rglob("*")
        if path.suffix in (".npz", ".npy", ".png", ".csv", ".safetensors")
    }
    with closing(sqlite3.connect(run / "predictions.sqlite")) as database:
        rows = database.execute("SELECT split, frame, planes, poses FROM prediction").fetchall()
    return left | {f"prediction {split} {frame}": planes + poses for split, frame, planes, poses in rows}
