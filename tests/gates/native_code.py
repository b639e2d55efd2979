"""Reads the compiled code: what a machine without a GPU, or without AVX-512, can still know of it.

    CUDA       each kernel, for sm_80 and sm_90: nothing spilled, no more registers than its budget; the instructions
               without which it would be slow; no number that is moved byte by byte.
    CPU        no function of an AVX target can be called from the code of a lesser one.
    aarch64    csrc/ compiles for it, without Python's headers.

Run by `make check`, on what `make` has built. Prints a table and every failure; exits with 1 if there is one.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90")
# Registers a thread may use: 128 lets a multiprocessor hold 512 threads, enough to hide the latency of gathers.
REGISTERS = 128
# Double precision takes two for a number, and is there for tests and for a dozen numbers a sample.
EXEMPT = ("double", "camera_grads", "finish_cameras", "Prepare", "finish<")
# (file, kernel, instruction that it must have, instruction that it must not have, why), as regular expressions.
INSTRUCTIONS = [
    ("forward_warp", r"Splat<float, float", r"(REDG?|ATOMG?)\.E\.MIN\.64", "CAS", "the z-buffer is one integer atomic"),
    ("fuse_depth", r"fuse_tiles<float>", r"BAR", r"ATOM|CAS", "instances come one after another, without atomics"),
    ("fuse_depth", r"fuse_tiles<float>", r"LDG\.E\.128", None, "the background is read by four depths"),
    ("fuse_depth", r"fuse_tiles<float>", r"STG\.E\.128", None, "the fused depth is written by four depths"),
    ("fuse_depth", r"grad_tiles<float>", r"STG\.E\.128", None, "the background's gradient is written by four"),
    ("instance_stats", r"stats_of_instances<float>", r"ATOMS\.(ADD|POPC)", "CAS", "histograms lie in shared memory"),
    ("backward_warp", r"source_grad_rows<.*<float, float", r"(REDG?|ATOMG?)\.E\.ADD\.64", "CAS", "it adds integers"),
]
# Kernels that read or write masks, a byte for a pixel. In others a byte is a part of a number that was copied untyped.
MASKS = r"error_strips|bwd_strips|loss_strips|fwd_rows|loss_of_samples|GradOfPixels|MaskGuide"
BYTES = r"\b(LDG?|STG?)\.E\.[US]8\b"


def setup_script() -> Any:
    """setup.py as a module, for its toolkit and its targets."""
    sys.argv = ["setup.py", "--quiet", "--name"]  # else setup() would build
    specification = importlib.util.spec_from_file_location("mcd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def demangled(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def kernels(report: str) -> list[tuple[str, str, int, int]]:
    """(architecture, kernel, registers, bytes spilled) from ptxas' report."""
    found = []
    for block in re.split(r"ptxas info\s*: Compiling entry function ", report)[1:]:
        name, architecture = re.match(r"'(.*)' for 'sm_(\d+)\w?'", block).groups()
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", block))
        found.append((architecture, name, registers, spilled))
    return found


def check_registers(source: Path, report: Path) -> list[str]:
    """The report is the one that ptxas gave when `source` was built."""
    if not report.is_file():
        return [f"{source.name}: {report} is missing, `make` writes it"]
    failures = []
    found = kernels(demangled(report.read_text()))
    for architecture in ARCHITECTURES:
        own = [(name, registers, spilled) for its, name, registers, spilled in found if its == architecture]
        if not own:
            failures.append(f"{source.name}: not compiled for sm_{architecture}; TORCH_CUDA_ARCH_LIST should name it")
            continue
        most = max(registers for _, registers, _ in own)
        print(f"{source.name:28} sm_{architecture}: {len(own):3} kernels, at most {most:3} registers")
        for name, registers, spilled in own:
            budget = 255 if any(part in name for part in EXEMPT) else REGISTERS
            if spilled or registers > budget:
                failures.append(f"sm_{architecture} {name}: {registers} registers of {budget}, {spilled} bytes spilled")
    return failures


def disassembler(home: Path) -> Path | None:
    """cuobjdump: the toolkit's, or the one that triton brings."""
    places = [home / "bin"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        places.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return next((place / "cuobjdump" for place in places if (place / "cuobjdump").is_file()), None)


def check_instructions(cuobjdump: Path, folder: Path) -> list[str]:
    failures = []
    for source in sorted((ROOT / "csrc").glob("*/*.cu")):
        stem = source.stem
        built = folder / stem / f"{stem}.cu.cuda.o"
        command = [cuobjdump, "-sass", "-arch", "sm_90", built]
        code = demangled(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        functions = dict(part.split("\n", 1) for part in code.split("Function : ")[1:])
        for name, body in functions.items():
            if "<float" in name and not re.search(MASKS, name) and (found := re.search(BYTES, body)):
                failures.append(f"{name}: has {found[0]}, but its numbers have four bytes")
        for expected_in, kernel, wanted, unwanted, why in INSTRUCTIONS:
            if expected_in != stem:
                continue
            bodies = {name: body for name, body in functions.items() if re.search(kernel, name)}
            if not bodies:
                failures.append(f"{stem}: there is no kernel {kernel}")
            for name, body in bodies.items():
                if not re.search(wanted, body):
                    failures.append(f"{name}: no {wanted}, but {why}")
                if unwanted and re.search(unwanted, body):
                    failures.append(f"{name}: has {unwanted}, but {why}")
    print(f"{len(INSTRUCTIONS)} expectations of instructions, sm_90")
    return failures


def check_cuda(home: Path) -> list[str]:
    folder = ROOT / "build/native"
    failures = []
    for source in sorted((ROOT / "csrc").glob("*/*.cu")):
        report = folder / f"{source.relative_to(ROOT / 'csrc')}.cuda.o.log"
        failures += check_registers(source, report)
    cuobjdump = disassembler(home)
    if failures:
        return failures
    if cuobjdump is None:
        print("no cuobjdump, neither the toolkit's nor triton's: the instructions are not checked")
        return []
    return check_instructions(cuobjdump, folder)


def check_aarch64() -> list[str]:
    """The CPU sources for another processor, by g++'s cross compiler where there is one."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        print("no aarch64-linux-gnu-g++ (Debian, Ubuntu: g++-aarch64-linux-gnu): the code is not compiled for aarch64")
        return []
    sources = sorted((ROOT / "csrc").glob("*/*.cpp"))

    def compile_file(source: Path) -> str:
        # -O1: whether it compiles is the question.
        command = [compiler, "-std=c++17", "-O1", "-fopenmp", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
        command += ["-DMCD_TARGET=baseline", "-S", source, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True).stderr

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        said = dict(zip(sources, pool.map(compile_file, sources), strict=True))
    print(f"{len(sources)} files for aarch64")
    return [f"{source.name} for aarch64: {message}" for source, message in said.items() if message]


def check_targets(targets: list[str]) -> list[str]:
    """Inline functions that were not inlined are merged by the linker with those of other targets: there must be none
    outside the target's namespace, or a processor may be given instructions that it does not have."""
    failures = []
    objects = [path for target in targets for path in sorted((ROOT / "build/native").glob(f"*/*.{target}.o"))]
    for path in objects:
        target = path.name.split(".")[-2]
        symbols = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
        for line in symbols.stdout.splitlines():
            _, kind, name = line.split(" ", 2)
            if kind in "WVu" and f"mcd::{target}::" not in name and not name.startswith("DW.ref."):
                failures.append(f"{path.name}: {name} could replace another target's")
    if not objects and platform.machine() == "x86_64":
        failures.append(f"no object files of {', '.join(targets)}: `make` writes them below {ROOT / 'build'}")
    print(f"{len(objects)} object files of {', '.join(targets)}")
    return failures


def main() -> int:
    module = setup_script()
    failures = check_targets([target for target in module.X86_TARGETS if target != "baseline"])
    failures += check_aarch64()
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
