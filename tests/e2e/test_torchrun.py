"""Whole runs of several processes, as torchrun starts them: shared, stopped, killed, hung, on two "nodes"."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_run import SIZE, STAGES, make_document
from small_run import files as small_run_files

import mcd
from mcd.config import parse_config
from mcd.scene.track import CameraTrack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = """
data: {root: ROOT/data, size: [64, 96], synthetic: {frames: 16, val_frames: 5, seed: 3}, workers: 0}
loss: {scales: 1}
threads: 1
stages: [scene, instances, object, scale, pseudo, final]
scene: {steps: 6, batch: 4, motion_from: 2, joint_from: 4, validate_every: 3, validate_batches: 2, checkpoint_every: 1}
instances: {coverage: 0.2, flow_threshold: 0.1, min_area: 0.004, batch: 3}
object: {steps: 2, batch: 4, validate_every: 2, validate_batches: 1}
scale: {steps: 2, batch: 4, validate_every: 2, validate_batches: 1}
pseudo: {batch: 3}
final: {steps: 2, batch: 4, motion_from: 0, joint_from: 0, validate_every: 2, validate_batches: 1}
log_every: 2
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("ROOT", str(folder)))
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(
    config: Path, run: str, *options: str, processes: int = 2, settings: tuple[str, ...] = (), **environment: str
):
    """torchrun, its agent and workers in a group of their own; its output is in ``RUN.out``."""
    options = options or ("--master-port", str(free_port()))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options]
    command += ["-m", "mcd.train", str(config), "--set", f"runs={config.parent}", "--set", f"run={run}"]
    command += [part for setting in settings for part in ("--set", setting)]
    with (config.parent / f"{run}.out").open("a") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )


def start_nodes(config: Path, run: str, settings: tuple[str, ...]) -> list[subprocess.Popen]:
    """Two agents with a process each, which find each other on this machine."""
    port = free_port()
    options = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", run, "--nnodes", "2")
    return [start(config, run, *options, "--node-rank", str(n), processes=1, settings=settings) for n in range(2)]


def output(config: Path, run: str) -> str:
    return (config.parent / f"{run}.out").read_text()


def workers(agent: subprocess.Popen) -> list[int]:
    """The agent's processes, by rank."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks.update({int(value[5:]): int(child) for value in variables if value.startswith(b"RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for(path: Path, agent: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert agent.poll() is None, "the run has ended before"
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def files(run: Path, *stages: str) -> dict[str, bytes]:
    paths = [path for stage in stages for path in (run / stage).rglob("*.*") if path.name != "done.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def test_a_run_of_one_goes_on_under_two_and_prepares_the_same_bits(config):
    first = start(config, "one", processes=1)
    assert first.wait(timeout=500) == 0, output(config, "one")
    run, again = config.parent / "one", config.parent / "two"
    shutil.copytree(run, again)
    for stage in ("instances", "pseudo", "final"):
        shutil.rmtree(again / stage)
    assert start(config, "two").wait(timeout=500) == 0, output(config, "two")
    assert len(files(run, "pseudo")) > 3
    assert files(run, "instances", "pseudo") == files(again, "instances", "pseudo")
    assert (again / "final" / "weights.safetensors").is_file()
    assert (again / "report.html").is_file()


def test_the_variant_without_masks_stores_and_finds_the_same_bits_on_two_nodes(tmp_path):
    document = make_document(tmp_path, "one", stages=STAGES[: STAGES.index("detector") + 1])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(document | {"data": document["data"] | {"size": list(SIZE)}}))
    one, two = (parse_config(document | {"runs": str(tmp_path / runs)}) for runs in ("one", "two"))
    settings = ("run=tiny", f"runs={tmp_path / 'one'}")
    assert start(path, "first", processes=1, settings=settings).wait(timeout=800) == 0, output(path, "first")
    again = tmp_path / "two" / "tiny"
    shutil.copytree(tmp_path / "one" / "tiny", again)
    # Trained nets stay; what they write is written anew.
    for stage in ("predictions", "ground/masks", "slots/masks", "detector"):
        shutil.rmtree(again / stage)
    for left in (again / "predictions.sqlite", again / "ground" / "done.json", again / "slots" / "done.json"):
        left.unlink()
    settings = ("run=tiny", f"runs={tmp_path / 'two'}")
    nodes = start_nodes(path, "second", settings)
    seen = tmp_path / "two" / "tiny" / "predictions-1.sqlite"
    wait_for(seen, nodes[1])
    assert [node.wait(timeout=800) for node in nodes] == [0, 0], output(path, "second")
    assert not seen.exists(), "the store has not taken in its part"
    expected, found = small_run_files(one), small_run_files(two)
    # The detector is trained anew, and so differs by rounding.
    same = [name for name in expected if not name.startswith(("detector/round", "detector/weights"))]
    assert {name.partition("/")[0].split()[0] for name in same} >= {"prediction", "ground", "slots", "detector"}
    assert [name for name in same if found.get(name) != expected[name]] == []
    assert set(found) == set(expected)


def test_a_killed_process_ends_the_run_which_goes_on_under_another_number(config):
    agent = start(config, "killed")
    wait_for(config.parent / "killed" / "scene" / "last" / "state.pt", agent)
    os.kill(workers(agent)[1], signal.SIGKILL)
    begin = time.monotonic()
    assert agent.wait(timeout=120) == 1
    assert time.monotonic() - begin < 60, "35 s at most on an idle machine: torchrun gives the others 30"
    assert output(config, "killed").count("another process of this run has ended") <= 1
    assert not (config.parent / "killed" / "scene" / "done.json").exists()
    stages = ("stages=[scene]",)
    assert start(config, "killed", processes=1).wait(timeout=500) == 0, output(config, "killed")
    assert (config.parent / "killed" / "final" / "done.json").is_file(), stages


def test_a_hung_process_ends_the_run_within_the_patience(config):
    agent = start(config, "hung", MCD_PATIENCE="20")
    wait_for(config.parent / "hung" / "scene" / "last" / "state.pt", agent)
    os.kill(workers(agent)[1], signal.SIGSTOP)
    assert agent.wait(timeout=180) == 1
    assert "has not answered for 20 s" in output(config, "hung")


def test_a_stop_signal_is_agreed_and_saved(config):
    agent = start(config, "stopped", settings=("scene.steps=500",))
    wait_for(config.parent / "stopped" / "scene" / "last" / "state.pt", agent)
    # As a batch system does: only one process is told.
    os.kill(workers(agent)[1], signal.SIGTERM)
    agent.wait(timeout=120)
    said = output(config, "stopped")
    assert said.count("stopped; the same command goes on from here") == 1
    assert "exitcode  : 130" in said
    assert f'File "{Path(mcd.__file__).parent}' not in said, "a traceback of our own"


def test_two_nodes_on_one_machine(config):
    nodes = start_nodes(config, "nodes", ("stages=[scene]",))
    assert [node.wait(timeout=500) for node in nodes] == [0, 0], output(config, "nodes")
    assert '"processes": 2' in (config.parent / "nodes" / "env.json").read_text()


def test_processes_of_different_configs_are_told(config):
    other = config.with_name("other.yaml")
    other.write_text(config.read_text() + "seed: 7\n")
    port = str(free_port())
    fixed = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    nodes = [
        start(path, "differ", *fixed, "--node-rank", str(rank), processes=1)
        for rank, path in enumerate((config, other))
    ]
    assert [node.wait(timeout=300) for node in nodes] == [1, 1]
    assert output(config, "differ").count("has another config than process 0") == 1


DRIVE = """
init: start
nets: {depth: lite0}
data: {kind: sequence, root: ROOT/frames, size: [64, 96], fov: 60, spacing: [1, 2], workers: 0}
loss: {scales: 1, start: 0.05}
threads: 1
stages: [scene]
scene: {steps: 2, batch: 2, odometry: true, frozen_blocks: 3, validate_batches: 1, checkpoint_every: 1}
"""


def test_the_motion_of_the_camera_is_found_once_for_all_processes(tmp_path):
    rng = np.random.default_rng(0)
    wall = Image.fromarray(rng.integers(0, 255, (12, 24, 3), np.uint8)).resize((192, 128), Image.Resampling.BICUBIC)
    (tmp_path / "frames").mkdir()
    for number in range(30):
        wall.crop((number, number // 2, 192 - number, 128 - number // 2)).resize((96, 64)).save(
            tmp_path / "frames" / f"{number:04}.png"
        )
    path = tmp_path / "drive.yaml"
    path.write_text(DRIVE.replace("ROOT", str(tmp_path)))
    for run, processes in (("one", 1), ("two", 2)):
        assert start(path, run, processes=processes).wait(timeout=500) == 0, output(path, run)
    for split in ("train", "val"):
        name = f"scene/odometry_{split}.npz"
        found = [CameraTrack.load(tmp_path / run / name).motions for run in ("one", "two")]
        assert len(found[0]) == {"train": 26, "val": 2}[split]
        assert found[0].keys() == found[1].keys()
        assert all(np.array_equal(found[0][pair], found[1][pair]) for pair in found[0])
    # What the camera's motion is found by stays as it is when the run goes on.
    before = (tmp_path / "two" / "scene" / "odometry_train.npz").stat().st_mtime_ns
    (tmp_path / "two" / "scene" / "done.json").unlink()
    assert start(path, "two").wait(timeout=500) == 0, output(path, "two")
    assert (tmp_path / "two" / "scene" / "odometry_train.npz").stat().st_mtime_ns == before
