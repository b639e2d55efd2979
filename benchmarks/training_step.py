"""The whole training step of the scene stage, once for each way to compute its losses.

Light networks and four scales, as users train; random images, as no time depends on what they show. The phases are
those of `mcd.train`: its losses are differentiated apart from the networks, which tells their time from the networks'.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import mcd
from benchmarks.bars import COMPILED
from benchmarks.clocks import captured, peak_bytes
from benchmarks.inputs import SOURCES, Scene, Size
from mcd.config import parse_config
from mcd.ops import OPERATORS
from mcd.profiling import StepTimer
from mcd.run import Run
from mcd.stages import Context
from mcd.stages.scene import SceneStage
from mcd.train import cut_graph, make_optimizer

OUTSIDE_NETWORKS = ("loss", "loss_backward")
LOSSES = ("view_synthesis_loss", "smoothness_loss")


class TrainingStep:
    """One stage, one batch, and several ways to take a step with them."""

    def __init__(self, size: Size, device: torch.device, folder: Path, *, compiled: bool):
        batch, height, width = size
        config = parse_config(
            {
                "run": "step",
                "runs": str(folder),
                "device": str(device),
                "data": {"size": [height, width]},
                "scene": {"steps": 1, "batch": batch},
            },
            source="benchmark",
        )
        self.size, self.device = size, device
        self.stage = SceneStage(Context(config, Run(config), device))
        self.stage.set_mode(0)
        self.optimizer = make_optimizer(self.stage, 0)
        scene = Scene(size, device)
        self.batch = {"reference": scene.image(), "sources": scene.images(SOURCES), "K": scene.camera()[0]}
        self.timer = StepTimer(device)
        self.absent: dict[str, str] = {}
        self.ways = self._ways(compiled)
        self.seconds: dict[str, list[dict[str, float]]] = {name: [] for name in self.ways}
        self.memory: dict[str, int] = {}
        self._rounds = 0

    def _ways(self, compiled: bool) -> dict[str, Callable[[], dict[str, float]]]:
        ways: dict[str, Callable[[], dict[str, float]]] = {}
        for backend in ("reference", "native", "triton"):
            # A backend that has some of the operators leaves the others to `auto`.
            reasons = [OPERATORS[name].why_not(backend, self.device.type) for name in LOSSES]
            if all(reasons) or (backend == "triton" and self.device.type == "cpu"):
                self.absent[backend] = reasons[0] or "its interpreter is no contestant"
                continue
            ways[backend] = lambda backend=backend: self._phases(backend, self.stage.loss)
            if self.device.type == "cuda":
                ways[f"{backend}, graphed"] = self._graphed(backend)
        if compiled:
            loss = torch.compile(self.stage.loss)
            ways[COMPILED] = lambda: self._phases("reference", loss)
        return ways

    def _gradients(self, loss: Callable[..., Any], timer: Any) -> None:
        with timer("forward"):
            outputs = self.stage.forward(self.batch, 0)
        with timer("loss"):
            leaves, cut = cut_graph(outputs)
            terms = loss(self.batch, leaves, 0)
        with timer("loss_backward"):
            terms["total"].backward()
        with timer("backward"):
            used = [(tensor, leaf.grad) for tensor, leaf in cut if leaf.grad is not None]
            torch.autograd.backward([tensor for tensor, _ in used], [gradient for _, gradient in used])

    def _optimize(self, timer: Any) -> None:
        with timer("optimizer"):
            self.optimizer.step()

    def _phases(self, backend: str, loss: Callable[..., Any]) -> dict[str, float]:
        """Seconds by phase of one step."""
        self.optimizer.zero_grad(set_to_none=True)
        with mcd.use_backend(backend):
            self._gradients(loss, self.timer)
        self._optimize(self.timer)
        self.timer.step()
        return {phase: value / 1e3 for phase, value in self.timer.report().items()}

    def _graphed(self, backend: str) -> Callable[[], dict[str, float]]:
        """Everything before the optimiser as one CUDA graph, whose phases are not told apart."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        replay: Callable[[], Any] | None = None

        def gradients() -> list[torch.Tensor | None]:
            self.optimizer.zero_grad(set_to_none=True)
            with mcd.use_backend(backend):
                self._gradients(self.stage.loss, lambda phase: nullcontext())
            return [parameter.grad for parameter in parameters]

        def step() -> dict[str, float]:
            nonlocal replay
            replay = replay or captured(gradients)
            with self.timer("forward"):
                found = replay()
            # Other ways have put gradients of their own there.
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            self._optimize(self.timer)
            self.timer.step()
            return {"total": sum(self.timer.report().values()) / 1e3}

        return step

    def check(self) -> None:
        """Take one step each way, and leave out what cannot; measures memory on the way."""
        for name, way in list(self.ways.items()):
            try:
                way()
                if "graphed" not in name:  # whose memory was taken when it was captured
                    self.memory[name] = peak_bytes(way, self.device)
            except Exception as error:
                if name in mcd.available_backends(self.device):
                    raise
                self.absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                del self.ways[name], self.seconds[name]

    def round(self) -> None:
        """A step each way, each round beginning with another one."""
        names = list(self.ways)
        first = self._rounds % len(names)
        self._rounds += 1
        for name in names[first:] + names[:first]:
            phases = self.ways[name]()
            phases.setdefault("total", sum(phases.values()))
            if "loss" in phases:
                phases["outside networks"] = sum(phases[phase] for phase in OUTSIDE_NETWORKS)
            self.seconds[name].append(phases)

    def forget(self) -> None:
        """Drop what was timed so far: the warm-up."""
        self.seconds, self._rounds = {name: [] for name in self.ways}, 0

    def summary(self) -> dict[str, Any]:
        """A row of the results: medians over rounds in seconds, ratios to native within rounds."""
        contestants: dict[str, Any] = {}
        for name, rounds in self.seconds.items():
            entry: dict[str, Any] = {"seconds": {phase: _median(rounds, phase) for phase in rounds[0]}}
            entry["peak_bytes"] = self.memory.get(name)
            if "native" in self.seconds:
                pairs = list(zip(rounds, self.seconds["native"], strict=True))
                shared = [phase for phase in ("total", "outside networks") if phase in rounds[0]]
                entry["times_native"] = {
                    phase: statistics.median(a[phase] / b[phase] for a, b in pairs) for phase in shared
                }
            contestants[name] = entry
        return {
            "size": list(self.size),
            "device": self.device.type,
            "rounds": self._rounds,
            "absent": self.absent,
            "contestants": contestants,
        }


def _median(rounds: list[dict[str, float]], phase: str) -> float:
    return statistics.median(each[phase] for each in rounds)
