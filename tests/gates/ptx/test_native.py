"""Every kernel of csrc/ as nvcc compiled it, run without a GPU: its host code launches what the interpreter runs."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from compare import assert_close_in_float64
from gates.ptx.device import Device, why_not
from harness import mapped, results, samples

from mcd.ops.registry import OPERATORS, Operator, Sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


def check(operator: Operator, sample: Sample, exact: Sample, device: Device, relative: float) -> None:
    expected = results(operator, exact, "reference")
    with device.in_place():
        actual = results(operator, sample, "native")
    assert_close_in_float64(actual, expected, sample.label, relative)


def as_float32(sample: Sample) -> Sample:
    return mapped(sample, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)


def as_float64(sample: Sample) -> Sample:
    return mapped(sample, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_compiled_kernels_agree_with_the_reference(operator: Operator, device: Device) -> None:
    for sample in samples(operator):
        check(operator, sample, sample, device, 1e-10)


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_compiled_kernels_agree_in_float32(operator: Operator, device: Device) -> None:
    # How exact they are, tests/ops asks of the same formulas; frames have a tile and a little more, and a small depth,
    # or several strips of whole pairs of columns, for which there are kernels of float alone.
    generator = torch.Generator().manual_seed(0)
    large = [Case(generator, 1, 19, 37, motion=2, scales=2), Case(generator, 2, 35, 38, scales=2)]
    for sample in map(as_float32, [*samples(operator), *map(CASES[operator.name], large)]):
        check(operator, sample, as_float64(sample), device, 1e-4)


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_compiled_kernels_read_16_bit_images(operator: Operator, device: Device) -> None:
    case = Case(torch.Generator().manual_seed(0), 1, 6, 9, scales=1, dtype=torch.float32, image_dtype=torch.bfloat16)
    sample = CASES[operator.name](case)
    wide = mapped(sample, lambda leaf: leaf.float() if leaf.dtype == torch.bfloat16 else leaf)
    expected = results(operator, as_float64(wide), "reference")
    with device.in_place():
        actual = results(operator, sample, "native")
    actual = [a if a is None else a.double() if a.is_floating_point() else a for a in actual]
    assert_close_in_float64(actual, expected, operator.name, 2**-7)  # results of 16 bits are rounded to 8
