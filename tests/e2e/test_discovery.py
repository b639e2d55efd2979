"""The variant that finds masks by itself, from images to the final net: stopped anywhere, it ends bit for bit the same.

The run is that of small_run.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import yaml
from small_run import SIZE, STAGES, StopAfter, classes, files, make_config

from mcd.config import Config
from mcd.data import open_reader
from mcd.masks.source import mask_source
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import open_store
from mcd.stages.slots import read_candidates
from mcd.train import train_run
from mcd.training.stop import InterruptedRun


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run, with the first seed that leaves moving and static objects enough for the later stages."""
    for seed in range(12):
        folder = tmp_path_factory.mktemp("discovery")
        first_stages = make_config(folder, "first_stages", seed, STAGES[: STAGES.index("instances") + 1])
        train_run(first_stages, StopAfter(10**9))
        classified = classes(first_stages)
        if 0 < classified["dynamic"] < classified["instances"] <= 100:
            config = make_config(folder, "undisturbed", seed)
            train_run(config, StopAfter(10**9))
            if "left_out" not in json.loads((config.runs / "tiny" / "pseudo" / "done.json").read_text()):
                return config
    pytest.fail("no seed leaves a few objects of both kinds")


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
