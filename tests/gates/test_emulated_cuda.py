"""The CUDA kernels, run on the CPU: compiled as C++ against a header that turns a block's threads into fibers.

It shows that indices, barriers, reductions and atomics are right, not what only a device has: its memory model, its
arithmetic, its speed. `make check` runs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from math import nan
from pathlib import Path
from typing import Any

import pybind11
import pytest
import torch
from cases import CASES, Case
from compare import assert_close_in_float64, assert_same
from harness import call, mapped, results, samples, spoiled_gradients
from torch import Tensor

import mcd
from mcd.ops import native
from mcd.ops.colour_jitter import colour_jitter
from mcd.ops.registry import OPERATORS, Operator, Sample

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def closing(text: str, at: int) -> int:
    """Where the parenthesis that opens at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError("a parenthesis stays open")


def as_cplusplus(text: str) -> str:
    """CUDA's two pieces of syntax as calls: kernel<<<...>>>(...), and shared memory whose size the launch tells."""
    text = text.replace("extern __shared__ double shared[];", "double* shared = emulated::block.shared.data();")
    while (launch := text.find("<<<")) >= 0:
        begin, depth = launch, 0
        while depth or re.match(r"[\w>]", text[begin - 1]):
            begin -= 1
            depth += (text[begin] == ">") - (text[begin] == "<")
        configured = text.index(">>>", launch)
        end = closing(text, text.index("(", configured))
        call = text[begin:launch] + text[configured + 3 : end + 1]
        text = f"{text[:begin]}emulated::launch({text[launch + 3 : configured]}, [=] {{ {call}; }}){text[end + 1 :]}"
    return text


def ninja_file(folder: Path) -> str:
    """Copies csrc/, translated, into `folder`; returns what ninja is to do with it."""
    for source in sorted((ROOT / "csrc").rglob("*.*")):
        text = as_cplusplus(source.read_text())
        if source.name == "bindings.cpp":
            text = text.replace("MCD_DEFINE_CPU(baseline);", "")  # the emulated target alone
        copy = folder / "csrc" / source.relative_to(ROOT / "csrc")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_file() or copy.read_text() != text:
            copy.write_text(text)
    python = f"-isystem{pybind11.get_include()} -isystem{sysconfig.get_path('include')} -DMCD_WITH_CUDA"
    python += f" -DMCD_VERSION='\"{mcd.__version__}\"'"
    kernel = f"-x c++ -D__CUDACC__ -I{Path(__file__).parent / 'emulated'} -include cuda_runtime.h"
    lines = [
        "rule cxx",
        "  command = $cxx -MD -MF $out.d -std=c++17 -O1 -w -fPIC -fvisibility=hidden $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -shared $in -o $out",
    ]
    objects = []
    for source, flags in [("bindings.cpp", python), *((name, kernel) for name in kernels())]:
        objects.append(f"{source}.o")
        lines += [f"build {source}.o: cxx {folder / 'csrc' / source}", f"  flags = {flags}"]
    return "\n".join([f"cxx = {os.environ.get('CXX') or 'c++'}", *lines, f"build _C.so: link {' '.join(objects)}", ""])


def kernels() -> list[str]:
    return [str(source.relative_to(ROOT / "csrc")) for source in sorted((ROOT / "csrc").glob("*/*.cu"))]


@pytest.fixture(scope="module")
def emulated() -> Any:
    """The functions of `_C.cuda`, on CPU tensors."""
    if shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("there is no C++ compiler")
    folder = ROOT / "build" / "emulated"
    script = ninja_file(folder)
    (folder / "build.ninja").write_text(script)
    built = subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    # A name of its own: pybind11 finds submodules by their full names, also those of another `_C`.
    specification = importlib.util.spec_from_file_location("gates.emulated._C", folder / "_C.so")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.cuda


def inputs(operator: Operator) -> list[Sample]:
    """The operator's samples, and frames of more than one block in every kernel: tiles of images have 16x32 pixels,
    those of masks 2048, sums of forward_warp run over 1024, those of smoothness_loss over about 8192."""
    generator = torch.Generator().manual_seed(0)
    large = [Case(generator, 2, 21, 45, motion=motion, scales=3) for motion in (0, 2)]
    large.append(Case(generator, 1, 70, 130, sources=1, scales=2, motion=3))
    return [*samples(operator), *map(CASES[operator.name], large)]


def emulated_results(operator: Operator, sample: Sample, module: Any, order: str) -> list[Tensor | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATED_ORDER", order)
        patch.setattr(native, "_cpu", module)
        patch.setattr(Tensor, "is_cuda", True)  # scratch memory is then what the kernels need
        return results(operator, sample, "native")


def as_double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_kernels_agree_with_the_reference_in_any_order_of_threads(operator: Operator, emulated: Any) -> None:
    for sample in inputs(operator):
        expected = results(operator, sample, "reference")
        actual = emulated_results(operator, sample, emulated, "forward")
        assert_close_in_float64(actual, expected, sample.label)
        for order in ("reverse", "shuffled"):
            assert_same(emulated_results(operator, sample, emulated, order), actual, f"{sample.label}, {order}")


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_kernels_agree_in_float32_too(operator: Operator, emulated: Any) -> None:
    # Float has code of its own (a z-buffer of one word); how exact it is, tests/ops asks of the same formulas.
    # Strips of whole pairs of columns have kernels of their own.
    large = CASES[operator.name](Case(torch.Generator().manual_seed(0), 2, 35, 38, scales=2))
    for exact in [*samples(operator), large]:
        single = mapped(exact, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
        double = mapped(single, as_double)
        actual = emulated_results(operator, single, emulated, "shuffled")
        assert_close_in_float64(actual, results(operator, double, "reference"), exact.label, 1e-4)
        assert_same(emulated_results(operator, single, emulated, "forward"), actual, exact.label)


@pytest.mark.parametrize(
    "width, both, constants",
    [
        pytest.param(20, False, {}, id="kernels of the usual case"),
        pytest.param(20, True, {}, id="gradients to the reference too"),
        pytest.param(19, False, {}, id="odd width"),
        pytest.param(20, True, {"c1": 1e-4}, id="with luminance"),
    ],
)
def test_photometric_error_keeps_the_digits_of_flat_patches(
    width: int, both: bool, constants: dict[str, float], emulated: Any
) -> None:
    # tests/ops asks the same of the CPU, where a window's spreads are found by another formula.
    levels, contrasts = torch.tensor([0.1, 0.5, 0.9, 0.99]), torch.tensor([1e-4, 1e-3, 1e-2])
    level, contrast = torch.cartesian_prod(levels.double(), contrasts.double()).T.reshape(2, -1, 1, 1, 1, 1)
    noise = 2 * torch.rand(12, 5, 3, 10, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    reference, *others = (level + contrast * noise).float().unbind(1)
    warped, sources = torch.stack(others[:2], 1), torch.stack(others[2:], 1)
    args = (reference.requires_grad_(both), warped.requires_grad_(), sources)
    single = Sample(args, {"l1_weight": 0.0, **constants})
    operator = OPERATORS["photometric_error"]
    error, auto_mask, *grads = emulated_results(operator, single, emulated, "forward")
    truth, true_mask, *true_grads = results(operator, mapped(single, as_double), "reference")
    assert ((error - truth).abs() <= 1e-4 * truth).all()
    assert_same([auto_mask], [true_mask])
    for actual, expected in zip(grads, true_grads, strict=True):
        # Image by image: contrasts of 1e-4 have the smaller gradients.
        difference, size = ((values.flatten(1)).norm(dim=1) for values in (actual - expected, expected))
        assert (difference <= 2e-5 * size).all()


@pytest.mark.parametrize(
    "dtype, most, both, constants",
    [
        pytest.param(torch.float32, 5, False, {}, id="float32, gradients to the warped images alone"),
        pytest.param(torch.float32, 5, True, {"c1": 1e-4}, id="float32, all gradients, with luminance"),
        pytest.param(torch.float64, 4, True, {}, id="float64, all gradients"),
    ],
)
def test_photometric_error_of_several_strips_and_of_the_most_sources(
    dtype: torch.dtype, most: int, both: bool, constants: dict[str, float], emulated: Any
) -> None:
    # Two sources of float32 have kernels of their own. A strip has 60 columns and about 32 rows.
    generator, operator = torch.Generator().manual_seed(0), OPERATORS["photometric_error"]
    for batch, count, height, width in [(2, 2, 70, 150), (1, 3, 36, 34), (1, most, 36, 34), (1, most + 1, 36, 34)]:
        made = CASES["photometric_error"](Case(generator, batch, height, width, sources=count, dtype=dtype))
        made.args[0].requires_grad_(both)
        sample = mapped(made, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)
        sample.kwargs.update(constants)
        if count > most:
            with pytest.raises(ValueError, match=rf'{count} source images.* at most {most}.*; backend="reference"'):
                emulated_results(operator, sample, emulated, "forward")
            continue
        expected = results(operator, mapped(sample, as_double), "reference")
        actual = emulated_results(operator, sample, emulated, "shuffled")
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert_close_in_float64(actual, expected, f"{count} sources", tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_16_bit_images_are_read_exactly_and_rounded_once(
    operator: Operator, dtype: torch.dtype, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(torch.Generator().manual_seed(0), 2, 21, 35, scales=1, dtype=torch.float32, image_dtype=dtype)
    sample = CASES[operator.name](case)
    wide = mapped(sample, lambda leaf: leaf.float() if leaf.dtype == dtype else leaf)
    monkeypatch.setattr(native, "_cpu", emulated)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    actual, expected = call(operator, sample, "native"), call(operator, wide, "native")
    assert_same(actual, [b.to(a.dtype) for a, b in zip(actual, expected, strict=True)], operator.name)


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("size", [(5, 7), (31, 45)], ids=["fewer pixels than threads", "more"])
def test_colour_jitter_agrees_with_its_definition(
    size: tuple[int, int], order: str, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 3, *size), generator=generator, dtype=torch.uint8)
    images[:, 1], images[:, 2] = images[:, 1] // 3, 0  # contrast goes towards the mean of each; black stays black
    factors = torch.rand(8, 4, generator=generator) * torch.tensor([1.4, 1.4, 1.4, 0.8])
    factors = factors + torch.tensor([0.3, 0.3, 0.3, -0.4])
    orders = [torch.randperm(4, generator=generator).float() for _ in range(6)]
    draws = torch.cat([factors, torch.stack([*orders, torch.full((4,), -1.0), torch.arange(4.0) - 1])], 1)
    expected = colour_jitter(images, draws, backend="reference")
    monkeypatch.setattr(native, "_cpu", emulated)
    monkeypatch.setenv("EMULATED_ORDER", order)
    actual = colour_jitter(images, draws, backend="native")
    assert not torch.equal(actual[:6], images[:6])
    assert torch.equal(actual[6:], images[6:])
    assert not actual[:, 2].any()
    differences = (actual.int() - expected.int()).abs()
    assert differences.max() <= 1
    assert (differences > 0).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["backward_warp", "forward_warp"])
def test_a_gradient_that_is_not_finite_spoils_what_it_reaches_and_nothing_else(
    name: str, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = spoiled_gradients(name, "reference")
    monkeypatch.setattr(native, "_cpu", emulated)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert_close_in_float64(spoiled_gradients(name, "native"), expected, name)


def test_a_nan_in_the_source_reaches_only_the_depths_that_read_it(
    emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = CASES["backward_warp"](Case(torch.Generator().manual_seed(0), 1, 8, 16))
    source, depth = sample.args[:2]
    source.data[..., 3, 5] = nan
    found = []
    for backend in ("reference", "native"):
        if backend == "native":
            monkeypatch.setattr(native, "_cpu", emulated)
            monkeypatch.setattr(Tensor, "is_cuda", True)
        found += torch.autograd.grad(call(OPERATORS["backward_warp"], sample, backend)[0].sum(), depth)
    assert 0 < found[0].isnan().sum() < 16
    assert torch.equal(found[1].isnan(), found[0].isnan())
