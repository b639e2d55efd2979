"""Clips and runs to be shown in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from mcd.config import parse_config
from mcd.nets import build_depth_net, build_pose_net
from mcd.report.clip import Clip, ClipFrame
from mcd.run.checkpoint import save_weights

SIZE = (64, 96)
DEPTHS = {"scene": 1.0, "final": 1.5}
"""Of the wall that :func:`make_clip` shows, by stage."""


def make_clip(stages: Sequence[str] = ("scene", "final"), frames: int = 3) -> Clip:
    """A wall whose left half is red and whose right half is blue, coming nearer; two things move before it."""
    grid = (30, 45)
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, :45, 0] = image[:, 45:, 2] = 200
    made = []
    moving = np.zeros(grid, np.uint8)
    moving[5:12, 4:14], moving[20:26, 30:40] = 1, 2
    shown = np.ones(grid, bool)
    shown[:, 0] = False
    for number in range(frames):
        T_world_camera = np.eye(4)
        T_world_camera[:3, 3] = 0.01 * number, 0.0, 0.1 * number
        depth = {stage: np.full(grid, DEPTHS[stage] - 0.1 * number, np.float32) for stage in stages}
        K = np.array([[40.0, 0, 22], [0, 40, 14.5], [0, 0, 1]])
        kept = dict.fromkeys(stages, shown)
        made.append(ClipFrame(f"frame{number}", 0, image, K, T_world_camera, depth, kept, moving))
    return Clip(made, [np.stack([frame.T_world_camera[:3, 3] for frame in made])], "two things")


def sequence_run(
    folder: Path,
    stages: Sequence[str],
    *,
    frames: int = 5,
    names: Sequence[int] = (),
    roles: Sequence[str] = ("depth", "pose"),
    run: str = "demo",
    seed: int = 0,
) -> Path:
    """A run with untrained nets on a sequence of noise; all frames are in every split."""
    images = folder / "clip"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name in names or range(frames):
        Image.fromarray(generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(images / f"{name}.png")
    last = len(names or range(frames)) - 1
    data = {
        "kind": "sequence",
        "root": str(images),
        "size": SIZE,
        "workers": 0,
        "intrinsics": [80.0, 80.0, 48.0, 32.0],
        "train_frames": [0, last],
        "val_frames": [0, last],
    }
    config = parse_config({"device": "cpu", "seed": seed, "data": data})
    place = folder / run
    place.mkdir()
    (place / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    nets = {"depth": build_depth_net, "pose": build_pose_net}
    for number, stage in enumerate(stages):
        torch.manual_seed(number)
        built = {role: nets[role]("light") for role in roles}
        save_weights(place / stage / "weights.safetensors", built, dict.fromkeys(roles, "light"), {"size": SIZE})
    return place
