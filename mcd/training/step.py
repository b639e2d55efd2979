"""One optimisation step: forward, loss, backward, the guard, the optimiser."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mcd.data import Batch
from mcd.stages import TrainingStage
from mcd.stages.stage import Outputs
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import StepTimer
from mcd.training.state import TrainState
from mcd.training.together import average_gradients


class Result(NamedTuple):
    """What a step leaves on the device."""

    terms: dict[str, Tensor]
    """Loss terms, scalars; `total` was minimised."""
    outputs: Outputs
    """What the networks returned."""
    bad: Tensor
    """1 where the step was not finite and left the weights as they were, else 0."""


def take_step(state: TrainState, batch: Batch, timer: StepTimer, guard: NanGuard) -> Result:
    """The next step of a stage, operator by operator."""
    result = compute_step(state.stage, state.begin_step(), batch, state.step, timer, guard)
    guard.note(state.step, batch["frame"], result.bad)
    return result


def compute_step(
    stage: TrainingStage,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    timer: StepTimer,
    guard: NanGuard,
) -> Result:
    """What a step asks of the device. The host neither waits for it nor keeps anything: a CUDA graph can hold it."""
    guard.remember(stage.nets)
    with timer("forward"):
        outputs = stage.forward(batch, step)
    with timer("loss"):
        leaves, cut = cut_graph(outputs)
        terms = stage.loss(batch, leaves, step)
    with timer("loss_backward"):
        terms["total"].backward()
    with timer("backward"):
        used = [(tensor, leaf.grad) for tensor, leaf in cut if leaf.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in used], [grad for _, grad in used])
    with timer("optimizer"):
        nets = [stage.nets[role] for role in stage.active(step)]
        loss = average_gradients(nets, terms["total"])
        norms = [clip_gradient(net, stage.schedule.clip) for net in nets if has_gradient(net)]
        bad = guard.check(loss, norms)
        # The fused optimisers leave a step out where this is set: the protocol of torch.amp.GradScaler.
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Result(terms, leaves, bad)


def cut_graph(outputs: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor]]]:
    """The outputs as leaves, and every (output, leaf) that carries a gradient.

    The loss is then differentiated apart from the networks, so that both can be timed, and what the loss saved is
    free before the networks' backward begins.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    return {name: _as_leaves(value, pairs) for name, value in outputs.items()}, pairs


def _as_leaves(value: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    # No function within the function that keeps `pairs`: such a one refers to itself, and so a step's graph would live
    # until some later garbage collection.
    if isinstance(value, list):
        return [_as_leaves(item, pairs) for item in value]
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    pairs.append((value, value.detach().requires_grad_()))
    return pairs[-1][1]


def has_gradient(net: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in net.parameters())


def clip_gradient(net: nn.Module, largest: float | None) -> Tensor:
    """Clip a net's gradient to a norm; returns the norm before, without waiting for the device."""
    return torch.nn.utils.clip_grad_norm_(net.parameters(), math.inf if largest is None else largest)
