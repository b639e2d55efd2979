"""Stages that find masks by themselves, from images to files: stopped anywhere, the run ends bit for bit the same."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from mcd.config import Config, parse_config
from mcd.data import open_reader, road_mask
from mcd.run import Run
from mcd.stages import Context
from mcd.stages.scene_predictions import open_store
from mcd.stages.slots import read_candidates
from mcd.train import InterruptedRun, train_run

SIZE = (64, 96)
SHORT = {"batch": 4, "validate_every": 3, "validate_batches": 1, "checkpoint_every": 2}


class StopAfter:
    """A stop signal that comes when it is asked for the n-th time."""

    def __init__(self, asked: int):
        self._left = asked

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


def make_config(folder: Path, runs: str) -> Config:
    document: dict[str, Any] = {
        "run": "tiny",
        "runs": str(folder / runs),
        "device": "cpu",
        "stages": ["scene", "predictions", "ground", "slots"],
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
        "ground": {"steps": 5, "thirds_from": 2, "thirds_full_from": 4, **SHORT},
        "slots": {"steps": 5, "size": (32, 32), "emptiness_from": 2, "emptiness_full_from": 4, **SHORT},
    }
    return parse_config(document)


def files(config: Config) -> dict[str, bytes]:
    """What the stages leave, predictions frame by frame: in a database, their order is that of the writing."""
    run = config.runs / "tiny"
    kept = [path for stage in ("ground", "slots") for path in (run / stage).rglob("*") if path.is_file()]
    left = {
        str(path.relative_to(run)): path.read_bytes()
        for path in kept
        if path.suffix in (".npz", ".png", ".safetensors")
    }
    with closing(sqlite3.connect(run / "predictions.sqlite")) as database:
        rows = database.execute("SELECT split, frame, planes, poses FROM prediction").fetchall()
    return left | {f"prediction {split} {frame}": planes + poses for split, frame, planes, poses in rows}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = make_config(tmp_path_factory.mktemp("discovery"), "undisturbed")
    train_run(config, StopAfter(10**9))
    return config


def test_every_frame_has_predictions_ground_and_candidates(undisturbed: Config) -> None:
    context = Context(undisturbed, Run(undisturbed), torch.device("cpu"))
    store = open_store(context)
    assert store is not None
    for split, count in (("train", 10), ("val", 3)):
        frames = open_reader(undisturbed.data, split).frames
        assert len(frames) == count
        for frame in frames:
            found = store.read(split, frame)
            assert found is not None and found.depth.shape == (1, *SIZE) and found.flow.shape == (2, 2, *SIZE)
            assert (found.depth > 0).all()
            assert road_mask(context.labels, split, frame).shape == (1, *SIZE)
            candidates = read_candidates(context.run.stage("slots"), split, frame)
            assert candidates.shape == (2, 5, *SIZE)


def test_the_report_shows_what_was_found(undisturbed: Config) -> None:
    page = (undisturbed.runs / "tiny" / "report.html").read_text()
    for title in ("What moves by itself", "motion to the next frame", "What the run found", "slots, previous frame"):
        assert title in page


def test_a_run_that_is_stopped_again_and_again_ends_the_same(undisturbed: Config) -> None:
    config = make_config(undisturbed.runs.parent, "stopped")
    stops = 0
    while True:
        try:
            train_run(config, StopAfter(2))
            break
        except InterruptedRun:
            stops += 1
    # In training and in writing, of every stage.
    assert stops >= 6
    expected, found = files(undisturbed), files(config)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
