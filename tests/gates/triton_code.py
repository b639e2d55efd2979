"""Compiles the Triton kernels for sm_80 and sm_90, as a launch on such a GPU would, and reads what came out.

    every kernel   nothing spilled, no more registers than its budget, no approximate division, no product fused with a
                   sum that the text does not fuse
    z-buffers      one integer minimum of 64 bits for each point: no compare-and-swap, no pair of float reductions
    gradients      integer sums alone, and a mark where one is spoilt; no other kernel has an atomic operation on
                   global memory

Needs no GPU, but a process without TRITON_INTERPRET. Run by `make check`. Prints a table and every failure; exits with
1 if there is one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from mcd import Instances
from mcd.ops.registry import OPERATORS

ARCHITECTURES = (80, 90)  # float64 and images of 16 bits: for the last alone
# Registers a thread may use: 128 lets a multiprocessor hold 512 threads. Double precision takes two for a number; it is
# there for tests and for a dozen numbers a sample.
REGISTERS = {True: 128, False: 255}
SINGLE_SAMPLE = ("find_cameras", "_camera_grads", "_camera_grad")
# What each thread does to global memory for each of its points; in float64 depth and who has it are two numbers. Of
# _largest, one thread of a block, with the bits of a number that is not negative.
ATOMICS = {
    ("_nearest", "float32"): {"min.u64"},
    ("_nearest", "float64"): {"min.u64", "min.s32"},
    ("_splat", "float32"): {"min.u64"},
    ("_splat", "float64"): {"min.u64"},
    ("_source_grad", "float32"): {"add.u64", "exch.b64"},
    ("_source_grad", "float64"): {"add.u64", "exch.b64"},
    ("_attribute_grad", "float32"): {"add.u64", "exch.b64"},
    ("_attribute_grad", "float64"): {"add.u64", "exch.b64"},
    ("_largest", "float32"): {"max.s64"},
    ("_largest", "float64"): {"max.s64"},
}
FUSES = ("_splat", "_pixel_grad")  # rays, which forward and backward must round the same


def calls(dtype: torch.dtype, image: torch.dtype) -> Iterator[tuple[str, tuple, dict]]:
    """(operator, arguments, keyword arguments) that together launch every variant of every kernel."""
    batch, height, width = 2, 32, 64

    def real(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.rand(batch, *shape, dtype=of).requires_grad_()

    source, depth, K, T = real(3, height, width, of=image), real(1, height, width), real(3, 3), real(4, 4)
    for motion in (None, real(2, height, width), real(3, height, width)):
        yield "backward_warp", (source, depth, K, T, motion), {"return_coords": False}
    yield "backward_warp", (source, real(1, 16, 32), K, T, None), {"return_coords": True}
    for motion in (None, real(3, height, width)):
        yield "forward_warp", (source, depth, K.detach(), T, motion), {"upscale": 3}
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[:, 8:24, 16:48] = True
    instances = Instances.from_masks([masks, masks])
    values, scale = torch.rand(len(instances.pixel), dtype=dtype).requires_grad_(), real(2).reshape(-1)
    yield "fuse_depth", (depth, values, instances), {}
    for interpolation, of in (("lower", depth), ("linear", values)):
        yield "instance_stats", (of, instances, (0.5,), interpolation), {}
    for given in (None, scale):
        yield "align_scale", (values, depth.detach(), instances, given), {"delta": 0.005}
    yield "smoothness_loss", ([depth], [source.detach()]), {}
    yield "smoothness_loss", ([depth],), {"masks": [masks[:, None]]}


class Launch(NamedTuple):
    function: JITFunction
    args: tuple
    kwargs: dict
    architectures: tuple[int, ...]


def launches() -> dict[tuple, Launch]:
    """Every launch that these calls make, once for each kind of arguments."""
    found: dict[tuple, Launch] = {}
    binders: dict[JITFunction, Any] = {}

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if self not in binders:
            backend = make_backend(GPUTarget("cuda", ARCHITECTURES[0], 32))
            binders[self] = create_function_from_signature(self.signature, self.params, backend)
        kwargs |= {"debug": False, "instrumentation_mode": ""}
        kind = str(binders[self](*args, **kwargs)[1:])
        found.setdefault((self.fn.__module__, self.fn.__name__, kind), Launch(self, args, kwargs, architectures))

    run, JITFunction.run = JITFunction.run, record
    try:
        for dtype, image in (
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.float64, torch.float64),
        ):
            architectures = ARCHITECTURES if dtype == image == torch.float32 else ARCHITECTURES[-1:]
            for name, args, kwargs in calls(dtype, image):
                module, function = OPERATORS[name].triton.split(":")
                implementation = getattr(__import__(module, fromlist=[function]), function)
                outputs = [out for out in tree_leaves(implementation(*args, **kwargs)) if isinstance(out, Tensor)]
                outputs = [out for out in outputs if out.requires_grad]
                leaves = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.requires_grad]
                torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs], allow_unused=True)
    finally:
        JITFunction.run = run
    return found


def compiled(launch: Launch, architecture: int) -> Any:
    """The kernel as JITFunction.run makes it on a GPU of this architecture."""
    function, args, kwargs, _ = launch
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    bound, specialization, options = create_function_from_signature(function.signature, function.params, backend)(
        *args, **kwargs
    )
    options, signature, constants, attributes = function._pack_args(backend, kwargs, bound, specialization, options)
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def assembled(ptx: str) -> tuple[int, int, str]:
    """(registers, bytes spilled, SASS)."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [tools / "ptxas", "-v", "--fmad=false", f"--gpu-name={architecture}", source, "-o", cubin]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        sass = subprocess.run([tools / "cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True).stdout
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    return registers, sum(int(number) for number in re.findall(r"(\d+) bytes spill", report)), sass


def check(name: str, launch: Launch, architecture: int) -> tuple[int, list[str]]:
    """(registers, what is wrong)."""
    kernel = compiled(launch, architecture)
    ptx = kernel.asm["ptx"]
    registers, spilled, sass = assembled(ptx)
    tensors = [arg for arg in launch.args if isinstance(arg, Tensor) and arg.numel() > 1]  # a scale is always double
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    budget = REGISTERS[not is_double and name not in SINGLE_SAMPLE]
    problems = []
    if spilled or registers > budget:
        problems.append(f"{registers} registers of {budget}, {spilled} bytes spilled")
    atomics = re.findall(r"\b(?:atom|red)\.global\.[\w.]*?(\w+\.[busf]\d+)", ptx)
    allowed = ATOMICS.get((name, "float64" if is_double else "float32"), set())
    if not set(atomics) <= allowed or bool(atomics) != bool(allowed):
        problems.append(f"atomics are {sorted(set(atomics))}, they should be {sorted(allowed)}")
    if "min.u64" in atomics and len(set(atomics)) == 1:
        points = launch.kwargs["BLOCK"] // (32 * launch.kwargs["num_warps"])
        reductions = len(re.findall(r"\bREDG?\.E\.MIN\.64", sass))
        if not len(atomics) == reductions == points:
            problems.append(f"{len(atomics)} minima, {reductions} reductions for {points} points of a thread")
    if re.search(r"\bATOM\S*CAS", sass):
        problems.append("a compare-and-swap")
    if "div.full" in ptx or "div.approx" in ptx:
        problems.append("an approximate division")
    if "fma.rn.f32" in ptx and name not in FUSES:
        problems.append("a fused product and sum")
    return registers, [f"sm_{architecture} {name}: {problem}" for problem in problems]


_jobs: list[tuple[str, Launch, int]] = []  # before the fork: kernels cannot be sent


def _check_job(number: int) -> tuple[int, list[str]]:
    return check(*_jobs[number])


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("under TRITON_INTERPRET=1 nothing compiles")
        return 1
    for (_, name, _), launch in launches().items():
        _jobs.extend((name, launch, architecture) for architecture in launch.architectures)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        results = pool.map(_check_job, range(len(_jobs)), chunksize=1)
    most: dict[str, int] = {}
    for (name, _, architecture), (registers, _) in zip(_jobs, results, strict=True):
        label = f"{name:24} sm_{architecture}"
        most[label] = max(most.get(label, 0), registers)
    for label, registers in sorted(most.items()):
        print(f"{label}: at most {registers:3} registers")
    failures = [failure for _, failures in results for failure in failures]
    for failure in failures:
        print("FAILED", failure)
    print(f"{len(_jobs)} kernels compiled, {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
