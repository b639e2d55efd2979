"""A step of training: the host never waits for the device, and launches little; the table is in docs/profiling.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shares import BATCH, CASES, CPU, SIZE, global_batch, make_state, prepare, share_of
from torch import nn
from waiting import Waits

from mcd.config import load_config
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import StepTimer
from mcd.training.state import TrainState
from mcd.training.step import take_step

TABLE = Path(__file__).parents[2] / "docs" / "profiling.md"
# Lines that wait, by stage: torchvision's detector, its picture of a flow, and the number of pixels of the objects.
KNOWN = {
    "detector": {"stages/detector.py", "nets/detector.py"},
    "slots": {"stages/slots.py"},
    "scale": {"ops/instances.py"},
}


def table() -> dict[str, int]:
    """Operators of a step, by the first cell of the rows of the committed table."""
    rows = [line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("| step of ")]
    return {row[0].strip().removeprefix("step of "): int(row[1].replace(",", "")) for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("waits")
    prepare(place)
    return place


def watched(state: TrainState) -> Waits:
    """The second of two steps: the first one makes the optimiser's state."""
    guard, timer, step = NanGuard("stop", CPU), StepTimer(CPU), state.step
    batch = share_of(global_batch(0), torch.float32)
    take_step(state, batch, timer, guard)
    state.step = step
    with Waits() as waits:
        take_step(state, batch, timer, guard)
    return waits


@pytest.mark.parametrize("case", CASES)
def test_a_step_never_waits_and_stays_within_the_table(case: str, folder: Path) -> None:
    waits = watched(make_state(case, folder, torch.float32))
    known = KNOWN.get(case.partition(":")[0], set())
    unknown = {line: times for line, times in waits.lines.items() if line.partition(":")[0] not in known}
    assert not unknown, f"the host waits in {unknown}"
    assert {line.partition(":")[0] for line in waits.lines} == known, "a wait is gone: take it from the list"
    assert waits.count <= table()[case]


@pytest.mark.parametrize("case", ["scene: motion", "scene: together"])
def test_a_step_with_a_learned_camera_never_waits(case: str, folder: Path) -> None:
    data = {"size": SIZE, "kind": "sequence", "intrinsics": "learn", "fov": 70}
    assert not watched(make_state(case, folder, torch.float32, data=data)).lines


def test_a_step_that_keeps_the_start_never_waits(folder: Path) -> None:
    scene = {"steps": 20, "batch": BATCH, "motion_from": 1, "joint_from": 2, "depth_from": 0}
    start = {"init": str(folder / "run" / "scene"), "loss": {"start": 0.1, "road": 0.1}, "scene": scene}
    assert not watched(make_state("scene: together", folder, torch.float32, **start)).lines


@pytest.mark.slow
def test_a_step_of_the_published_nets_stays_within_the_table(folder: Path) -> None:
    nets = load_config("cityscapes").nets.model_copy(update={"pretrained": False}).model_dump()
    waits = watched(make_state("scene: together", folder, torch.float32, nets))
    assert not waits.lines
    assert waits.count <= table()["scene: together, cityscapes nets"]


def test_the_guard_costs_ten_operators() -> None:
    nets = {"depth": nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(50)))}
    guard, loss, norm = NanGuard("stop", CPU), torch.ones((), requires_grad=True) * 2, torch.ones(())
    with Waits() as waits:
        guard.remember(nets)
        guard.check(loss, [norm])
    assert not waits.lines
    assert waits.count <= 10


def test_a_wait_is_seen_and_named() -> None:
    guard = NanGuard("skip", CPU)
    guard.note(0, ["a"], guard.check(torch.ones(()), []))
    with Waits() as waits:
        guard.report()
    assert [line.partition(":")[0] for line in waits.lines] == ["training/nan_guard.py"]
    mask = torch.tensor([True, False])
    with Waits() as waits:
        torch.ones(2)[mask]
        torch.ones(2)[mask] = 0.0
    operators = {line.split()[-1] for line in waits.lines}
    assert "aten.index.Tensor" in operators
    assert "aten.index_put_.default" not in operators, "one value is written where the mask is, without looking for it"
