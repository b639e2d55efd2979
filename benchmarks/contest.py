"""Backends and peers of one operator side by side: checked against float64 first, then timed in turn."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import SavedForBackward, leaves, mapped
from torch import Tensor
from torch.utils._pytree import tree_flatten

from benchmarks.bars import COMPILED
from benchmarks.clocks import CudaClock, HostClock, Passes, peak_bytes
from benchmarks.inputs import Size, make
from benchmarks.peers import OTHER_FUNCTIONS, PEERS
from mcd import ops
from mcd.ops import OPERATORS
from mcd.ops.backend import BACKENDS

# Float32 moves a few pixels over a border, a minimum or the auto-mask; a wrong formula moves most of them.
FLIPPED = 0.01
SMALL = 1000  # entries below which a share says nothing
# Few numbers sum over pixels. Of terms of random sign a share f that flips moves the sum by about sqrt(f) of its size:
# 1e-4 of the pixels of a wide image lie within float32's rounding of a border, 1 %, of which the largest of dozens of
# entries has a multiple.
SUMMED = 0.05


class Contestant:
    """One implementation: what it returns, its gradients, and what was measured of it."""

    def __init__(self, function: Callable[..., Any], waits: bool = False):
        self.function, self.waits = function, waits
        self.times: dict[str, list[float]] = {}
        self.memory: dict[str, int] = {}


class Contest:
    """All that can compute `operator` on `device`, on one sample of training size."""

    def __init__(
        self,
        operator: str,
        size: Size,
        device: torch.device,
        *,
        compiled: bool,
        peers: bool = True,
        quick: bool = False,
    ):
        self.operator, self.size, self.device = OPERATORS[operator], size, device
        self.sample = make(operator, size, device)
        self.absent: dict[str, str] = {}
        self.contestants = self._assemble(compiled, peers)
        self._clock = CudaClock(quick) if device.type == "cuda" else HostClock(quick)
        self._wanted = [leaf for leaf in leaves(self.sample) if leaf.requires_grad]
        self._weights: list[Tensor] = []
        self.scalar = False  # whether all that has a gradient is a scalar; known after check()
        self._round = 0

    def _assemble(self, compiled: bool, peers: bool) -> dict[str, Contestant]:
        public, found = getattr(ops, self.operator.name), {}
        for backend in reversed(BACKENDS):
            reason = self.operator.why_not(backend, self.device.type)
            if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
                reason = reason or "its interpreter is no contestant"
            if reason is None:
                found[backend] = Contestant(partial(public, backend=backend))
            else:
                self.absent[backend] = reason
        if compiled:
            found[COMPILED] = Contestant(torch.compile(partial(public, backend="reference"), dynamic=False))
        for name, peer in PEERS.get(self.operator.name, {}).items() if peers else ():
            reason = peer.why_not(self.device.type)
            if reason is None:
                found[name] = Contestant(peer.run, peer.waits)
            else:
                self.absent[name] = reason
        return found

    def check(self) -> None:
        """Outputs and gradients of every contestant against the reference in float64; measures memory on the way.

        Raises:
            AssertionError: a contestant computes something else. One that cannot run is left out, with the reason,
                unless it is a backend.
        """
        truth = self._truth()
        for name, contestant in list(self.contestants.items()):
            try:
                outputs, gradients = self._results(contestant)
            except Exception as error:
                if name in BACKENDS:
                    raise
                self.absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                del self.contestants[name]
                continue
            if name not in OTHER_FUNCTIONS:
                assert_agrees(f"{self.operator.name}, {name}", [*outputs, *gradients], self._matching(truth, outputs))
            del outputs, gradients
            contestant.memory = self._memory(name, contestant)

    def _truth(self) -> tuple[list[Tensor], list[Tensor]]:
        exact = mapped(self.sample, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        outputs = _tensors(self.operator.reference(*exact.args, **exact.kwargs))
        generator = torch.Generator().manual_seed(29)
        self._weights = [
            (torch.randn(output.shape, generator=generator) if output.dim() else torch.ones(())).to(self.device)
            for output in outputs
        ]
        self.scalar = all(output.dim() == 0 for output in outputs if output.requires_grad)
        wanted = [leaf for leaf in leaves(exact) if leaf.requires_grad]
        return [output.detach() for output in outputs], self._gradients(outputs, wanted)

    def _gradients(self, outputs: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        used = [i for i, output in enumerate(outputs) if output.requires_grad]
        # The weights are float32 already where this is timed.
        weights = [self._weights[i].to(outputs[i].dtype) for i in used]
        got = torch.autograd.grad([outputs[i] for i in used], wanted, weights, allow_unused=True) if used else ()
        return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(got, wanted, strict=False)]

    def _results(self, contestant: Contestant) -> tuple[list[Tensor], list[Tensor]]:
        forward, backward = self.passes(contestant)
        outputs = forward()
        return [output.detach() for output in outputs], backward(outputs)

    @staticmethod
    def _matching(truth: tuple[list[Tensor], list[Tensor]], outputs: list[Tensor]) -> list[Tensor]:
        return [*truth[0][: len(outputs)], *truth[1]]

    def passes(self, contestant: Contestant) -> Passes:
        def forward() -> list[Tensor]:
            return _tensors(contestant.function(*self.sample.args, **self.sample.kwargs))

        return forward, partial(self._gradients, wanted=self._wanted)

    def _memory(self, name: str, contestant: Contestant) -> dict[str, int]:
        forward, backward = self.passes(contestant)
        memory = {"peak_bytes": peak_bytes(lambda: backward(forward()), self.device)}
        if name != COMPILED:  # hooks would make it compile once more
            with SavedForBackward(self.sample) as saved:
                outputs = forward()
            memory["saved_bytes"] = saved.bytes(outputs)
        return memory

    def round(self) -> None:
        """Every contestant once, each round beginning with another one."""
        names = list(self.contestants)
        first = self._round % len(names)
        self._round += 1
        for name in names[first:] + names[:first]:
            contestant = self.contestants[name]
            for key, seconds in self._clock.time(name, self.passes(contestant), contestant.waits).items():
                contestant.times.setdefault(key, []).append(seconds)

    def forget(self) -> None:
        """Drop what was timed so far: the warm-up."""
        for contestant in self.contestants.values():
            contestant.times = {}
        self._round = 0

    def summary(self, copy: float) -> dict[str, Any]:
        """A row of the results: seconds (medians over rounds), ratios to native (medians within rounds), memory."""
        moved = bytes_moved(self)
        row: dict[str, Any] = {
            "operator": self.operator.name,
            "size": list(self.size),
            "device": self.device.type,
            "rounds": self._round,
            "bytes": moved,
            "copy_bytes_per_s": copy,
            "absent": self.absent,
            "contestants": {},
        }
        native = self.contestants.get("native")
        for name, contestant in self.contestants.items():
            seconds = {key: statistics.median(times) for key, times in contestant.times.items()}
            entry: dict[str, Any] = {"seconds": seconds, **contestant.memory}
            entry["bytes_per_s"] = {key: moved[key.split("_")[0]] / value for key, value in seconds.items()}
            entry["share_of_copy"] = {key: rate / copy for key, rate in entry["bytes_per_s"].items()}
            if native is not None:
                entry["times_native"] = {
                    key: statistics.median(a / b for a, b in zip(times, native.times[key], strict=True))
                    for key, times in contestant.times.items()
                }
            if isinstance(self._clock, CudaClock):
                entry["graphed"] = name not in self._clock.eager
            row["contestants"][name] = entry
        return row


def bytes_moved(contest: Contest) -> dict[str, int]:
    """Compulsory bytes: of the forward pass, and of both.

    The backward pass writes the gradients. Unless the result is a scalar, whose gradients a single pass can find, it
    also reads again what the forward pass read, and the outputs' gradients in place of the outputs.
    """
    assert contest.operator.bytes_moved is not None, f"{contest.operator.name} has no bytes_moved"
    forward = contest.operator.bytes_moved(contest.sample)
    wanted = [leaf for leaf in leaves(contest.sample) if leaf.requires_grad]
    return {"forward": forward, "both": forward * (1 if contest.scalar else 2) + sum(leaf.nbytes for leaf in wanted)}


def assert_agrees(what: str, actual: list[Tensor], truth: list[Tensor]) -> None:
    """All but a few entries within a thousandth; one number within a hundredth; few, which sum over pixels, SUMMED."""
    assert len(actual) == len(truth), f"{what}: {len(actual)} results for {len(truth)}"
    for i, (a, t) in enumerate(zip(actual, truth, strict=True)):
        assert a.shape == t.shape, f"{what}[{i}]: {list(a.shape)} and {list(t.shape)}"
        if not t.numel():
            continue
        a, t = a.double(), t.double()
        rms = t.square().mean().sqrt()
        small = t.numel() < SMALL
        tolerance = 0.01 if t.numel() == 1 else SUMMED if small else 1e-3
        off = ~((a - t).abs() <= tolerance * (t.abs() + rms))
        share = float(off.double().mean())
        assert share <= (0 if small else FLIPPED), f"{what}[{i}]: {share:.1%} of {t.numel()} entries are off"


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor)]
