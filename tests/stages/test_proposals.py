"""The proposals stage on a rendered road: what it leaves, what the stage instances makes of it, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rendered_road import SIZE, SPEED, Box, K, pose, render

from mcd.config import ConfigError, load_config, parse_config
from mcd.data.store import Prediction
from mcd.errors import NothingToLearnError
from mcd.files import frame_path
from mcd.masks.detections import FrameDetections
from mcd.masks.instances import FrameInstances, read_rows
from mcd.run.checkpoint import WEIGHTS
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import open_store
from mcd.stages.instances import InstancesPreparation
from mcd.stages.proposals import ProposalsPreparation
from mcd.train import run_part
from mcd.training.profiling import ProfileWindow

FRAMES = 10
ALONG, STILL = Box(-2.5, 12, 2.2, 1.6, SPEED), Box(2.5, 14, 2.2, 1.6)


def make_context(folder: Path, boxes: list[Box], speed: float = SPEED, **settings: Any) -> Context:
    """A drive, and predictions of nets that are right about depth and see no residual motion."""
    (folder / "data").mkdir()
    config = parse_config({
        "runs": str(folder / "runs"),
        "device": "cpu",
        "stages": ["scene", "predictions", "proposals", "instances"],
        "store": "sqlite",
        "data": {
            "kind": "sequence",
            "root": str(folder / "data"),
            "size": SIZE,
            "intrinsics": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]],
            "workers": 0,
            "road_masks": "none",
        },
        "proposals": settings,
        "instances": {"tracks": True, "persist": 3, "middle": None, "min_area": 0.001},
    })  # fmt: skip
    context = Context(config, Run(config), torch.device("cpu"))
    weights = context.run.stage("scene") / WEIGHTS
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"any")
    store = open_store(context)
    assert store is not None
    for time in range(FRAMES):
        frame = render(time, boxes, speed)
        picture = (frame.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / "data" / f"{time:03d}.png")
        poses = np.stack((pose(-speed), pose(speed)))
        said = Prediction(frame.depth[None], np.zeros((2, 2, *SIZE), np.float32), poses)
        for split in ("train", "val"):
            store.write(split, {f"{time:03d}": said})
    return context


def run(part: Any, context: Context) -> dict[str, Any]:
    return run_part(part, context, lambda: False, ProfileWindow(None, context.run.path))  # type: ignore[arg-type]


def test_what_drives_along_is_found_in_every_frame_followed_and_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(tmp_path, [ALONG, STILL])
    facts = run(ProposalsPreparation(context), context)
    frames = facts["train"]["frames"]
    assert frames > 4
    for count in ("frames_with_objects", "moving", "with_road", "with_motion"):
        assert facts["train"][count] == frames
    # The one that stands still leaves the picture in the end.
    still = facts["train"]["objects"] - frames
    assert frames - 2 <= still <= frames
    context.run.finish("proposals", **facts)
    for frame in ("002", "005"):
        left = FrameDetections.load(frame_path(context.run.stage("proposals"), "train", frame))
        truth = torch.from_numpy(render(int(frame), [ALONG, STILL]).owner == 0)
        assert ((left.masks[0] & truth).sum() / (left.masks[0] | truth).sum()) > 0.7

    ground = torch.zeros(1, *SIZE, dtype=torch.bool).numpy()
    for part in InstancesPreparation.parts(context):
        monkeypatch.setattr(part.masks, "ground", lambda split, frame: ground)
        facts = run(part, context)
    rows = read_rows(context.run.stage("instances"), "train")
    assert len(rows) == frames + still
    assert {(row.id, row.dynamic) for row in rows} == {(0, True), (1, False)}, "one object, one number"
    kept = FrameInstances.load(frame_path(context.run.stage("instances"), "train", "003"))
    assert kept.dynamic.tolist() == [True, False], "though no net sees it move"


@pytest.mark.parametrize(
    ("boxes", "speed", "message"),
    [
        ([STILL], SPEED, "0 show no road, and in 0 the camera hardly moves"),
        ([STILL], 0.0, "0 show no road, and in .* the camera hardly moves"),
    ],
)
def test_where_nothing_moves_by_itself_the_stage_says_why(
    tmp_path: Path, boxes: list[Box], speed: float, message: str
) -> None:
    context = make_context(tmp_path, boxes, speed)
    with pytest.raises(NothingToLearnError, match=message):
        run(ProposalsPreparation(context), context)


def test_it_needs_the_predictions_and_no_other_finder() -> None:
    with pytest.raises(ConfigError, match="stage 'proposals' needs the stage 'predictions' before it"):
        parse_config({"stages": ["scene", "proposals"], "store": "sqlite"})
    with pytest.raises(ConfigError, match="'segment' and 'proposals' both find the objects"):
        parse_config({"stages": ["scene", "predictions", "segment", "proposals"], "store": "sqlite"})


def test_own_footage_may_go_the_way_of_the_paper() -> None:
    config = load_config("video")
    assert "proposals" in config.stages and config.proposals.init == Path("start")
    paper = "[scene, predictions, ground, slots, detector, instances, object, scale, pseudo, final]"
    assert "detector" in load_config("video", [f"stages={paper}"]).stages


def test_nets_of_a_file_are_asked_in_place_of_those_of_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(tmp_path, [ALONG], init=str(tmp_path / "nets.safetensors"), batch=8)
    (tmp_path / "nets.safetensors").write_bytes(b"any")
    # The nets of the scene have lost the box.
    flat = render(0, []).depth[None]
    store = open_store(context)
    assert store is not None
    times = range(1, FRAMES - 1)
    wrong = Prediction(flat, np.zeros((2, 2, *SIZE), np.float32), np.stack((pose(-SPEED), pose(SPEED))))
    for split in ("train", "val"):
        store.write(split, {f"{time:03d}": wrong for time in times})

    class Depth(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.from_numpy(np.stack([render(time, [ALONG]).depth for time in times]))[: len(images), None]]

    class Pose(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(first), 3), torch.tensor([0.0, 0.0, -SPEED]).expand(len(first), 3)

    nets = {"depth": Depth(), "pose": Pose()}
    monkeypatch.setattr(Context, "frozen", lambda self, role, path: nets[role])
    facts = run(ProposalsPreparation(context), context)
    assert facts["train"]["moving"] == facts["train"]["frames"] == len(times)
