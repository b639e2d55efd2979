"""How the steps of a stage are launched: operator by operator, or as one CUDA graph a phase (`step` of the config)."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mcd import world
from mcd.data import Batch
from mcd.errors import StageError
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import GRAPH, StepTimer
from mcd.training.state import TrainState
from mcd.training.step import Result, compute_step

WARM_UP = 3
"""Steps of a phase before it may be captured: those that make the optimiser's state and choose algorithms."""
TRIES = 10
"""Steps of each kind that `auto` times."""

Capture = Callable[[Callable[[], Result]], tuple[Result, Callable[[], None]]]
"""Records what a function launches without doing it. Returns its result, and what does it, into that same result."""


class StepLauncher:
    """Takes the steps of a stage, one a call, eagerly or by replaying a graph that is captured anew in each phase.

    `choice` is "eager", "graphed", or "auto": whichever has the lower median of ten steps of one phase on this device.
    Stages that are not `graphable`, several processes, other devices than CUDA and batches of another shape are taken
    eagerly.

    Raises:
        StageError: a step cannot be captured.
    """

    def __init__(
        self, state: TrainState, timer: StepTimer, guard: NanGuard, choice: str, capture: Capture | None = None
    ):
        self._state, self._timer, self._guard = state, timer, guard
        device = state.stage.context.device
        self._cuda = device.type == "cuda"
        possible = state.stage.graphable and world.size() == 1 and (self._cuda or capture is not None)
        self._choice = choice if possible else "eager"
        if choice == "graphed" and not possible and state.stage.graphable and world.is_first():
            tqdm.write(f"{state.stage.name}: steps are eager: a CUDA graph wants one process and a CUDA device")
        self._capture = capture or _capture_cuda
        # Work that is captured must not have been done on the stream that everything else is launched on.
        self._side = torch.cuda.Stream(device) if self._cuda and self._choice != "eager" else None
        self._phase, self._taken = state.phase, 0
        self._graph: GraphedStep | None = None
        self._seconds: dict[str, list[float]] = {"eager": [], "graphed": []}

    def __call__(self, batch: Batch) -> Result:
        """The next step; what it returns holds until the one after it."""
        state = self._state
        optimizer = state.begin_step()
        if state.phase != self._phase:
            self._phase, self._taken, self._graph = state.phase, 0, None
            self._seconds = {"eager": [], "graphed": []}
        if self._choice == "auto":
            self._compare()
        if self._wants_graph() and self._graph is None:
            self._graph = self._captured(batch, optimizer)
        graph = self._graph if self._graph is not None and self._graph.serves(batch) else None
        begin = self._now()
        if graph is not None:
            with self._timer(GRAPH):
                result = graph(batch, optimizer)
        else:
            with self._beside():
                result = compute_step(state.stage, optimizer, batch, state.step, self._timer, self._guard)
        if self._choice == "auto" and self._taken >= WARM_UP:
            self._seconds["eager" if graph is None else "graphed"].append(self._now() - begin)
        self._guard.note(state.step, batch["frame"], result.bad)
        self._taken += 1
        return result

    def _wants_graph(self) -> bool:
        if self._choice == "auto":
            return len(self._seconds["eager"]) >= TRIES
        return self._choice == "graphed" and self._taken >= WARM_UP

    def _captured(self, batch: Batch, optimizer: torch.optim.Optimizer) -> GraphedStep:
        try:
            return GraphedStep(self._state, self._guard, batch, optimizer, self._capture)
        except RuntimeError as error:
            # No step follows: after a capture that fails, torch 2.11 believes that it goes on, and memory that several
            # streams have used, as that of batches, is not freed any more (pytorch/pytorch#180395).
            said = " ".join(str(error).split())[:200]
            raise StageError(
                f"stage {self._state.stage.name}: a step cannot be captured in a CUDA graph ({said}): set step=eager"
            ) from error

    def _compare(self) -> None:
        if len(self._seconds["graphed"]) >= TRIES:
            eager, graphed = (1e3 * statistics.median(self._seconds[kind]) for kind in ("eager", "graphed"))
            self._settle("graphed" if graphed < eager else "eager", f"{graphed:.1f} ms graphed, {eager:.1f} ms eager")

    def _settle(self, choice: str, why: str) -> None:
        self._choice = choice
        if choice == "eager":
            self._graph = None
        tqdm.write(f"{self._state.stage.name}: steps are {choice}: {why}")

    def _now(self) -> float:
        """The time; while both kinds are compared, when all that was launched is done."""
        if self._choice == "auto" and self._cuda:
            torch.cuda.synchronize(self._state.stage.context.device)
        return time.perf_counter()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream for what comes before a capture."""
        if self._side is None or self._choice == "eager" or self._graph is not None:
            yield
            return
        main = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            yield
        main.wait_stream(self._side)


class GraphedStep:
    """The step of a phase as a graph. What the host says of a step, its batch and its learning rates, lies in tensors
    that stay; so do its results."""

    def __init__(
        self, state: TrainState, guard: NanGuard, batch: Batch, optimizer: torch.optim.Optimizer, capture: Capture
    ):
        stage, untimed = state.stage, StepTimer(torch.device("cpu"))
        self._batch = {name: _copy(value) for name, value in batch.items()}
        self._rates = [torch.tensor(group["lr"], device=stage.context.device) for group in optimizer.param_groups]
        eager = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        try:
            self._result, self._replay = capture(
                lambda: compute_step(stage, optimizer, self._batch, state.step, untimed, guard)
            )
        finally:
            # As a checkpoint holds them, and an eager step wants them.
            for group, (rate, capturable) in zip(optimizer.param_groups, eager, strict=True):
                group["lr"], group["capturable"] = rate, capturable

    def serves(self, batch: Batch) -> bool:
        """Whether a batch has the tensors of the captured one."""
        return batch.keys() == self._batch.keys() and all(
            _kind(batch[name]) == _kind(value) for name, value in self._batch.items()
        )

    def __call__(self, batch: Batch, optimizer: torch.optim.Optimizer) -> Result:
        names = [name for name, value in self._batch.items() if isinstance(value, Tensor)]
        torch._foreach_copy_([self._batch[name] for name in names], [batch[name] for name in names])
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        self._replay()
        return self._result._replace(bad=self._result.bad.clone())


def _copy(value: Any) -> Any:
    return torch.empty_like(value).copy_(value) if isinstance(value, Tensor) else value


def _kind(value: Any) -> tuple[Any, ...] | None:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _capture_cuda(step: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    # Graphs of earlier steps that only cycles of references keep would lead a captured backward to their streams.
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    # The loader's thread pins memory meanwhile, which is no part of the step.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return result, graph.replay
