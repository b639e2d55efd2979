"""Where the time of a run goes: milliseconds by phase in its log, and named ranges for profilers.

Ranges are off, and then cost nothing. `MCD_NVTX=1` sends them to NVTX (domain `mcd`), `--profile START:STOP` to the
profiler that it opens: `forward`, `loss`, … are the phases of a step, `backward_warp.forward` and
`backward_warp.backward` the passes of an operator, whichever backend serves it. Inside compiled code there are none.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from mcd.extras import extra
from mcd.ops import ranges
from mcd.ops.ranges import nvtx_range, torch_range

PHASES = ("data", "forward", "loss", "loss_backward", "backward", "optimizer")
GRAPH = "graph"
"""What stands in a log for all phases but data where a step is launched as one piece."""


class ProfileWindow:
    """The steps START to STOP - 1 of a process's training, counted from 0 over all its stages, under a profiler.

    Under nsys the window is that of cudaProfilerStart and cudaProfilerStop, with NVTX ranges. Otherwise torch.profiler
    writes `profile.json` into `folder`, for chrome://tracing or ui.perfetto.dev. `steps` None: no window.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._start, self._stop = steps or (-1, -1)
        self._folder = folder
        self._step = 0
        self._sink = nvtx_range if under_nsys() else torch_range
        self._trace: torch.profiler.profile | None = None

    def step(self) -> None:
        """To be called before every step."""
        if self._step == self._start:
            self._open()
        elif self._step == self._stop:
            self.close()
        self._step += 1

    def _open(self) -> None:
        # NVTX ranges may be on already, by MCD_NVTX.
        if self._sink not in ranges.sinks:
            ranges.sinks.append(self._sink)
        if under_nsys():
            with extra("profile", "a profile under nsys"):
                import nvtx  # noqa: F401 - before the first range wants it
            torch.cuda.profiler.start()
        else:
            # Of its own accord it looks for a GPU where there is only the build for one, and complains on stderr.
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._trace = torch.profiler.profile(activities=kinds, acc_events=True)
            self._trace.start()

    def close(self) -> None:
        """End the window if it is open: at its last step, or where training ends before it. Says so if it never opened,
        as where the stages of a run are finished already."""
        if self._start >= self._step:
            print(f"profile: none; the window begins with step {self._start}, and {self._step} steps were trained")
        if not self._start < self._step <= self._stop:
            return
        self._start = self._stop = -1
        if self._trace is None:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        else:
            self._trace.stop()
            path = self._folder / "profile.json"
            self._trace.export_chrome_trace(str(path))
            print(f"profile: {path}")
        ranges.sinks.remove(self._sink)


def step_window(text: str) -> tuple[int, int]:
    """START:STOP as the command line has it."""
    start, separator, stop = text.partition(":")
    if not (separator and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STOP, two step numbers, the smaller one first")
    return int(start), int(stop)


def under_nsys() -> bool:
    """Whether Nsight Systems has started this process, and there is a CUDA device to profile."""
    return "NSYS_PROFILING_SESSION_ID" in os.environ and torch.cuda.is_available()


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
        with ranges.range_of(phase) if ranges.sinks else nullcontext():
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
        means = {phase: 1e3 * self._seconds.get(phase, 0.0) / steps for phase in (*PHASES, *self._seconds)}
        self._seconds, self._events, self._steps = {}, [], 0
        return means
