"""The parts of ``benchmarks/gpu.sh`` that are Python: ``python -m benchmarks.gpu PART RESULTS.json``.

    smoke       every operator against the reference at the sizes of its tests; ends at the first wrong result
    operators   contests at the first size: native, Triton, the reference
    step        the training step: native, graphed, the reference
    small       every operator once at the sizes of its tests, for compute-sanitizer
    kernels     five kernels once at full size, for Nsight Compute
    table       print the short table

Results are written after every row. What has begun is noted first, so that a call after a crash goes on behind it:
exit status 3 says that the GPU has to be left to a new process. What ran when the time was over is noted as that.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CRASHED = 3


class Stopped(BaseException):
    """`timeout` has ended the process."""


def stop(*_: Any) -> None:
    raise Stopped


class Results:
    """The results file: a document in `report`'s reduced form, with notes on what was tried."""

    def __init__(self, path: Path):
        self.path = path
        self.document: dict[str, Any] = {"machine": {}, "rows": [], "tried": {}}
        if path.is_file():
            self.document = json.loads(path.read_text())

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.document, indent=1) + "\n")
        temporary.replace(self.path)

    def attempt(self, what: str, make_row: Callable[[], dict[str, Any]]) -> None:
        """Add the row, in place of the one of the same kind, operator or phase, and size, or note why there is none."""
        if what in self.document["tried"]:
            return
        self.document["tried"][what] = "crashed"
        self.save()
        try:
            row = make_row()
        except Stopped:
            self.document["tried"][what] = "stopped: the time was over"
            self.save()
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.document["tried"][what] = reason
            print(f"{what}: {reason}", flush=True)
        else:
            place = ("kind", "operator", "phase", "size")
            key = [row.get(name) for name in place]
            others = [other for other in self.document["rows"] if [other.get(name) for name in place] != key]
            self.document["rows"] = [*others, row]
            self.document["tried"][what] = "done"
        self.save()
        self._leave_if_crashed(what)

    def _leave_if_crashed(self, what: str) -> None:
        import torch

        if not torch.cuda.is_available():
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self.document["tried"][what] = f"the GPU failed: {str(error).splitlines()[0]}"
            self.save()
            sys.exit(CRASHED)


def operators(results: Results, device: Any, quick: bool, seconds: float) -> None:
    """All operators at the first size, as long as there is time."""
    from benchmarks.clocks import copy_bandwidth
    from benchmarks.conftest import FULL, QUICK
    from benchmarks.contest import Contest
    from mcd.ops import OPERATORS

    size = (QUICK if quick else FULL)[0]
    copy = copy_bandwidth(device, quick)
    deadline = time.monotonic() + seconds
    for name in OPERATORS:
        if time.monotonic() > deadline:
            print(f"no time left for {name}", flush=True)
            continue

        def row(name: str = name) -> dict[str, Any]:
            contest = Contest(name, size, device, compiled=False, quick=quick)
            contest.check()
            contest.round()
            contest.forget()
            for _ in range(2 if quick else 5):
                contest.round()
            return {"kind": "operator", **contest.summary(copy)}

        results.attempt(f"{name} {'x'.join(map(str, size))}", row)


def step(results: Results, device: Any, quick: bool) -> None:
    from benchmarks.conftest import FULL
    from benchmarks.training_step import PHASES, TrainingStep

    def row(phase: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            size = (2, 64, 96) if quick else FULL[0]
            training = TrainingStep(phase, size, device, Path(folder), compiled=False)
            training.check()
            training.round()
            training.forget()
            for _ in range(2 if quick else 12):
                training.round()
            return {"kind": "training step", **training.summary()}

    for phase in PHASES:
        results.attempt(f"training step, {phase}", partial(row, phase))


def smoke(device: Any) -> None:
    """Results and gradients of every sample, in float64, against the reference."""
    import torch
    from compare import assert_close_in_float64
    from harness import results as outputs_and_gradients
    from harness import samples

    from mcd.ops import OPERATORS

    for operator in OPERATORS.values():
        reason = operator.why_not("native", device.type)
        if reason is not None:
            sys.exit(f"{operator.name}: {reason}")
        for sample in samples(operator, device, torch.float64):
            found = (outputs_and_gradients(operator, sample, backend) for backend in ("native", "reference"))
            assert_close_in_float64(*found, f"{operator.name}, {sample.label}")
        print(f"{operator.name}: right", flush=True)


def kernels(device: Any) -> None:
    """Operators with the five kernels that gpu.sh looks at, once."""
    from harness import results as outputs_and_gradients

    from benchmarks import inputs
    from benchmarks.conftest import FULL
    from mcd.ops import OPERATORS

    for name in ("backward_warp", "photometric_error", "view_synthesis_loss", "scale_invariant_loss"):
        outputs_and_gradients(OPERATORS[name], inputs.make(name, FULL[0], device), "native")


def small(device: Any, backends: list[str]) -> None:
    """Forward and backward of every sample with every backend that has kernels of its own."""
    import torch
    from harness import results as outputs_and_gradients
    from harness import samples

    from mcd.ops import OPERATORS

    ran = 0
    for backend in backends:
        for operator in OPERATORS.values():
            if operator.why_not(backend, device.type) is None:
                for sample in samples(operator, device, torch.float32):
                    outputs_and_gradients(operator, sample, backend)
                    ran += 1
        print(f"{ran} calls, with {backend} done", flush=True)
    if not ran:
        sys.exit("no backend with kernels can run here")


def show(results: Results, parts: Path) -> None:
    """What became of the parts, then a line an operator."""
    from benchmarks.bars import COMPILED, verdicts

    if parts.is_file():
        results.document["parts"] = [line.split("\t") for line in parts.read_text().splitlines()]
        results.save()
        for name, outcome, seconds in results.document["parts"]:
            print(f"{name:14}{outcome:28}{seconds:>5} s")
    titles = ["native us", "forward", "of copy", "x triton", "x eager", "x compiled"]
    print(f"\n{'12x192x512, cold':22}" + "".join(f"{title:>11}" for title in titles) + "  bars")
    measured = [row for row in results.document["rows"] if row["kind"] == "operator"]
    for row in measured:
        contestants = row["contestants"]
        native = contestants.get("native")
        if row["size"] != measured[0]["size"] or native is None:
            continue
        both, forward = (1e6 * native["seconds"][f"{span}_cold"] for span in ("both", "forward"))
        cells = [f"{both:.1f}", f"{forward:.1f}", f"{native['share_of_copy']['both_cold']:.0%}"]
        cells += [
            f"{contestants[name]['times_native']['both_cold']:.2f}" if name in contestants else "-"
            for name in ("triton", "reference", COMPILED)
        ]
        bars = ", ".join(f"{verdict.what}: {verdict.outcome}" for verdict in verdicts(row))
        print(f"{row['operator']:22}" + "".join(f"{cell:>11}" for cell in cells) + f"  {bars}")
    for row in results.document["rows"]:
        if row["kind"] == "training step":
            for name, entry in row["contestants"].items():
                print(f"step, {row['phase']}, {name:22}{1e3 * entry['seconds']['total']:>9.2f} ms")
            for verdict in verdicts(row):
                print(f"step, {row['phase']}: {verdict.what}: {verdict.outcome}")
    failed = {what: outcome for what, outcome in results.document["tried"].items() if outcome != "done"}
    for what, outcome in failed.items():
        print(f"{what}: {outcome}"[:160])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("smoke", "operators", "step", "small", "kernels", "table"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--seconds", type=float, default=1e9, help="operators: begin nothing after so long")
    parser.add_argument(
        "--backends", nargs="+", default=["native", "triton"], help="small: these; that which compiles comes last"
    )
    parser.add_argument("--parts", type=Path, default=Path("parts.tsv"), help="table: what gpu.sh noted of its parts")
    options = parser.parse_args()
    results = Results(options.results)
    if options.part == "table":
        show(results, options.parts)
        return 0
    import torch

    from benchmarks import machine

    device = torch.device(options.device)
    signal.signal(signal.SIGTERM, stop)
    if options.part == "small":
        small(device, options.backends)
        return 0
    if options.part in ("smoke", "kernels"):
        {"smoke": smoke, "kernels": kernels}[options.part](device)
        return 0
    results.document["machine"] = {k: v for k, v in machine.describe().items() if k != "glibc_tunables"}
    results.save()
    if options.part == "operators":
        operators(results, device, options.quick, options.seconds)
    else:
        step(results, device, options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
