"""The published configuration from end to end: its networks, every stage, on a small set in the Cityscapes layout."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import published_mask_nets as published_masks
import published_nets as published
import pytest
import torch

from mcd.convert import convert_folder
from mcd.nets import build_detector
from mcd.nets.detector import PUBLISHED_MAGNIFY
from mcd.run.checkpoint import load_weights
from mcd.streets.synthetic import generate

# A run is a fixture, whose time counts for the first test that needs it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
SIZE = (64, 96)

# What is smaller than in configs/cityscapes.yaml. After so few steps the residual flow says nothing: what is straight
# ahead moves, by the middle rule, and what is not stands still.
SMALLER = [
    "data.workers=1", "data.masks=masks", "data.road_masks=road_masks", f"data.size={list(SIZE)}",
    "nets.pretrained=false", "threads=1", "log_every=2",
    "scene.steps=6", "scene.batch=2", "scene.motion_from=2", "scene.joint_from=4", "scene.drops=[[5, 0.5]]",
    "scene.validate_every=3", "scene.validate_batches=1", "scene.checkpoint_every=2",
    "instances.flow_threshold=1000", "instances.middle=4", "instances.min_area=0.001",
    *(f"{stage}.{key}" for stage in ("object", "scale", "final")
      for key in ("steps=3", "batch=2", "validate_every=3", "validate_batches=1", "checkpoint_every=2")),
    "scale.drops=[]",
]  # fmt: skip


def command(data: Path, runs: Path, *settings: str) -> list[str]:
    given = [*SMALLER, f"data.root={data}", f"runs={runs}", *settings]
    config = REPOSITORY / "configs" / "cityscapes.yaml"
    return [sys.executable, "-m", "mcd.train", str(config), *(part for value in given for part in ("--set", value))]


def train(data: Path, runs: Path, *settings: str) -> Path:
    done = subprocess.run(command(data, runs, *settings), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "cityscapes"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes") / "data"
    generate(root, train=12, val=4, size=SIZE, seed=3)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, tmp_path_factory.mktemp("runs"))


def test_every_stage_ends_and_the_table_has_every_region(run: Path):
    for stage in ("scene", "object", "scale", "final"):
        weights = load_weights(run / stage / "weights.safetensors")
        assert all(torch.isfinite(t).all() for tensors in weights.tensors.values() for t in tensors.values()), stage
    assert weights.nets == {"depth": "diffnet", "pose": "resnet18", "motion": "raft"}
    metrics = json.loads((run / "metrics.json").read_text())
    for stage in ("scene", "pseudo", "final"):
        assert {"all", "static", "dynamic"} <= set(metrics["stages"][stage]), stage
        for region in metrics["stages"][stage].values():
            assert 0 < region["abs_rel"] < 10
    assert 0 < metrics["objects"]["abs_rel"] < 10
    with (run / "metrics.csv").open(newline="") as file:
        stages = {row["stage"] for row in csv.DictReader(file)}
        assert stages == {"scene", "pseudo", "final", "object", "row_median"}


def test_a_run_killed_in_the_middle_of_a_stage_ends_with_the_same_bits(data: Path, run: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        command(data, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    scene = runs / "cityscapes" / "scene"
    while not (scene / "last" / "state.pt").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (scene / "done.json").exists(), "the kill came after the stage"
    train(data, runs)
    for stage in ("scene", "object", "scale", "final"):
        here, there = (folder / stage / "weights.safetensors" for folder in (runs / "cityscapes", run))
        assert here.read_bytes() == there.read_bytes(), stage
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (runs / "cityscapes", run)]
    assert metrics[0]["stages"] == metrics[1]["stages"]


def test_a_released_checkpoint_goes_into_the_final_stage(data: Path, tmp_path: Path):
    released, converted = tmp_path / "released", tmp_path / "converted"
    released.mkdir()
    for file, state in (
        ("depth_net.pth", published.diffnet_state()),
        ("pose_net.pth", published.pose_state()),
        ("raft.pth", published.raft_state()),
    ):
        torch.save(state, released / file)
    convert_folder(released, converted)
    run = train(
        data, tmp_path / "runs", "stages=[final]", f"init={converted}", "final.steps=1", "final.pseudo_weight=0"
    )
    before, after = (load_weights(folder / "weights.safetensors") for folder in (converted, run / "final"))
    for role in ("depth", "pose", "motion"):
        moved = [
            (after.tensors[role][name] - tensor).abs().max().item()
            for name, tensor in before.tensors[role].items()
            if tensor.is_floating_point() and "running" not in name
        ]
        # One step of Adam moves a weight by at most its rate.
        assert 0 < max(moved) <= 1.1 * 2e-5, role
    assert json.loads((run / "metrics.json").read_text())["stages"]["final"]["all"]["abs_rel"] > 0


def test_released_nets_find_ground_and_objects_as_they_are(tmp_path: Path):
    released, converted, streets = tmp_path / "released", tmp_path / "converted", tmp_path / "streets"
    released.mkdir()
    for file, state in (
        ("depth_net.pth", published.diffnet_state()),
        ("pose_net.pth", published.pose_state()),
        ("raft.pth", published.raft_state()),
        ("ground_segmentation.pth", published_masks.ground_state()),
        ("maskrcnn.pth", build_detector("resnet18", (192, 512), magnify=PUBLISHED_MAGNIFY).state_dict()),
    ):
        torch.save(state, released / file)
    convert_folder(released, converted)
    generate(streets, train=1, val=1, size=(192, 512), seed=3)
    settings = [
        "run=labels", f"runs={tmp_path}", f"data.root={streets}", "data.workers=0", "threads=1", f"init={converted}",
        "nets.pretrained=false", "stages=[predictions, ground, detector]",
        "nets.ground=published", f"ground.init={converted}", "ground.steps=0", "ground.hide_depth=0",
        f"detector.init={converted}", "detector.steps=0", "detector.magnify=2.6", "detector.scores=[0.0]",
        "detector.filter_after=[0]",
    ]  # fmt: skip
    config = REPOSITORY / "configs" / "cityscapes_unsupervised.yaml"
    given = [part for value in settings for part in ("--set", value)]
    done = subprocess.run([sys.executable, "-m", "mcd.train", str(config), *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would show them alike" not in done.stderr
    run = tmp_path / "labels"
    before = load_weights(converted / "weights.safetensors").tensors
    for stage in ("ground", "detector"):
        after = load_weights(run / stage / "weights.safetensors").tensors[stage]
        assert after.keys() == before[stage].keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before[stage].items()), stage
    assert len(list((run / "ground" / "masks").rglob("*.png"))) == 2
    assert len({path.name for path in (run / "detector").rglob("*.npz")}) >= 2  # the detections of both frames
    assert set(json.loads((run / "metrics.json").read_text())["discovery"]) == {"ground", "detector"}
