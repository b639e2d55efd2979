"""Step timer: how long each phase of a training step takes, without a synchronisation in the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "forward", "loss", "loss_backward", "backward", "optimizer")


class StepTimer:
    """Mean milliseconds of each phase since the last :meth:`report`.

    On CUDA the phases are timed by events, which are read (and waited for) only in :meth:`report`.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        # Waiting for data happens on the host, whatever the device.
        if self._cuda and phase != "data":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((phase, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin_s

    def step(self) -> None:
        self._steps += 1

    def report(self) -> dict[str, float]:
        """Milliseconds a step by phase; starts the next interval."""
        if self._events:
            self._events[-1][2].synchronize()
        for phase, begin, end in self._events:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + begin.elapsed_time(end) / 1e3
        steps = max(self._steps, 1)
        means = {phase: 1e3 * self._seconds.get(phase, 0.0) / steps for phase in PHASES}
        self._seconds, self._events, self._steps = {}, [], 0
        return means
