"""Own footage with a segmenter, from frames to the final net: the config as it ships, few steps of each stage.

Two things are painted into the frames of a clip, and a small segmenter is taught to find them. What is straight ahead
counts as moving, the other stands still.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import StopAfter
from small_segmenter import teach

from mcd.config import Config, load_config
from mcd.data import open_reader
from mcd.data.video import VideoReader
from mcd.masks.instances import FrameInstances, read_rows
from mcd.nets.segmenter import build_segmenter
from mcd.train import train_run
from mcd.training.stop import InterruptedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CLIP = Path(__file__).parents[1] / "clip" / "highway.mp4"
FRAMES, SIZE = 16, (96, 160)
SHORT = {"batch": 2, "validate_every": 2, "validate_batches": 1, "checkpoint_every": 1}
STEPS = {"scene": 3, "ground": 4, "object": 2, "scale": 2, "final": 2}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few frames with two things, one ahead and one at the side, and the weights of a net that knows them."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "frames").mkdir()
    images, masks = [], []
    for number, picture in zip(range(FRAMES), VideoReader(CLIP), strict=False):
        painted = np.array(Image.fromarray(picture).resize((SIZE[1], SIZE[0])))
        things = np.zeros((2, *SIZE), dtype=bool)
        things[0, 44:62, 66 + number : 88 + number] = True
        things[1, 50:80, 6 + number : 36 + number] = True
        painted[things[0]], painted[things[1]] = (250, 40, 30), (40, 60, 250)
        Image.fromarray(painted).save(folder / "frames" / f"{number:03d}.png")
        images.append(torch.from_numpy(painted).permute(2, 0, 1) / 255)
        masks.append(torch.from_numpy(things))
    torch.manual_seed(0)
    net = build_segmenter("light", SIZE)
    teach(net, images, masks, steps=100)
    torch.save(net.state_dict(), folder / "light.pth")
    return folder


def make_config(footage: Path, runs: str) -> Config:
    changed: dict[str, Any] = {
        "runs": footage / runs,
        "device": "cpu",
        "data.root": footage / "frames",
        "data.size": [64, 96],
        "data.workers": 0,
        "nets.depth": "light",
        "nets.segmenter": "light",
        "init": None,
        "loss.scales": 2,
        "loss.start": 0,
        "scene.frozen_blocks": None,
        "final.frozen_blocks": None,
        "segment.weights": footage / "light.pth",
        "segment.side": SIZE[0],
        "scene.motion_from": 1,
        "scene.joint_from": 2,
        "ground.label_until": 1,
        "ground.label_floor_from": 2,
        "ground.thirds_from": 1,
        "ground.thirds_full_from": 2,
        "instances.flow_threshold": 1000,
        "instances.middle": 3,
        "instances.min_area": 0.001,
        "instances.persist": 2,
        "scale.contact": 1.0,
    }
    for stage, steps in STEPS.items():
        changed |= {
            f"{stage}.{key}": value for key, value in ({"steps": steps, "drops": [], "warmup": 0} | SHORT).items()
        }
    words = [f"{key}={json.dumps(value, default=str)}" for key, value in changed.items()]
    return load_config("video_masks", words)


@pytest.fixture(scope="module")
def undisturbed(footage: Path) -> Config:
    config = make_config(footage, "undisturbed")
    train_run(config, StopAfter(10**9))
    return config


def left(config: Config) -> dict[str, bytes]:
    """What the stages leave."""
    run = config.runs / "video_masks"
    kinds = (".npz", ".npy", ".png", ".csv", ".safetensors")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for stage in config.stages
        for path in (run / stage).rglob("*")
        if path.suffix in kinds
    }


def test_every_stage_ends_and_the_report_shows_what_was_found(undisturbed: Config) -> None:
    run = undisturbed.runs / "video_masks"
    facts = {stage: json.loads((run / stage / "done.json").read_text()) for stage in undisturbed.stages}
    assert [stage for stage, said in facts.items() if "left_out" in said] == []
    frames = facts["segment"]["train"]["frames"]
    assert facts["segment"]["train"]["objects"] >= frames and facts["instances"]["train"]["tracks"] >= 2
    assert facts["pseudo"]["train"]["frames"] > 0
    assert "segmenter" in (run / "report.html").read_text()


def test_a_number_names_the_same_object_in_every_frame(undisturbed: Config) -> None:
    folder = undisturbed.runs / "video_masks" / "instances"
    rows = read_rows(folder, "train")
    by_number: dict[int, list[Any]] = {}
    for row in rows:
        by_number.setdefault(row.id, []).append(row)
    assert all(len(seen) >= 2 for seen in by_number.values()), "what does not persist is left out"
    assert all(len({row.dynamic for row in seen}) == 1 for seen in by_number.values()), (
        "an object moves, or it does not"
    )
    for frame in open_reader(undisturbed.data, "train").frames:
        found = FrameInstances.load(folder / "train" / f"{frame}.npz")
        assert len(set(found.ids.tolist())) == len(found.ids)
    moving = {number for number, seen in by_number.items() if seen[0].dynamic}
    assert moving and moving != set(by_number), "later stages need both kinds"


def test_what_moves_stands_in_one_ratio_to_the_ground(undisturbed: Config) -> None:
    folder = undisturbed.runs / "video_masks" / "pseudo"
    with (folder.parent / "instances" / "train.csv").open(newline="") as file:
        frames = {row["frame"] for row in csv.DictReader(file) if row["dynamic"] == row["large"] == "1"}
    assert {path.stem for path in (folder / "contact" / "train").glob("*.npz")} == frames
    for frame in frames:
        depth = np.load(folder / "train" / f"{frame}.npy")
        assert depth.shape == (64, 96) and np.isfinite(depth).all() and (depth > 0).all()


def test_a_run_that_is_stopped_again_and_again_ends_the_same(undisturbed: Config) -> None:
    config = make_config(undisturbed.runs.parent, "stopped")
    stops = 0
    while True:
        try:
            train_run(config, StopAfter(2 + 2 * stops))
            break
        except InterruptedRun:
            stops += 1
    assert stops >= 4
    expected, found = left(undisturbed), left(config)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
