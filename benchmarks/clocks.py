"""How one call is timed: cold and warm, its forward pass and both passes, on CPU and on CUDA."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Passes = tuple[Callable[[], Any], Callable[[Any], Any]]
"""The forward pass, and the backward pass given what the forward pass returned."""

COLD_BYTES = 256 << 20  # read before a cold call; more than any cache in sight. What was written would be written back
COPY_BYTES = 256 << 20


class HostClock:
    """Both passes of a call are timed in one go. Cold: after caches were filled with something else."""

    def __init__(self, quick: bool):
        self._other = torch.ones((1 << 20 if quick else COLD_BYTES) // 4)

    def time(self, name: str, passes: Passes, waits: bool = False) -> dict[str, float]:
        torch.amax(self._other, 0)
        cold, warm = self._turn(passes), self._turn(passes)
        return {"forward_cold": cold[0], "both_cold": cold[1], "forward_warm": warm[0], "both_warm": warm[1]}

    def _turn(self, passes: Passes) -> tuple[float, float]:
        forward, backward = passes
        begin = time.perf_counter()
        outputs = forward()
        middle = time.perf_counter()
        gradients = backward(outputs)
        end = time.perf_counter()
        del outputs, gradients  # new tensors every time, given back outside the timed span
        return middle - begin, end - begin


class CudaClock:
    """Passes are captured in CUDA graphs once and replayed between events; what waits for the device runs eagerly."""

    replays = 20

    def __init__(self, quick: bool):
        self._other = torch.ones((1 << 20 if quick else COLD_BYTES) // 4, device="cuda")
        self._read = self._other.new_empty(())
        self._runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
        self.eager: set[str] = set()

    def time(self, name: str, passes: Passes, waits: bool = False) -> dict[str, float]:
        if name not in self._runs:
            self._runs[name] = self._prepare(name, passes, waits)
        replays = 3 if name in self.eager else self.replays
        times = {}
        for span, run in zip(("forward", "both"), self._runs[name], strict=True):
            cold = []
            for _ in range(replays):
                torch.amax(self._other, 0, out=self._read)
                cold.append(self._elapsed(run))
            times[f"{span}_cold"] = statistics.median(cold)
            # While the GPU is busy with this, the host gets ahead: what follows is not timed with its launches.
            torch.cuda._sleep(1_000_000)
            times[f"{span}_warm"] = self._elapsed(run, replays)
        return times

    def _elapsed(self, run: Callable[[], Any], count: int = 1) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    def _prepare(self, name: str, passes: Passes, waits: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
        forward, backward = passes
        both = lambda: backward(forward())  # noqa: E731
        if not waits:
            try:
                return captured(forward), captured(both)
            except RuntimeError as error:  # something in it waits, after all
                print(f"{name} is timed without a graph: {str(error).splitlines()[0]}")
                torch.cuda.synchronize()
        self.eager.add(name)
        return forward, both


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """The work of `run` as a CUDA graph; its results lie in the graph's own memory and change with every call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def copy_bandwidth(device: torch.device, quick: bool = False) -> float:
    """Bytes a second of a copy, counting those read and those written; the median of several."""
    source = torch.ones((1 << 20 if quick else COPY_BYTES) // 4, device=device)
    target = torch.ones_like(source)
    seconds = []
    for _ in range(3 if quick else 9):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most memory that torch held while `run` ran, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
