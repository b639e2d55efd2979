"""Some kills, a full disk and a few stops; `make chaos` has a hundred."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import chaos
from fuzz.command import warm

pytestmark = [pytest.mark.slow, pytest.mark.forks, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """A run of every stage, its seed and the seconds of computing that it takes."""
    warm()
    folder = tmp_path_factory.mktemp("chaos") / "undisturbed"
    return (folder, *chaos.undisturbed_run(folder))


def test_a_run_that_is_killed_at_random_moments_ends_the_same(
    undisturbed: tuple[Path, int, float], tmp_path: Path
) -> None:
    assert chaos.kill_runs(tmp_path, *undisturbed, 6, random.Random(0)).total() > 6


@pytest.mark.skipif(not chaos.may_mount(), reason="no mounts")
def test_a_full_disk_is_said_and_costs_nothing(undisturbed: tuple[Path, int, float], tmp_path: Path) -> None:
    assert chaos.fill_disks(tmp_path, *undisturbed, 2, random.Random(0)).total() > 2


def test_a_difference_is_noticed(undisturbed: tuple[Path, int, float], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(undisturbed[0], other)
    chaos.expect_same(other, undisturbed[0])
    (other / "tiny" / "final" / ".weights.safetensors.x.safetensors").write_text("")
    with pytest.raises(chaos.ChaosError, match="half written and left"):
        chaos.expect_same(other, undisturbed[0])
    (other / "tiny" / "final" / ".weights.safetensors.x.safetensors").unlink()
    (other / "tiny" / "final" / "weights.safetensors").write_text("")
    with pytest.raises(chaos.ChaosError, match="differ: .*final/weights"):
        chaos.expect_same(other, undisturbed[0])
    figures = json.loads((other / "tiny" / "metrics.json").read_text())
    figures["stages"]["final"]["all"]["abs_rel"] += 1e-9
    (other / "tiny" / "metrics.json").write_text(json.dumps(figures))
    with pytest.raises(chaos.ChaosError, match=r"metrics\.json of .* differs"):
        chaos.expect_same(other, undisturbed[0])


def test_results_that_are_stopped_are_whole(undisturbed: tuple[Path, int, float], tmp_path: Path) -> None:
    names = ["predict, video", "report"]
    assert set(chaos.stop_results(tmp_path, undisturbed[0], 2, random.Random(0), names)) == set(names)


def test_half_a_result_is_noticed(tmp_path: Path) -> None:
    for name, content in {
        "a.json": '{"a": ',
        "b.html": "<html>",
        "c.csv": "",
        ".d.png.x.png": "",
        "e.png": "x",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises((chaos.ChaosError, ValueError, OSError)):
            chaos.whole(tmp_path / name)


def test_a_command_is_stopped_by_its_computing_and_killed_with_its_workers(tmp_path: Path) -> None:
    warm()
    chaos.write_config(tmp_path / "run", 0)
    command = chaos.train(tmp_path / "run")
    assert command.wait(600, computing=1.0) is None and command.computed >= 1
    assert command.kill() == -signal.SIGKILL
    time.sleep(0.2)
    with pytest.raises(ChildProcessError):
        command.wait(0)
