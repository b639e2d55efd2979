"""The whole training step of the scene stage, once for each way to compute its losses.

Light networks and four scales, as users train; random images, as no time depends on what they show. Two phases of the
stage: depth and pose, as it begins; and all together, with residual motion between two forward warps. Outside the
networks is everything that is neither a pass of a network nor the optimiser.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

import mcd
from benchmarks.bars import COMPILED
from benchmarks.clocks import captured, peak_bytes
from benchmarks.inputs import SOURCES, Scene, Size
from mcd.config import parse_config
from mcd.ops import OPERATORS
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.scene import SceneStage
from mcd.training.profiling import StepTimer
from mcd.training.state import make_optimizer

JOINT = {"motion_from": 0, "joint_from": 0}
PHASES: dict[str, dict[str, Any]] = {"depth and pose": {}, "all, with residual motion": JOINT}
LOSSES = ("view_synthesis_loss", "smoothness_loss")


class TrainingStep:
    """One stage, one batch, and several ways to take a step with them."""

    def __init__(self, phase: str, size: Size, device: torch.device, folder: Path, *, compiled: bool):
        batch, height, width = size
        config = parse_config(
            {
                "run": "step",
                "runs": str(folder),
                "device": str(device),
                "data": {"size": [height, width]},
                "scene": {"steps": 1, "batch": batch, **PHASES[phase]},
            },
            source="benchmark",
        )
        self.phase, self.size, self.device = phase, size, device
        self.stage = SceneStage(Context(config, Run(config), device))
        self.stage.set_mode(0)
        self.optimizer = make_optimizer(self.stage, 0)
        scene = Scene(size, device)
        self.batch = {"reference": scene.image(), "sources": scene.images(SOURCES), "K": scene.camera()[0]}
        self.timer = StepTimer(device)
        self._nets = self.stage.nets
        self._timed_nets = {role: as_node(net, self.timer) for role, net in self._nets.items()}
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
            ways[backend] = partial(self._phases, backend, self.stage.loss)
            if self.device.type == "cuda":
                ways[f"{backend}, graphed"] = self._graphed(backend)
        if compiled:
            ways[COMPILED] = partial(self._phases, "reference", torch.compile(self.stage.loss))
        return ways

    def _gradients(self, nets: dict[str, Any], loss: Callable[..., Any]) -> None:
        self.stage.nets = nets
        outputs = self.stage.forward(self.batch, 0)
        loss(self.batch, outputs, 0)["total"].backward()

    def _phases(self, backend: str, loss: Callable[..., Any]) -> dict[str, float]:
        """Seconds of one step, and how it spent them."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.timer("gradients"), mcd.use_backend(backend):
            self._gradients(self._timed_nets, loss)
        with self.timer("optimizer"):
            self.optimizer.step()
        self.timer.step()
        found = {name: value / 1e3 for name, value in self.timer.report().items()}
        return {
            "total": found["gradients"] + found["optimizer"],
            "outside networks": found["gradients"] - found["networks"],
            "networks": found["networks"],
            "optimizer": found["optimizer"],
        }

    def _graphed(self, backend: str) -> Callable[[], dict[str, float]]:
        """Everything before the optimiser as one CUDA graph, in which nothing is told apart."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        replay: Callable[[], Any] | None = None

        def gradients() -> list[Tensor | None]:
            self.optimizer.zero_grad(set_to_none=True)
            with mcd.use_backend(backend):
                self._gradients(self._nets, self.stage.loss)
            return [parameter.grad for parameter in parameters]

        def step() -> dict[str, float]:
            nonlocal replay
            replay = replay or captured(gradients)
            with self.timer("gradients"):
                found = replay()
            # Other ways have put gradients of their own there.
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            with self.timer("optimizer"):
                self.optimizer.step()
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
            self.seconds[name].append(self.ways[name]())

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
            "phase": self.phase,
            "size": list(self.size),
            "device": self.device.type,
            "rounds": self._rounds,
            "absent": self.absent,
            "contestants": contestants,
        }


def _median(rounds: list[dict[str, float]], phase: str) -> float:
    return statistics.median(each[phase] for each in rounds)


def as_node(net: nn.Module, timer: StepTimer) -> Callable[..., Any]:
    """The network as a single node of the graph, both passes of which are timed as `networks`."""

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, form: list[Any], anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            with timer("networks"), torch.enable_grad():
                ctx.inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
                ctx.outputs, spec = tree_flatten(net(*ctx.inputs))
            form.append(spec)
            return tuple(output.detach() for output in ctx.outputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            with timer("networks"):
                torch.autograd.backward(ctx.outputs, gradients)
            return None, None, *(tensor.grad for tensor in ctx.inputs)

    # Images need no gradient, and a node of which no input does would have none either.
    anchor = torch.zeros((), requires_grad=True)

    def run(*inputs: Tensor) -> Any:
        form: list[Any] = []
        outputs = Node.apply(form, anchor, *inputs)
        return tree_unflatten(outputs, form[0])

    return run
