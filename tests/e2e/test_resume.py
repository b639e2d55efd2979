"""A run that is killed, or stopped, and started again ends as the run that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Every stage, a few steps each; several checkpoints a stage, so that a kill falls between them.
CONFIG = """
data: {root: ROOT/data, size: [64, 96], synthetic: {frames: 48, val_frames: 6, seed: 3}, workers: 1}
loss: {scales: 2}
threads: 1
stages: [scene, instances, object, scale, pseudo, final]
scene:
  {steps: STEPS, batch: 4, motion_from: 6, joint_from: 9, validate_every: 5, validate_batches: 1, checkpoint_every: 4}
instances: {coverage: 0.2, flow_threshold: 0.1, min_area: 0.004}
object: {steps: 10, batch: 4, validate_every: 5, validate_batches: 1, checkpoint_every: 4}
scale: {steps: 10, batch: 4, validate_every: 5, validate_batches: 1, checkpoint_every: 4}
final: {steps: 10, batch: 4, motion_from: 0, joint_from: 0, validate_every: 5, validate_batches: 1, checkpoint_every: 4}
log_every: 3
"""


def write_config(folder: Path, steps: int) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("ROOT", str(folder)).replace("STEPS", str(steps)))
    return path


def start(config: Path, runs: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mcd.train", str(config), "--set", f"runs={config.parent / runs}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(config: Path, runs: str) -> dict:
    process = start(config, runs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    metrics = json.loads((config.parent / runs / "tiny" / "metrics.json").read_text())
    for name in ("seconds", "milliseconds_per_frame"):
        metrics.pop(name)
    return metrics


def weights(config: Path, runs: str) -> dict[str, bytes]:
    run = config.parent / runs / "tiny"
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("*/weights.safetensors"))}


def killed_run(config: Path, runs: str, moments: list[float], how: signal.Signals) -> None:
    """Start the run again and again; stop it ``moments`` seconds after its first sign of life."""
    for moment in moments:
        process = start(config, runs)
        run = config.parent / runs / "tiny"
        deadline = time.monotonic() + 120
        while not (run / "env.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            # The whole group: a kill -9 leaves no one to tell the loader's workers.
            (os.killpg if how == signal.SIGKILL else os.kill)(process.pid, how)
        output, _ = process.communicate(timeout=120)
        # -SIGTERM: still importing, nothing to save.
        assert process.returncode in (0, 130, -signal.SIGKILL, -signal.SIGTERM), output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = write_config(tmp_path_factory.mktemp("resume"), steps=14)
    return config, finish(config, "undisturbed")


def test_all_stages_run_and_are_evaluated(undisturbed):
    config, metrics = undisturbed
    assert set(metrics["stages"]) >= {"scene", "pseudo", "final"}
    for regions in metrics["stages"].values():
        assert 0 < regions["all"]["abs_rel"] < 10
    run = config.parent / "undisturbed" / "tiny"
    for name in (
        "config.yaml",
        "env.json",
        "metrics.json",
        "report.html",
        "log/scene.csv",
        "scale/weights.safetensors",
    ):
        assert (run / name).is_file(), name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_as_if_it_had_not_been(undisturbed, how):
    config, metrics = undisturbed
    runs = f"stopped-{how.name}"
    killed_run(config, runs, [9.0, 11.0], how)
    assert finish(config, runs) == metrics
    assert weights(config, runs) == weights(config, "undisturbed")


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    config = write_config(tmp_path, steps=120)
    metrics = finish(config, "undisturbed")
    draw = random.Random(20240617)
    killed_run(config, "killed", [draw.uniform(2, 12) for _ in range(10)], signal.SIGKILL)
    assert finish(config, "killed") == metrics
    assert weights(config, "killed") == weights(config, "undisturbed")
