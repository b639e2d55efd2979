"""The 3-D view: what goes into a page comes out of it, and a clip is what the run's nets say."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_cases import DEPTHS, SIZE, make_clip, sequence_run
from PIL import Image
from torch import Tensor, nn

from mcd.config import load_config
from mcd.files import DataError, frame_path, write_json
from mcd.masks.instances import FrameInstances
from mcd.report.clip import DENSEST, LONGEST, POINTS, Clip, collect_clip, edges, grid_size
from mcd.report.page import main, write_report
from mcd.report.view import CHANGE, backprojected, pack, shared, still
from mcd.run.context import Context
from mcd.visualize import to_bytes


def depth_in(view: dict[str, Any], frame: int, stage: int) -> np.ndarray:
    """A depth map as a page has it, by the rule that is written beside ``pack``."""
    near, far = view["range"]
    code = np.frombuffer(base64.b64decode(view["frames"][frame]["depth"][stage]), "<u2").reshape(view["grid"])
    return near * (far / near) ** (code / 65535)


def test_the_points_of_a_page_are_those_that_went_in() -> None:
    clip = make_clip()
    view = json.loads(json.dumps(pack(clip)))
    assert view["stages"] == ["scene", "final"]
    near, far = view["range"]
    for number, frame in enumerate(clip.frames):
        packed = view["frames"][number]
        fx, fy, cx, cy = packed["K"]
        np.testing.assert_allclose([fx, fy, cx, cy], frame.K[[0, 1, 0, 1], [0, 1, 2, 2]], atol=1e-6)
        np.testing.assert_allclose(np.reshape(packed["pose"], (4, 4)), frame.T_world_camera, atol=1e-6)
        for stage, name in enumerate(view["stages"]):
            depth = depth_in(view, number, stage)
            # Half a step of the code.
            np.testing.assert_allclose(depth, frame.depth[name], rtol=0.51 * np.log(far / near) / 65535 + 1e-6)
            y, x = np.indices(depth.shape)
            points = np.stack(((x - cx) / fx * depth, (y - cy) / fy * depth, depth), axis=-1)
            np.testing.assert_allclose(points, backprojected(frame, name), rtol=1e-3, atol=1e-5)
            bits = np.unpackbits(np.frombuffer(base64.b64decode(packed["shown"][stage]), np.uint8))
            assert (bits[: depth.size].reshape(depth.shape) == frame.shown[name]).all()
        moving = np.zeros(frame.moving.size, np.uint8)
        for first, length, number_of_thing in packed["moving"]:
            moving[first : first + length] = number_of_thing
        assert (moving.reshape(frame.moving.shape) == frame.moving).all()
        colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed["image"].split(",")[1]))))
        assert np.abs(colours.astype(int) - frame.image).mean() < 4


def test_a_box_is_around_its_thing_in_every_stage() -> None:
    clip = make_clip()
    frame, packed = clip.frames[0], pack(clip)["frames"][0]
    assert len(packed["boxes"]) == frame.moving.max() == 2
    for number, boxes in enumerate(packed["boxes"], start=1):
        for stage, box in zip(clip.stages, boxes, strict=True):
            points = backprojected(frame, stage)[frame.moving == number]
            low, high = np.array(box[:3]), np.array(box[3:])
            assert ((points >= low - 1e-5) & (points <= high + 1e-5)).all(axis=1).mean() > 0.6
            assert box[2] == pytest.approx(DEPTHS[stage], rel=0.01)


def test_two_views_share_their_layers_and_colours() -> None:
    whole, first = make_clip(), make_clip(stages=("scene",), frames=1)
    both = shared([pack(first), pack(whole)])
    assert both["layers"] == ["image", "scene depth", "final depth", CHANGE]
    assert both["stages"] == ["scene", "final"]
    assert both["frames"] == len(whole.frames)
    assert not both["clip"]
    assert shared([pack(whole)])["clip"]
    tables = [np.frombuffer(base64.b64decode(both[name]), np.uint8) for name in ("depths", "ratios")]
    depths, ratios = (table.reshape(256, 3) for table in tables)
    brightness = depths.astype(int).sum(axis=1)
    assert (np.diff(brightness) >= 0).all() and brightness[-1] > 600 > 30 > brightness[0]
    assert ratios[0][2] > ratios[0][0], "near is blue"
    assert ratios[-1][0] > ratios[-1][2], "far is red"
    assert ratios[127].min() > 200, "no change is white"


def test_a_clip_has_no_more_points_than_a_page_can_bear() -> None:
    for size in ((64, 96), (192, 640), (256, 832), (512, 1024)):
        for frames in (1, 12, LONGEST):
            height, width = grid_size(size, min(POINTS // frames, DENSEST))
            assert height <= size[0] and width <= size[1]
            assert frames * height * width <= POINTS
            assert width / height == pytest.approx(size[1] / size[0], rel=0.03)
    assert grid_size((64, 96), DENSEST) == (64, 96)
    # Two stages, two bytes a point and one bit, in base64: what the views of a page cost beside their pictures.
    assert POINTS * 2 * (2 + 1 / 8) * 4 / 3 < 2.8e6


@pytest.mark.parametrize("slope", [0.0, 0.02, 0.2, 2.0])
def test_no_plane_has_an_edge_and_every_step_has_one(slope: float) -> None:
    y, x = np.indices((24, 40), np.float32)
    plane = 1 / (0.2 + slope * y / 24)
    assert not edges(plane)[1:-1, 1:-1].any()
    stepped = np.where(x < 20, plane, 2 * plane).astype(np.float32)
    assert edges(stepped)[1:-1, 19:21].all()
    assert not edges(stepped)[1:-1, 23:-1].any()


def test_the_still_shows_the_points_what_moves_and_the_path() -> None:
    clip = make_clip()
    path = (87, 181, 232)
    colours = {tuple(colour) for colour in to_bytes(still(clip, size=(135, 240))).reshape(-1, 3).tolist()}
    assert (43, 47, 54) in colours, "nothing"
    assert path in colours
    assert any(r > 200 and 90 < g < 200 and b < 120 for r, g, b in colours), "orange moves"
    without = Clip(clip.frames, [], "")
    assert path not in {tuple(colour) for colour in to_bytes(still(without, size=(135, 240))).reshape(-1, 3).tolist()}


def forward(context: Context, net: nn.Module, reference: Tensor, sources: Tensor) -> Tensor:
    """A camera that goes a unit ahead from one frame to the next: towards the next, points come nearer."""
    T = torch.eye(4).repeat(len(reference), 2, 1, 1)
    T[:, 0, 2, 3], T[:, 1, 2, 3] = 1.0, -1.0
    return T


def test_the_camera_goes_as_the_pose_net_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sequence_run(tmp_path, ("scene",), frames=9)
    monkeypatch.setattr("mcd.report.clip.predict_poses", forward)
    clip = collect_clip(load_config(run / "config.yaml"), run)
    assert clip is not None
    # Those that have a neighbour on each side.
    assert [frame.name for frame in clip.frames] == [str(n) for n in range(1, 8)]
    (path,) = clip.paths
    assert (path[:, :2] == 0).all()
    steps = [frame.T_world_camera[2, 3] for frame in clip.frames]
    np.testing.assert_allclose(np.diff(steps), steps[1])
    assert steps[0] == 0 < steps[1]
    # Lengths are in median depths: of all points the median is 1, and a step is a unit of the net.
    depths = np.stack([frame.depth["scene"] for frame in clip.frames])
    assert np.median(depths) == pytest.approx(1, rel=1e-5)
    assert clip.frames[0].depth["scene"].shape == SIZE
    assert {frame.shot for frame in clip.frames} == {0}


def test_a_gap_ends_the_clip_and_without_a_pose_net_frames_stand_alone(tmp_path: Path) -> None:
    run = sequence_run(tmp_path / "gap", ("scene",), names=(*range(4), *range(20, 27)))
    with pytest.warns(UserWarning, match="gap"):
        clip = collect_clip(load_config(run / "config.yaml"), run)
    assert clip is not None
    assert [frame.name for frame in clip.frames] == [str(n) for n in range(21, 26)], "the longest stretch"
    run = sequence_run(tmp_path / "alone", ("scene",), frames=5, roles=("depth",))
    clip = collect_clip(load_config(run / "config.yaml"), run)
    assert clip is not None
    assert not clip.paths
    assert [frame.shot for frame in clip.frames] == [0, 1, 2]
    assert all((frame.T_world_camera == np.eye(4)).all() for frame in clip.frames)


def test_what_moves_is_what_the_instances_stage_called_dynamic(tmp_path: Path) -> None:
    run = sequence_run(tmp_path, ("scene", "final"), frames=5)
    masks = np.zeros((2, 3, *SIZE), bool)
    masks[0, :, 10:20, 10:30] = masks[1, :, 30:50, 40:80] = True
    found = FrameInstances(
        np.arange(2), np.array([True, False]), np.ones(2, np.float32), np.ones(2, bool), np.ones(2, bool), masks
    )
    found.save(frame_path(run / "instances", "val", "2"))
    clip = collect_clip(load_config(run / "config.yaml"), run)
    assert clip is not None
    assert "instances" in clip.marks
    assert clip.stages == ["scene", "final"]
    by_name = {frame.name: frame for frame in clip.frames}
    assert (by_name["2"].moving == masks[0, 1]).all()
    assert not by_name["1"].moving.any()
    # The final net's depth is brought to the unit of the scene's.
    ratios = np.concatenate([(frame.depth["final"] / frame.depth["scene"]).ravel() for frame in clip.frames])
    assert np.median(ratios) == pytest.approx(1, rel=1e-5)


def test_two_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sequence_run(tmp_path, ("scene",), frames=5, run="first", seed=3)
    second = sequence_run(tmp_path, ("scene", "final"), frames=5, run="second", seed=4)
    assert main([str(first), str(second)]) == 0
    page = first.parent / "first-second.html"
    assert capsys.readouterr().out.strip() == str(page)
    source = page.read_text()
    assert source.count('class="pane"') == 2
    assert source.count('name="frame"') == 1, "one slider moves both"
    assert re.search(r'<th scope="row">seed</th><td>3</td><td>4</td>', source)
    assert not (first / "report.html").exists()
    assert main([str(first), str(second), "-o", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").is_file()
    assert main([str(first), str(second), "--view", str(tmp_path / "view.png")]) == 1
    assert "two are named" in capsys.readouterr().err
    assert main([str(first), str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [sequence_run(tmp_path / name, ("scene",), frames=5) for name in ("a", "b")]
    source = write_report(*runs, output=tmp_path / "both.html").read_text()
    for run in runs:
        assert f"<b>{run}</b>" in source
    assert "different data" in source


def test_a_view_that_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise DataError("image 3.png cannot be read")

    monkeypatch.setattr("mcd.report.view.collect_clip", broken)
    run = sequence_run(tmp_path, ("scene",), frames=5)
    source = write_report(run).read_text()
    assert "No 3-D view: image 3.png cannot be read" in source
    assert "<script" not in source


def test_pictures_of_the_points_and_of_what_the_labels_changed(tmp_path: Path) -> None:
    run = sequence_run(tmp_path, ("scene", "final"), frames=6)
    panel = tmp_path / "view.png"
    assert main([str(run), "--view", str(panel)]) == 0
    with Image.open(panel) as sheet:
        assert sheet.width > 2 * 480 and sheet.height > 2 * 270
    assert main([str(run), "--changes", str(tmp_path / "changes.png")]) == 1
    masks = np.zeros((1, 3, *SIZE), bool)
    masks[:, :, 10:30, 20:60] = True
    one = np.ones(1, bool)
    FrameInstances(np.arange(1), one, np.ones(1, np.float32), one, one, masks).save(
        frame_path(run / "instances", "val", "2")
    )
    rows = "frame,row,id,dynamic,large,triplet,coverage\n2,0,0,1,1,1,1.0\n"
    (run / "instances" / "val.csv").write_text(rows)
    label = frame_path(run / "pseudo", "val", "2", ".npy")
    label.parent.mkdir(parents=True)
    config = load_config(run / "config.yaml")
    clip = collect_clip(config, run)
    assert clip is not None
    # The label has what moves at half its depth, and leaves all else as it was.
    scene = next(frame for frame in clip.frames if frame.name == "2").depth["scene"]
    np.save(label, np.where(masks[0, 1], 0.5 * scene, scene).astype(np.float32))
    write_json(run / "pseudo" / "done.json", {})
    source = write_report(run).read_text()
    assert "What the labels changed" in source
    assert "<figcaption>labels: 0.50 times</figcaption>" in source
    assert main([str(run), "--changes", str(tmp_path / "changes.png")]) == 0


def test_a_page_that_would_be_too_large_has_coarser_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sequence_run(tmp_path, ("scene",), frames=6)
    whole = len(write_report(run).read_bytes())
    assert whole < 8e6
    monkeypatch.setattr("mcd.report.page.LARGEST", whole - 1)
    coarser = len(write_report(run).read_bytes())
    assert coarser < whole
    monkeypatch.setattr("mcd.report.page.LARGEST", 1)
    assert len(write_report(run).read_bytes()) < coarser, "the coarsest, and still a page"
