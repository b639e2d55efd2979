"""The variant that finds masks by itself, from images to the final net: stopped anywhere, it ends bit for bit the same.

Nets of a few steps find nothing. So what the slots and the detector look for is whatever is there: every slot has every
pixel, no candidate is turned down but for its size, and all below the camera is ground. What is straight ahead counts
as moving, the rest stands still. What such nets see depends on how the machine rounds, so the seed is looked for.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mcd.config import Config, parse_config
from mcd.data import open_reader
from mcd.masks.source import mask_source
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import open_store
from mcd.stages.slots import read_candidates
from mcd.train import train_run
from mcd.training.stop import InterruptedRun

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


def make_config(folder: Path, runs: str, seed: int, stages: Sequence[str] = STAGES) -> Config:
    document: dict[str, Any] = {
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
        "instances": {"flow_threshold": 1000, "middle": 3, "min_area": 0.001},
        "object": {"steps": 3, **SHORT, "batch": 2},
        "scale": {"steps": 3, **SHORT, "batch": 2},
        "final": {"steps": 3, **SHORT, "batch": 2},
    }
    return parse_config(document)


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run, with the first seed that leaves moving and static objects for the later stages."""
    for seed in range(8):
        folder = tmp_path_factory.mktemp("discovery")
        first_stages = make_config(folder, "first_stages", seed, STAGES[: STAGES.index("instances") + 1])
        train_run(first_stages, StopAfter(10**9))
        classified = classes(first_stages)
        if 0 < classified["dynamic"] < classified["instances"] <= 100:
            config = make_config(folder, "undisturbed", seed)
            train_run(config, StopAfter(10**9))
            return config
    pytest.fail("no seed leaves a few objects of both kinds")


def classes(config: Config) -> dict[str, int]:
    """Numbers of objects in the training split."""
    numbers: dict[str, int] = json.loads((config.runs / "tiny" / "instances" / "done.json").read_text())["train"]
    return numbers


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
            assert mask_source(context.run).ground(split, frame).shape == (1, *SIZE)
            candidates = read_candidates(context.run.stage("slots"), split, frame)
            assert candidates.shape == (2, 5, *SIZE)


def test_every_stage_ends_and_the_final_net_is_evaluated(undisturbed: Config) -> None:
    run = undisturbed.runs / "tiny"
    assert [stage for stage in STAGES if not (run / stage / "done.json").is_file()] == []
    classified = classes(undisturbed)
    assert 0 < classified["dynamic"] < classified["instances"], "later stages need both kinds"
    metrics = json.loads((run / "metrics.json").read_text())
    for stage in ("scene", "pseudo", "final"):
        assert {"all", "static", "dynamic"} <= set(metrics["stages"][stage]), stage
    assert set(metrics["discovery"]) == {"ground", "detector", "instances"}


def test_the_report_shows_what_was_found(undisturbed: Config) -> None:
    page = (undisturbed.runs / "tiny" / "report.html").read_text()
    for title in ("What moves by itself", "motion to the next frame", "What the run found", "slots, previous frame"):
        assert title in page


def test_a_run_that_is_stopped_again_and_again_ends_the_same(undisturbed: Config) -> None:
    config = make_config(undisturbed.runs.parent, "stopped", undisturbed.seed)
    stops = 0
    while True:
        try:
            train_run(config, StopAfter(2 + stops))
            break
        except InterruptedRun:
            stops += 1
    # In training and in writing, of every stage.
    assert stops >= 6
    expected, found = files(undisturbed), files(config)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_run_killed_in_the_middle_of_a_round_ends_the_same(undisturbed: Config) -> None:
    config = make_config(undisturbed.runs.parent, "killed", undisturbed.seed)
    document = undisturbed.runs.parent / "killed.yaml"
    document.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "mcd.train", str(document)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of as many parts as in this process
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | threads}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    part = config.runs / "tiny" / "detector" / "round_1"
    while not (part / "last" / "state.pt").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (part / "done.json").exists(), "the kill came after the round"
    assert subprocess.run(command, **quiet).returncode == 0
    expected, found = files(undisturbed), files(config)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
