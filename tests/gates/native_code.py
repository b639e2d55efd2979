"""Reads the compiled code: what a machine without a GPU, or without AVX-512, can still know of it.

    CUDA       each kernel, for sm_80 and sm_90: nothing spilled, no more registers than its budget.
    CPU        no function of an AVX target can be called from the code of a lesser one.

Run by `make check`. Prints a table and every failure; exits with 1 if there is one.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90")
# Registers a thread may use: 128 lets a multiprocessor hold 512 threads, enough to hide the latency of gathers.
REGISTERS = 128
# Double precision takes two for a number, and is there for tests and for a dozen numbers a sample.
EXEMPT = ("double", "camera_grads")


def setup_script() -> Any:
    """setup.py as a module, for its toolkit and its targets."""
    sys.argv = ["setup.py", "--quiet", "--name"]  # else setup() would build
    specification = importlib.util.spec_from_file_location("mcd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def ptxas_report(nvcc: Path, source: Path, architecture: str, folder: Path) -> str:
    command = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", "-cubin", source]
    command += [f"-arch=sm_{architecture}", "-o", folder / f"{source.stem}.{architecture}.cubin"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(found.stderr)
    names = subprocess.run(["c++filt"], input=found.stderr, capture_output=True, text=True)
    return names.stdout


def kernels(report: str) -> list[tuple[str, int, int]]:
    """(kernel, registers, bytes spilled) from ptxas' report."""
    found = []
    for block in re.split(r"ptxas info\s*: Compiling entry function ", report)[1:]:
        name = block.split("' for ")[0].lstrip("'")
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", block))
        found.append((name, registers, spilled))
    return found


def check_cuda(home: Path) -> list[str]:
    sources = sorted((ROOT / "csrc").glob("*/*.cu"))
    failures = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (source, architecture): pool.submit(ptxas_report, home / "bin/nvcc", source, architecture, Path(folder))
            for source in sources
            for architecture in ARCHITECTURES
        }
        for (source, architecture), job in jobs.items():
            found = kernels(job.result())
            most = max((registers for _, registers, _ in found), default=0)
            print(f"{source.name:28} sm_{architecture}: {len(found):3} kernels, at most {most:3} registers")
            for name, registers, spilled in found:
                budget = 255 if any(part in name for part in EXEMPT) else REGISTERS
                if spilled or registers > budget:
                    failures.append(
                        f"sm_{architecture} {name}: {registers} registers of {budget}, {spilled} bytes spilled"
                    )
    return failures


def check_targets(targets: list[str]) -> list[str]:
    """Inline functions that were not inlined are merged by the linker with those of other targets: there must be none
    outside the target's namespace, or a processor may be given instructions that it does not have."""
    failures = []
    objects = [path for target in targets for path in sorted((ROOT / "build").glob(f"*-c*/*/*.{target}.o"))]
    for path in objects:
        target = path.name.split(".")[-2]
        symbols = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
        for line in symbols.stdout.splitlines():
            _, kind, name = line.split(" ", 2)
            if kind in "WVu" and f"mcd::{target}::" not in name and not name.startswith("DW.ref."):
                failures.append(f"{path.name}: {name} could replace another target's")
    print(f"{len(objects)} object files of {', '.join(targets)}")
    return failures


def main() -> int:
    module = setup_script()
    failures = check_targets([target for target in module.X86_TARGETS if target != "baseline"])
    home = module.cuda_home()
    if home is None:
        print("no CUDA toolkit: the CUDA code is not checked")
    else:
        failures += check_cuda(home)
    for failure in failures:
        print("FAILED", failure)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
