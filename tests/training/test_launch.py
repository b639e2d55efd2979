"""Steps as CUDA graphs, without a GPU: a tape of what a step launches, replayed into the memory that it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shares import CPU, global_batch, make_state, prepare, share_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcd.errors import StageError
from mcd.training.launch import TRIES, WARM_UP, StepLauncher
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import StepTimer
from mcd.training.state import TrainState
from mcd.training.step import Result, take_step

CASES = (
    "scene: together",
    "object",
    "final",
    *(pytest.param(f"scene: {phase}", marks=pytest.mark.slow) for phase in ("depth and pose", "motion")),
)
STEPS = 6


class Tape(TorchDispatchMode):
    """Remembers operators with their tensors, as a graph does, and nothing of what the host thinks."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.done.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, held in self.done:
            if any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns):
                continue  # a view of memory that stays
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(held), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def tensors_of(state: TrainState) -> Iterator[Tensor]:
    for net in state.stage.nets.values():
        yield from net.state_dict(keep_vars=True).values()
    assert state.optimizer is not None
    for kept in state.optimizer.state.values():
        yield from (value for value in kept.values() if isinstance(value, Tensor))


def tape_of(state: TrainState) -> Callable[[Callable[[], Result]], tuple[Result, Callable[[], None]]]:
    def capture(step: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        before = [tensor.detach().clone() for tensor in tensors_of(state)]
        with Tape() as tape:
            result = step()
        # A capture does nothing.
        with torch.no_grad():
            for tensor, old in zip(tensors_of(state), before, strict=True):
                tensor.copy_(old)
        return result, tape.replay

    return capture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("launch")
    prepare(place)
    return place


def ready(case: str, folder: Path) -> TrainState:
    """A state that stays in its phase, whose learning rate changes from step to step, to numbers that float32 holds."""
    state = make_state(case, folder, torch.float32)
    stage, first = state.stage, state.step
    kind = type(stage)
    stage.phase = lambda step: kind.phase(stage, min(step, first))  # type: ignore[method-assign]
    stage.schedule = stage.schedule.model_copy(update={"lr": 2.0**-10, "warmup": 16})
    return state


def batch_of(number: int) -> dict[str, Any]:
    return share_of(global_batch(number), torch.float32)


def take(launch: Callable[[dict[str, Any]], Result], state: TrainState, batch: dict[str, Any]) -> Result:
    result = launch(batch)
    state.step += 1
    return result


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_eager_ones(case: str, folder: Path) -> None:
    state, other = ready(case, folder), ready(case, folder)
    guard, timer = NanGuard("skip", CPU), StepTimer(CPU)
    launch = StepLauncher(other, timer, guard, "graphed", tape_of(other))
    for number in range(STEPS):
        batch = batch_of(number)
        if number == STEPS - 2:
            batch |= {name: torch.full_like(batch[name], torch.nan) for name in ("reference", "sources")}
        wanted = take(lambda batch: take_step(state, batch, StepTimer(CPU), NanGuard("skip", CPU)), state, batch)
        found = take(launch, other, batch)
        assert wanted.terms.keys() == found.terms.keys()
        for name, term in wanted.terms.items():
            torch.testing.assert_close(found.terms[name], term, rtol=0, atol=0, equal_nan=True, msg=f"{number} {name}")
    assert timer.report()["graph"] > 0
    for mine, same in zip(tensors_of(other), tensors_of(state), strict=True):
        assert torch.equal(mine, same)
    guard.report()
    assert guard.skipped == 1


def test_a_checkpoint_is_that_of_eager_steps(folder: Path) -> None:
    state = ready("object", folder)
    launch = StepLauncher(state, StepTimer(CPU), NanGuard("stop", CPU), "graphed", tape_of(state))
    for number in range(WARM_UP + 2):
        take(launch, state, batch_of(number))
    assert state.optimizer is not None
    (group, *_) = state.optimizer.state_dict()["param_groups"]
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False


def test_without_a_gpu_a_line_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ready("object", folder)
    take(StepLauncher(state, StepTimer(CPU), NanGuard("stop", CPU), "graphed"), state, batch_of(0))
    assert "object: steps are eager: a CUDA graph wants one process and a CUDA device" in capsys.readouterr().out


def test_another_batch_is_taken_eagerly(folder: Path) -> None:
    state, timer = ready("object", folder), StepTimer(CPU)
    launch = StepLauncher(state, timer, NanGuard("stop", CPU), "graphed", tape_of(state))
    for number in range(WARM_UP + 1):
        take(launch, state, batch_of(number))
    timer.report()
    smaller = {name: value[:4] for name, value in batch_of(0).items()}
    take(launch, state, smaller)
    assert "graph" not in timer.report()


def test_auto_times_both_and_says_which_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, timer = ready("object", folder), StepTimer(CPU)
    launch = StepLauncher(state, timer, NanGuard("stop", CPU), "auto", tape_of(state))
    for _ in range(WARM_UP + 2 * TRIES):
        take(launch, state, batch_of(0))
    assert "steps are" not in capsys.readouterr().out
    take(launch, state, batch_of(0))
    said = capsys.readouterr().out
    assert "object: steps are " in said
    assert " ms graphed, " in said


def test_auto_compares_within_a_phase_and_warms_up_in_the_next(folder: Path) -> None:
    state, other = ready("object", folder), ready("object", folder)
    timer, first = StepTimer(CPU), WARM_UP + TRIES + 2
    for each in (state, other):
        each.stage.phase = lambda step: int(step >= first)  # type: ignore[method-assign]
    launch = StepLauncher(other, timer, NanGuard("stop", CPU), "auto", tape_of(other))
    # A step captured before the optimiser has its state would make that anew each time.
    for number in range(first + WARM_UP + TRIES + 2):
        batch = batch_of(number % 3)
        take(lambda batch: take_step(state, batch, StepTimer(CPU), NanGuard("stop", CPU)), state, batch)
        take(launch, other, batch)
        eager = not first - 2 <= number < first and number < first + WARM_UP + TRIES
        assert ("graph" in timer.report()) != eager, number
    for mine, same in zip(tensors_of(other), tensors_of(state), strict=True):
        assert torch.equal(mine, same)


@pytest.mark.parametrize("choice", ["graphed", "auto"])
def test_what_cannot_be_captured(choice: str, folder: Path) -> None:
    state = ready("object", folder)

    def refuse(step: Callable[[], Result]) -> Any:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    launch = StepLauncher(state, StepTimer(CPU), NanGuard("stop", CPU), choice, refuse)
    count = WARM_UP if choice == "graphed" else WARM_UP + TRIES
    for _ in range(count):
        take(launch, state, batch_of(0))
    with pytest.raises(
        StageError, match="stage object: a step cannot be captured .*not permitted when stream.*step=eager"
    ):
        launch(batch_of(0))


def test_a_step_leaves_no_graph_behind(folder: Path) -> None:
    # The nodes that add up gradients remember the stream that they were made on.
    state = ready("object", folder)
    made: list[weakref.ref[Tensor]] = []
    forward = state.stage.forward

    def watched(batch: dict[str, Any], step: int) -> dict[str, Any]:
        outputs = forward(batch, step)
        made.extend(weakref.ref(value) for value in outputs.values() if value.requires_grad)
        return outputs

    state.stage.forward = watched  # type: ignore[method-assign]
    gc.disable()
    try:
        take_step(state, batch_of(0), StepTimer(CPU), NanGuard("stop", CPU))
        assert made and all(output() is None for output in made)
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.compiles
def test_compiled_nets_learn_the_same_and_are_saved_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcd.training.state.COMPILED", {"pose"})  # the others take minutes
    guard, losses, keys = NanGuard("stop", CPU), [], []
    for compiled in (False, True):
        state = make_state("object", folder, torch.float64, compiled=compiled)
        found = []
        for number in range(3):
            batch = share_of(global_batch(number), torch.float64)
            found.append(take_step(state, batch, StepTimer(CPU), guard).terms["total"].detach())
            state.step += 1
        losses.append(torch.stack(found))
        keys.append([list(net.state_dict()) for net in state.stage.nets.values()])
        assert (state.stage.nets["pose"]._compiled_call_impl is not None) == compiled
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert not torch.equal(losses[1], losses[0]), "compiled code rounds in another way"
    assert keys[0] == keys[1]
