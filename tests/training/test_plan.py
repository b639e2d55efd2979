"""The plan of a run: where its times come from, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mcd.config import Config, parse_config
from mcd.files import write_json
from mcd.run.folder import environment
from mcd.train import main
from mcd.training import plan as module
from mcd.training.expect import expected_stages, logged_step, measured_stage
from mcd.training.plan import plan

SIZE = [64, 64]


def config(root: Path, run: str = "new", **keys: Any) -> Config:
    document = {
        "run": run, "runs": str(root / "runs"), "device": "cpu", "stages": ["scene", "instances", "object", "scale"],
        "data": {"root": str(root / "data"), "size": SIZE, "synthetic": {"frames": 30, "val_frames": 10}},
        "scene": {"steps": 100, "batch": 4, "motion_from": 50}, "object": {"steps": 50, "batch": 4},
    }  # fmt: skip
    return parse_config(document | keys)


def earlier(made: Config, machine: dict[str, Any] | None = None, **seconds: float) -> Path:
    """The folder of a run whose stages took so long."""
    folder = made.runs / str(made.run)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    write_json(folder / "env.json", environment() | (machine or {}))
    for stage, taken in seconds.items():
        write_json(folder / stage / "done.json", {"seconds": taken, "frames": 40, "peak_bytes": 123_000_000})
        (folder / stage / "file").write_bytes(bytes(5000))
    return folder


def test_times_of_an_earlier_run_are_brought_to_the_length_of_this_one(tmp_path: Path) -> None:
    old = earlier(config(tmp_path, "old", scene={"steps": 50, "batch": 8, "motion_from": 9}), scene=80.0, instances=6.0)
    found = {stage.name: stage for stage in expected_stages(config(tmp_path), 20)}
    # 400 images each; half the frames.
    assert found["scene"].seconds == pytest.approx(80)
    assert found["instances"].seconds == pytest.approx(3)
    assert found["scene"].source == f"as in {old}"
    assert found["object"].seconds is None
    measured = measured_stage(config(tmp_path), "instances", 20)
    assert measured is not None
    # The files are of half the frames; done.json is one of them.
    assert measured.bytes == pytest.approx(2550, abs=50)
    assert measured.memory == 123_000_000


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"size": [64, 96]}},
        {"nets": {"depth": "resnet18"}},
        {"scene": {"steps": 100, "batch": 4}},
        {"loss": {"scales": 1}},
        {"compile": True},
    ],
)
def test_runs_of_other_nets_images_or_machines_say_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    earlier(config(tmp_path, "old", **other), scene=80.0)
    earlier(config(tmp_path, "elsewhere"), {"processor": "another"}, scene=80.0)
    assert expected_stages(config(tmp_path), 40)[0].seconds is None


def test_finished_stages_are_done_and_a_log_says_how_far_the_next_is(tmp_path: Path) -> None:
    made = config(tmp_path)
    folder = earlier(made, scene=80.0)
    (folder / "log").mkdir()
    phases = "data,forward,loss,loss_backward,backward,optimizer"
    (folder / "log" / "object.csv").write_text(
        f"step,{phases},validation\n10,1,2,3,4,5,5,\n20,1,2,3,4,5,5,\n20,,,,,,,0.3\n30,1"
    )
    assert logged_step(folder, "object") == (20, pytest.approx(0.02))
    planned = {row.stage: row for row in plan(made, torch.device("cpu"))}
    assert planned["scene"].source == "finished"
    assert planned["object"].seconds == pytest.approx(0.02 * 30)


def test_steps_that_are_launched_as_one_piece_take_their_time_too(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    phases = "data,forward,loss,loss_backward,backward,optimizer"
    rows = "10,1,2,3,4,5,5,\n20,1,0,0,0,0,0,9\n"
    (tmp_path / "log" / "object.csv").write_text(f"step,{phases},graph\n{rows}")
    assert logged_step(tmp_path, "object") == (20, pytest.approx(0.015))


def test_what_nothing_says_is_measured_and_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    made = config(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert main([str(path), "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "scene 100 steps of 4" in shown
    assert shown.count("measured now") == 4
    assert shown.count("as the scene, measured now") == 2  # instances and scale
    assert "40 images" in shown
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml"]


def test_the_measured_step_is_that_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole phases are weighted: a stage of two kinds of steps takes between all of one and all of the other."""
    monkeypatch.setattr(module.time, "perf_counter", Ticks())
    steps = {"steps": 100, "batch": 4}
    alone = plan(config(tmp_path, stages=["scene"], scene=steps), torch.device("cpu"))[0].seconds
    both = plan(config(tmp_path, stages=["scene"], scene=steps | {"motion_from": 50}), torch.device("cpu"))[0].seconds
    # By a clock that advances a second a look, every step takes one.
    assert alone == both == pytest.approx(100)


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_broken_run_beside_it_costs_nothing(tmp_path: Path) -> None:
    folder = earlier(config(tmp_path, "old"), scene=80.0)
    (folder / "env.json").write_text("{")
    assert expected_stages(config(tmp_path), 40)[0].seconds is None
    write_json(folder / "env.json", environment())
    (folder / "scene" / "done.json").write_text(json.dumps([1]))
    assert expected_stages(config(tmp_path), 40)[0].seconds is None
