"""Contact and upright of scenes whose answer is known, and of the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from mcd.config import parse_config
from mcd.evaluation.command import main
from mcd.evaluation.contact import Thing, contact_and_upright, contact_figures, read_boxes
from mcd.evaluation.stage_contact import stage_contact
from mcd.files import DataError
from mcd.masks.instances import FrameInstances
from mcd.nets import build_depth_net
from mcd.report.page import write_report
from mcd.run.checkpoint import save_weights

SIZE = (96, 160)
HORIZON, CAMERA = 30, 100.0
BOX = Thing(60, 40, 100, 70)


def road() -> NDArray[np.float64]:
    row = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    return CAMERA / np.maximum(row - HORIZON, 0.5)


def scene(contact: float = 1.0, upright: float = 1.0) -> NDArray[np.float64]:
    """A road and a box on it, whose lower and upper half have these depths in terms of the road's at its foot."""
    depth = road()
    foot = np.median(depth[71:75, 0])
    depth[40:55, 60:100], depth[55:70, 60:100] = upright * foot, contact * foot
    return depth


@pytest.mark.parametrize(("contact", "upright"), [(1.0, 1.0), (1.4, 1.1), (0.8, 2.5)])
def test_figures_are_the_ratios_that_the_scene_was_made_of(contact: float, upright: float) -> None:
    assert contact_and_upright(scene(contact, upright), BOX) == pytest.approx((contact, upright))
    # The unit of depth does not matter.
    assert contact_and_upright(7 * scene(contact, upright), BOX) == pytest.approx((contact, upright))


def test_a_road_without_a_vehicle_is_not_upright() -> None:
    found = contact_and_upright(road(), BOX)
    assert found is not None
    assert found[1] > 2
    figures = contact_figures({"a": road()}, {"a": [BOX]})["all"]
    assert figures["upright"] == figures["upright_rows"]


def test_of_a_mask_only_its_own_pixels_count() -> None:
    depth = scene()
    mask = np.zeros(SIZE, bool)
    mask[40:70, 60:100] = True
    depth[40:70, 72:76] = 1000.0  # seen through its windows
    mask[40:70, 72:76] = False
    depth[40:70, 76:90] = 500.0
    mask[40:70, 76:90] = False
    thing = Thing.of_mask(mask)
    assert thing is not None
    assert (thing.x0, thing.y0, thing.x1, thing.y1) == (60, 40, 100, 70)
    assert contact_and_upright(depth, thing) == pytest.approx((1, 1))
    assert contact_and_upright(depth, BOX) != pytest.approx((1, 1))
    assert Thing.of_mask(np.zeros(SIZE, bool)) is None


def test_a_thing_at_the_lower_edge_has_no_foot() -> None:
    assert contact_and_upright(scene(), Thing(60, 60, 100, SIZE[0])) is None
    assert contact_figures({"a": scene()}, {"a": [Thing(60, 60, 100, SIZE[0])]}) == {}


def test_groups_are_near_and_far_moving_and_static() -> None:
    narrow = Thing(60, 40, 66, 70, moving=False)
    found = contact_figures({"a": scene(1.3)}, {"a": [Thing(60, 40, 100, 70, moving=True), narrow]})
    assert {group: figures["count"] for group, figures in found.items()} == {
        "all": 2, "near": 1, "far": 1, "moving": 1, "static": 1,
    }  # fmt: skip
    assert found["near"]["contact"] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,x0,y0,x1\n0,1,2,3\n", "no column 'y1'"),
        ("frame,x0,y0,x1,y1\n0,1,2,3\n", "line 2"),
        ("frame,x0,y0,x1,y1\n0,1,2,a,4\n", "line 2"),
        ("frame,x0,y0,x1,y1\n0,1,2,3,4\n9,1,2,3,4\n", "line 3: there is no frame 9"),
        ("frame,x0,y0,x1,y1\n0,5,2,3,4\n", "x0 5"),
    ],
)
def test_boxes_that_cannot_be_meant_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_boxes(path, ["a", "b"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on four frames without ground truth, with a scene net, boxes and classified masks."""
    images = tmp_path / "clip"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(images / f"frame{number}.png")
    folder = tmp_path / "run"
    masks = np.zeros((2, 3, 64, 64), bool)
    masks[0, :, 20:40, 10:30] = masks[1, :, 20:40, 40:60] = True
    yes = np.ones(2, bool)
    found = FrameInstances(np.arange(2), np.array([True, False]), np.ones(2, np.float32), yes, yes, masks)
    (folder / "instances" / "val").mkdir(parents=True)
    found.save(folder / "instances" / "val" / "frame1.npz")
    data = {"kind": "sequence", "root": str(images), "size": [64, 64], "fov": 70, "workers": 0}
    config = parse_config({"run": "run", "device": "cpu", "data": data})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    net = build_depth_net("light")
    save_weights(folder / "scene" / "weights.safetensors", {"depth": net}, {"depth": "light"}, {"size": (64, 64)})
    (tmp_path / "boxes.csv").write_text("frame,x0,y0,x1,y1,moving\n2,60,40,100,70,1\n0,10,40,16,60,\n")
    return folder


@pytest.mark.filterwarnings("ignore:intrinsics of")
def test_the_command_prints_boxes_and_masks_and_the_report_shows_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--boxes", str(tmp_path / "boxes.csv")]) == 0
    shown = capsys.readouterr().out
    document = json.loads((run / "metrics.json").read_text())
    scene = document["contact"]["scene"]
    assert {group: figures["count"] for group, figures in scene["boxes"].items()} == {
        "all": 2, "near": 1, "far": 1, "moving": 1,
    }  # fmt: skip
    assert {group: figures["count"] for group, figures in scene["masks"].items()} == {
        "all": 2, "near": 2, "moving": 1, "static": 1,
    }  # fmt: skip
    assert "boxes, moving" in shown
    assert f"{scene['boxes']['all']['contact']:.2f}" in shown
    page = write_report(run).read_text()
    assert "Do vehicles stand on the road?" in page
    assert "masks, static" in page


@pytest.mark.filterwarnings("ignore:intrinsics of")
def test_boxes_are_measured_at_the_size_of_the_frames(run: Path, tmp_path: Path) -> None:
    """A net whose depth is that of the known scene, a pixel of its for two of the frame's."""
    text = (run / "config.yaml").read_text()
    config = parse_config(yaml.safe_load(text) | {"evaluation": {"boxes": str(tmp_path / "boxes.csv")}})
    depth = torch.from_numpy(scene(1.2, 1.5)[::2, ::2].copy()).float()[None]

    found = stage_contact(config, None, lambda batch: depth.expand(len(batch["frame"]), 1, -1, -1))
    # Rows between two of the net's mix the road and the box.
    assert found["boxes"]["near"]["contact"] == pytest.approx(1.2, rel=0.03)
    assert found["boxes"]["near"]["upright"] == pytest.approx(1.5, rel=0.03)


@pytest.mark.filterwarnings("ignore:intrinsics of")
def test_boxes_on_other_data_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boxes.csv").write_text("frame,x0,y0,x1,y1\n99,1,2,3,4\n")
    assert main([str(run), "--boxes", str(tmp_path / "boxes.csv")]) == 1
    assert "there is no frame 99" in capsys.readouterr().err
