"""How long the CUDA kernels would take, counted without a GPU.

    python -m benchmarks.model            prints the table
    python -m benchmarks.model --write    and keeps it in benchmarks/model.json and model.md
    python -m benchmarks.model --check    fails where a kernel is slower than there by more than 5 %

The interpreter of tests/gates/ptx runs each operator, forward and backward, on a part of the size that its bar is for:
one sample, or a strip of one, or some tiles of one (`PARTS`). Counts are scaled by the number of blocks; a second pass
through the host code at the full size says how many there are, and runs the kernels whose grid does not grow: on memory
that nobody has written, which does not matter to what they do.

The time of a launch is the largest of five, and 2.5 microseconds come to each launch:

    memory     distinct sectors of 32 bytes that it reads and writes, at the speed of a copy
    issue      warp instructions · (SASS / PTX of that kernel), 4 · 0.8 a cycle in each multiprocessor; the SASS is that
               without unrolled loops, else it would count what runs once several times
    shared     cycles of shared memory, and lines of 128 bytes that warps load and store, one a cycle
    atomics    sectors that global atomics touch, at one a cycle in each of the second-level cache's slices
    chain      the longest warp's instructions at 4 cycles each, its barriers at 40, those of a cluster with what it
               then reads of other blocks at 1000, and an average one's for each wave of blocks after the first

Where a grid does not fill the multiprocessors evenly, the fullest counts. Sectors that several warps or blocks read
count once for memory: caches hold them. What the model does not know: the latency of memory beyond occupancy, and how
often a cache fails to hold what it could.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import bars, inputs
from mcd.ops.registry import OPERATORS, Sample

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from gates.ptx.device import Device, build_folder, tool, why_not  # noqa: E402
from gates.ptx.machine import Counts, Launch  # noqa: E402
from gates.ptx.parse import Kernel, Module  # noqa: E402
from harness import results  # noqa: E402

RESULTS = ROOT / "benchmarks" / "model.json"
FULL = (12, 192, 512)
LAUNCH = 2.5e-6
DIVISION = 80
"""Instructions of a division of 64-bit integers, which is a function of its own."""
MARGIN = 1.05
# Of each operator: the size that runs, and how many blocks of a launch at most, spread evenly. Those whose kernels hand
# each other what only all blocks write run whole.
PARTS: dict[str, tuple[tuple[int, int, int], int | None]] = {
    "backward_warp": ((1, 16, 512), None),
    "forward_warp": ((1, 48, 512), None),
    "photometric_error": ((1, 192, 512), 8),
    "view_synthesis_loss": ((1, 192, 512), 4),
}
BY_CAPABILITY = ("scale_invariant_loss",)
"""Operators that launch other kernels on other processors."""
WHOLE_SAMPLE = ((1, 192, 512), None)


class Processor(NamedTuple):
    name: str
    multiprocessors: int
    clock: float
    bytes_per_second: float
    shared_bytes: int
    slices: int


PROCESSORS = {
    "sm_90": Processor("H200", 132, 1.755e9, 4.3e12, 227 * 1024, 96),
    "sm_80": Processor("A100", 108, 1.41e9, 1.75e12, 163 * 1024, 80),
}


class Code(NamedTuple):
    """What ptxas made of a kernel."""

    instructions: int
    registers: int


@cache
def registers(architecture: str, operator: str) -> dict[str, int]:
    """Of the operator's kernels, by their mangled names, as ptxas said when they were built."""
    (built,) = build_folder().glob(f"*/{operator}.cu.cuda.o")
    found = {}
    for block in re.split(
        r"ptxas info\s*: Compiling entry function ", (built.parent / f"{built.name}.log").read_text()
    ):
        target = re.match(r"'(.*)' for '(sm_\d+)", block)
        if target and target[2] == architecture:
            found[target[1]] = int(re.search(r"Used (\d+) registers", block)[1])
    return found


def machine_instructions(module: Module, name: str, architecture: str) -> int:
    """How many the kernel has where loops are not unrolled: each then stands for as much of the PTX as runs. Kept,
    since assembling takes long."""
    text = module.without_unrolling(name, architecture)
    kept = ROOT / "build" / "ptx" / "assembled" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.txt"
    if kept.is_file():
        return int(kept.read_text())
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        subprocess.run([tool("ptxas"), f"--gpu-name={architecture}", source, "-o", cubin], check=True)
        command = [tool("cuobjdump"), "-sass", cubin]
        body = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", body)
    # Functions that are called, for the rare cases of a division and for those of 64 bits, stand behind the rest.
    called = [int(address, 16) for address in re.findall(r"CALL\.REL\.NOINC 0x([0-9a-f]+)", body)]
    end = min(called, default=int(code[-1][0], 16))  # the last branches to itself
    count = sum(int(address, 16) < end and op != "NOP" for address, op in code)
    kept.write_text(str(count))
    return count


def readable(name: str) -> str:
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    plain = re.sub(r"mcd::cuda::|\(anonymous namespace\)::|^void ", "", plain)
    depth = 0
    for i, letter in enumerate(plain):  # up to the arguments
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return plain[:i]
    return plain


def blocks_per_multiprocessor(kernel: Kernel, launch: Launch, registers: int, processor: Processor) -> int:
    threads = int(np.prod(launch.block))
    warps = -(-threads // 32)
    by_registers = 65536 // max(-(-registers * 32 // 256) * 256 * warps, 1)
    by_shared = (processor.shared_bytes + 1024) // (kernel.shared_bytes + launch.dynamic_shared + 1024)
    return max(min(64 // warps, 32, by_registers, by_shared), 1)


def run(operator: str, device: Device, size: tuple[int, int, int]) -> list[tuple[Kernel, Counts]]:
    """Forward and backward of the operator: its launches."""
    seen: list[Kernel] = []
    chosen = device.before

    def before(kernel: Kernel, launch: Launch) -> Any:
        seen.append(kernel)
        return chosen(kernel, launch)

    device.before, device.launches, device.fills = before, [], 0
    sample: Sample = inputs.make(operator, size, torch.device("cpu"))
    with device.in_place():
        results(OPERATORS[operator], sample, "native")
    device.before = chosen
    return list(zip(seen, device.launches, strict=True))


def evenly(count: int, most: int | None) -> np.ndarray | None:
    return None if most is None or count <= most else (np.arange(most) + 0.5) * count // most


def count(operator: str, device: Device) -> tuple[list[tuple[Kernel, Counts]], list[tuple[Kernel, Counts]]]:
    """The launches on a part, and those at the full size."""
    size, most = PARTS.get(operator, WHOLE_SAMPLE)

    def some(_: Kernel, launch: Launch) -> Any:
        chosen = evenly(int(np.prod(launch.grid)), most)
        return None if chosen is None else chosen.astype(int)

    device.before = some
    part = run(operator, device, size)
    waiting = iter(part)

    def as_large(_: Kernel, launch: Launch) -> Any:
        return None if int(np.prod(launch.grid)) == next(waiting)[1].blocks else np.zeros(0, int)

    device.before = as_large
    full = run(operator, device, FULL)
    if [kernel.name for kernel, _ in part] != [kernel.name for kernel, _ in full]:
        raise RuntimeError(f"{operator}: other kernels are launched at {size} than at {FULL}")
    return part, full


def model(operator: str) -> list[dict[str, Any]]:
    """A row for each processor."""
    device = Device(check=False, count=True)
    larger = float(np.prod(FULL) / np.prod(PARTS.get(operator, WHOLE_SAMPLE)[0]))
    rows = []
    for architecture, processor in PROCESSORS.items():
        if not rows or operator in BY_CAPABILITY:
            device.capability.value = int(architecture[3])
            part, full = count(operator, device)
        kernels = []
        for (kernel, counts), (_, whole) in zip(part, full, strict=True):
            counts = whole if whole.blocks_run else counts
            times = whole.blocks / counts.blocks_run
            code = Code(
                machine_instructions(device.module(kernel.name), kernel.name, architecture),
                registers(architecture, operator)[kernel.name],
            )
            kernels.append(timed(kernel, counts, whole, times, larger, code, processor))
        seconds = sum(k["microseconds"] for k in kernels) + 1e6 * LAUNCH * device.fills
        rows.append(
            {"operator": operator, "architecture": architecture, "microseconds": round(seconds, 1),
             "fills": device.fills, "kernels": kernels}
        )  # fmt: skip
    return rows


def timed(
    kernel: Kernel, counts: Counts, whole: Counts, times: float, larger: float, code: Code, processor: Processor
) -> dict[str, Any]:
    expansion = code.instructions / kernel.size
    issued = counts.issued * expansion + counts.instructions["division"] * DIVISION
    memory = counts.memory
    blocks = whole.blocks
    resident = blocks_per_multiprocessor(kernel, whole.launch, code.registers, processor)
    # The fullest multiprocessor has so many times what it would have of an even share.
    uneven = -(-blocks // processor.multiprocessors) * processor.multiprocessors / blocks
    uneven = uneven if blocks < 4 * resident * processor.multiprocessors else 1.0
    cycles = processor.multiprocessors * processor.clock / uneven
    waves = -(-blocks // (resident * processor.multiprocessors))
    barriers = (40 * memory["barriers"] + 1000 * memory["cluster barriers"]) / counts.blocks_run
    warps = -(-int(np.prod(whole.launch.block)) // 32)
    chain = counts.longest_warp + (waves - 1) * counts.issued / (counts.blocks_run * warps)
    # Tiles that lie apart share no border; all together read no more than there is.
    octets = min(
        (memory["read"] + memory["written"]) * times, memory["allocated"] * (1 if whole.blocks_run else larger)
    )
    lines = memory["load lines"] + memory["store lines"]
    terms = {
        "memory": octets / processor.bytes_per_second,
        "issue": issued * times / (4 * 0.8 * cycles),
        "shared": (memory["shared cycles"] + memory["shared atomic serial"] + lines) * times / cycles,
        "atomics": memory["global atomic sectors"] * times / (processor.slices * processor.clock),
        "chain": (chain * issued / max(counts.issued, 1) * 4 + barriers * waves) / processor.clock,
    }
    bound = max(terms, key=terms.__getitem__)
    return {
        "kernel": readable(kernel.name),
        "microseconds": round(1e6 * (terms[bound] + LAUNCH), 2),
        "bound": bound,
        "terms": {name: round(1e6 * value, 2) for name, value in terms.items()},
        "blocks": blocks,
        "threads": int(np.prod(whole.launch.block)),
        "registers": code.registers,
        "occupancy": round(min(resident, -(-blocks // processor.multiprocessors)) * warps / 64, 3),
        "warp instructions": round(issued * times),
        "sass per ptx": round(expansion, 3),
        "active lanes": round(counts.active_lanes, 1),
        "bytes": round(octets),
        "sector bytes": round((memory["load sectors"] + memory["store sectors"]) * 32 * times),
        "needed bytes": round((memory["load bytes"] + memory["store bytes"]) * times),
        "shared cycles": round(memory["shared cycles"] * times),
        "shared accesses": round((memory["shared loads"] + memory["shared stores"]) * times),
        "atomics": round((memory["global atomics"] + memory["shared atomics"]) * times),
        "atomic turns": round((memory["global atomic serial"] + memory["shared atomic serial"]) * times),
        "barriers": round(memory["barriers"] * times),
        "classes": {name: round(value * times) for name, value in sorted(counts.instructions.items())},
    }


def show(row: dict[str, Any]) -> None:
    bar = bars.CUDA.get(row["operator"]) if row["architecture"] == "sm_90" else None
    span = f", bar {bar[0]:g} ({bar[1]})" if bar else ""
    print(f"\n{row['operator']} {row['architecture']}: {row['microseconds']:.0f} µs{span}, {row['fills']} fills")
    for k in row["kernels"]:
        terms = ", ".join(f"{name} {value:.1f}" for name, value in k["terms"].items())
        print(
            f"  {k['microseconds']:7.1f} µs  {k['bound']:7} {k['kernel'][:60]:60} {terms}; {k['registers']} registers, "
            f"{k['blocks']} blocks, occupancy {k['occupancy']:.2f}, {k['active lanes']:.0f} lanes"
        )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Modelled times, forward and backward at 12×192×512, float32",
        "",
        "By `python -m benchmarks.model`; nothing here was measured. Bars are those of an H200.",
        "",
        "| operator | processor | µs | bar | kernels: µs, what binds, registers, occupancy |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        bar = bars.CUDA.get(row["operator"]) if row["architecture"] == "sm_90" else None
        kernels = "; ".join(
            f"`{k['kernel'].split('<')[0] if 'loop_cuda' not in k['kernel'] else k['kernel'][10:].split('<')[0]}` "
            f"{k['microseconds']:.1f} {k['bound']} {k['registers']} {k['occupancy']:.2f}"
            for k in row["kernels"]
        )
        asked = f"{bar[0]:g} {bar[1]}" if bar else ""
        name = PROCESSORS[row["architecture"]].name
        lines.append(f"| {row['operator']} | {name} | {row['microseconds']:.0f} | {asked} | {kernels} |")
    return "\n".join(lines) + "\n"


def slower(rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[str]:
    """The kernels, and operators, that take longer than what was kept."""
    known = {(row["operator"], row["architecture"]): row for row in kept}
    failures = []
    for row in rows:
        before = known.get((row["operator"], row["architecture"]))
        name = f"{row['operator']} {row['architecture']}"
        if before is None:
            failures.append(f"{name} has no row")
            continue
        if row["microseconds"] > MARGIN * before["microseconds"]:
            failures.append(f"{name}: {row['microseconds']:.1f} µs, it was {before['microseconds']:.1f}")
        took = dict(_launches(before))
        failures += [
            f"{name} {launch[0]}: {microseconds:.1f} µs, it was {took[launch]:.1f}"
            for launch, microseconds in _launches(row)
            if launch in took and microseconds > MARGIN * took[launch]
        ]
    return failures


def _launches(row: dict[str, Any]) -> Iterator[tuple[tuple[str, int], float]]:
    """Name and number of each launch, the first of a kernel being 0, and its time: one kernel may serve both passes."""
    seen: Counter[str] = Counter()
    for kernel in row["kernels"]:
        yield (kernel["kernel"], seen[kernel["kernel"]]), kernel["microseconds"]
        seen[kernel["kernel"]] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", help="these alone")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="fail where a kernel got slower than its row")
    options = parser.parse_args()
    if why_not():
        print(f"{why_not()}: nothing is modelled")
        return 0
    torch.set_num_threads(1)
    rows = []
    for operator in options.operators or sorted(OPERATORS):
        found = model(operator)
        for row in found:
            show(row)
        rows += found
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    if options.write:
        ours = {(row["operator"], row["architecture"]) for row in rows}
        rest = [row for row in kept if (row["operator"], row["architecture"]) not in ours]
        everything = sorted([*rest, *rows], key=lambda row: (row["operator"], row["architecture"]))
        RESULTS.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
        RESULTS.with_suffix(".md").write_text(table(everything))
    failures = slower(rows, kept) if options.check else []
    for failure in failures:
        print("FAILED", failure)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
