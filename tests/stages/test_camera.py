"""A scene stage that learns its camera and leaves out the own vehicle: what it leaves, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import Config, parse_config
from mcd.data import SequenceFolder
from mcd.run.checkpoint import WEIGHTS, load_weights
from mcd.run.context import Context, with_learned_camera
from mcd.run.folder import Run
from mcd.scene.poses import without_own_vehicle
from mcd.stages.scene import SceneStage, rows_above
from mcd.train import train_run
from mcd.training.state import TrainState
from mcd.training.stop import StopSignal

SIZE = (64, 96)

pytestmark = pytest.mark.filterwarnings("ignore:intrinsics of")


def clip_config(folder: Path, **data: object) -> Config:
    rng = np.random.default_rng(0)
    (folder / "clip").mkdir()
    wide = rng.integers(0, 255, (SIZE[0], 160, 3), dtype=np.uint8)
    for number in range(6):
        Image.fromarray(wide[:, 3 * number : 3 * number + SIZE[1]]).save(folder / "clip" / f"{number}.png")
    own = np.zeros(SIZE, np.uint8)
    own[50:] = 255
    Image.fromarray(own).save(folder / "clip_own.png")
    document = {"kind": "sequence", "root": str(folder), "images": "clip", "size": [64, 96], "fov": 70, "workers": 0}
    return parse_config({
        "run": "r", "runs": str(folder / "runs"), "device": "cpu", "stages": ["scene"],
        "data": document | data | {"train_frames": [0, 5], "val_frames": [0, 5]}, "loss": {"road": 1.0, "scales": 2},
        "scene": {"steps": 3, "batch": 2, "validate_every": 2, "validate_batches": 1, "lr": 1e-3},
    })  # fmt: skip


def test_the_camera_that_was_learned_is_reported_and_used_by_what_follows(tmp_path: Path) -> None:
    config = clip_config(tmp_path, intrinsics="learn", own_mask="clip_own.png")
    start = SequenceFolder(config.data, "eval").K
    with StopSignal() as stop:
        run = train_run(config, stop)
    camera = json.loads((run / "metrics.json").read_text())["camera"]
    assert camera["fx_spread"] > 0
    learned = with_learned_camera(config, run)
    K = SequenceFolder(learned.data, "eval").K
    assert K[0, 0] == pytest.approx(camera["fx"] * SIZE[1], rel=1e-5)
    assert K[1, 1] == pytest.approx(camera["fy"] * SIZE[0], rel=1e-5)
    assert 1e-4 < abs(K[0, 0] / start[0, 0] - 1) < 0.1
    page = (run / "report.html").read_text()
    assert "camera learned: fx" in page
    assert "taken for the own vehicle" in page


def test_weights_that_are_kept_again_hold_the_same_camera(tmp_path: Path) -> None:
    config = clip_config(tmp_path, intrinsics="learn")
    stage = SceneStage(Context(config, Run(config), torch.device("cpu")))
    stage.nets["camera"].focal.data.fill_(0.02)
    stage.folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for step in (1, 2):
        stage.save_weights(step, None)
        kept.append(load_weights(stage.folder / WEIGHTS).metadata["camera"])
    # Once, not once for every time.
    assert kept[0] == kept[1]
    assert kept[0][0] == pytest.approx(0.5 / np.tan(np.radians(35)) * np.exp(0.2), rel=0.01)


def test_the_camera_has_a_rate_of_its_own(tmp_path: Path) -> None:
    config = clip_config(tmp_path, intrinsics="learn")
    schedule = config.scene.model_copy(update={"camera_rate": 5.0, "pose_rate": 3.0})
    config = config.model_copy(update={"scene": schedule})
    state = TrainState(SceneStage(Context(config, Run(config), torch.device("cpu"))))
    rates = [group["lr"] for group in state.begin_step().param_groups]
    assert dict(zip(state.stage.active(0), rates, strict=True)) == pytest.approx(
        {"depth": 1e-3, "pose": 3e-3, "camera": 5e-3}
    )


def test_the_own_vehicle_is_grey_for_pose_and_loss_alone() -> None:
    reference, sources = torch.rand(2, 3, 8, 8), torch.rand(2, 2, 3, 8, 8)
    own = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    own[:, :, 6:] = True
    seen, around = without_own_vehicle({"reference": reference, "sources": sources, "own": own})
    assert seen[:, :, 6:].unique().numel() == 1
    torch.testing.assert_close(around[:, :, :, 6:], seen[:, None, :, 6:].expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(seen[:, :, :6], reference[:, :, :6])
    assert without_own_vehicle({"reference": reference, "sources": sources})[0] is reference


def test_the_road_begins_above_the_bonnet() -> None:
    own = np.zeros((20, 30), dtype=bool)
    own[15:] = True
    own[0:3, 0:5] = True  # a stamp
    assert rows_above(own) == 15
    assert rows_above(np.zeros((20, 30), dtype=bool)) == 20
