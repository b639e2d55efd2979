"""What only a GPU shows of an operator: its kernels agree with the reference there, with the same bits on every run."""

from __future__ import annotations

import pytest
import torch
from compare import assert_as_exact_as, assert_close_in_float64, assert_same
from harness import mapped, results, samples

from mcd.ops.registry import OPERATORS, Operator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
]
CUDA = torch.device("cuda")
IMPLEMENTED = [
    pytest.param(operator, backend, id=f"{name}-{backend}")
    for backend in ("native", "triton")
    for name, operator in OPERATORS.items()
    if operator.why_not(backend, "cuda") is None
]


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_agrees_with_the_reference(operator: Operator, backend: str) -> None:
    for sample in samples(operator, CUDA):
        expected = results(operator, sample, "reference")
        assert_close_in_float64(results(operator, sample, backend), expected, sample.label)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_float32_is_as_exact_as_the_reference(operator: Operator, backend: str) -> None:
    for single in samples(operator, CUDA, torch.float32):
        double = mapped(single, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
        truth = results(operator, double, "reference")
        actual, reference = (results(operator, single, name) for name in (backend, "reference"))
        assert_as_exact_as(actual, reference, truth, single.label)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_is_the_same_bit_for_bit_over_runs(operator: Operator, backend: str) -> None:
    for sample in samples(operator, CUDA, torch.float32):
        expected = results(operator, sample, backend)
        for _ in range(20):
            assert_same(results(operator, sample, backend), expected, sample.label)
