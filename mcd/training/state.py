"""What a stage in training goes on from."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from mcd import world
from mcd.run.checkpoint import CheckpointError, load_state, save_state
from mcd.stages import TrainingStage
from mcd.training.together import equalise, normalise_together

LAST = "last"
"""Folder of a stage that holds its resumable state."""
COMPILED = {"depth", "pose", "motion", "scale"}
"""Nets that are one piece for torch.compile, where the config wants it."""


class TrainState:
    """Nets, optimiser, step, phase, best score and seconds of a stage; fresh, or as its last checkpoint left them.

    Raises:
        CheckpointError: the checkpoint is there but cannot be read.
    """

    def __init__(self, stage: TrainingStage):
        self.stage = stage
        self.path: Path = stage.folder / LAST / "state.pt"
        self.step, self.phase, self.best = 0, -1, math.inf
        self.optimizer: torch.optim.Optimizer | None = None
        self._mode: int | None = None
        seconds = 0.0
        stage.nets = {role: normalise_together(net) for role, net in stage.nets.items()}
        for role in COMPILED & stage.nets.keys() if stage.config.compile else ():
            stage.nets[role].compile(dynamic=False)
        saved = world.from_first(lambda: load_state(self.path))
        if saved is None:
            stage.initialise()
            equalise(stage.nets.values())
        else:
            try:
                seconds = self._restore(saved)
            except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                said = " ".join(str(error).split())
                raise CheckpointError(
                    f"{self.path} is no state of stage {stage.name} ({said}); delete it to start the stage again"
                ) from error
        self._begin = time.perf_counter() - seconds

    def _restore(self, saved: dict[str, Any]) -> float:
        """Take over a saved state; returns the seconds that it took."""
        stage = self.stage
        self.step, self.phase, self.best, seconds = (saved[key] for key in ("step", "phase", "best", "seconds"))
        for role, net in stage.nets.items():
            net.load_state_dict(saved["nets"][role])
        self.optimizer = make_optimizer(stage, self.step - 1)
        self.optimizer.load_state_dict(saved["optimizer"])
        return float(seconds)

    @property
    def seconds(self) -> float:
        """Training time so far, earlier processes included."""
        return time.perf_counter() - self._begin

    def begin_step(self) -> torch.optim.Optimizer:
        """Set modes and learning rate for the current step; a new phase gets a new optimiser and no best score yet."""
        stage = self.stage
        if self.optimizer is None or stage.phase(self.step) != self.phase:
            self.phase, self.best = stage.phase(self.step), math.inf
            self.optimizer = make_optimizer(stage, self.step)
        if self.phase != self._mode:
            stage.set_mode(self.step)
            self._mode = self.phase
        # One group a net, as `make_optimizer` made them.
        for role, group in zip(stage.active(self.step), self.optimizer.param_groups, strict=True):
            group["lr"] = stage.rate(role) * learning_rate(stage, self.step)
        return self.optimizer

    def keep_if_best(self, score: float) -> None:
        """Save the weights if no earlier validation of this phase was better, or if the schedule takes the last."""
        if score <= self.best or self.stage.schedule.select == "last":
            self.best = score
            self.stage.save_weights(self.step, score)

    def save(self) -> None:
        """Write the checkpoint in one piece, in the first process; the others wait for it."""
        assert self.optimizer is not None
        if world.is_first():
            self._write(self.optimizer)
        world.wait_for_all()

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        save_state(self.path, {
            "step": self.step,
            "phase": self.phase,
            "best": self.best,
            "seconds": self.seconds,
            "nets": {role: net.state_dict() for role, net in self.stage.nets.items()},
            "optimizer": optimizer.state_dict(),
        })  # fmt: skip


def make_optimizer(stage: TrainingStage, step: int) -> torch.optim.Optimizer:
    """The stage's optimiser over the nets that are optimised at ``step``, one group each."""
    return stage.optimizer([{"params": list(stage.nets[role].parameters())} for role in stage.active(step)])


def learning_rate(stage: TrainingStage, step: int) -> float:
    """Learning rate of a step: linear warm-up, the schedule's drops, and its steady decay."""
    schedule = stage.schedule
    rate = schedule.lr * min(1.0, (step + 1) / max(schedule.warmup, 1))
    for when, factor in schedule.drops:
        if step >= schedule.in_steps(when, stage.steps_per_epoch):
            rate *= factor
    if schedule.halve_every is not None:
        rate *= 0.5 ** (step / max(schedule.in_steps(schedule.halve_every, stage.steps_per_epoch), 1))
    return rate
