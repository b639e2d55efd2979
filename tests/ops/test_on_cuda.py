"""What only a GPU shows of an operator: its kernels agree with the reference there, with the same bits on every run."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import pytest
import torch
from compare import Errors, assert_close_in_float64, assert_same, errors_of
from harness import call, leaves, mapped, results, samples
from torch import Tensor

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
    # How a dozen numbers round is luck, of the reference as of us, and a minimum that flips is no rounding: so the bar
    # is for the medians of many draws.
    draws = defaultdict(list)
    for seed in range(25):
        for single in samples(operator, CUDA, torch.float32, seed):
            double = mapped(single, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
            truth = results(operator, double, "reference")
            actual, reference = (results(operator, single, name) for name in (backend, "reference"))
            for i, errors in errors_of(actual, reference, truth).items():
                draws[f"{single.label}[{i}]"].append(errors)
    for what, every in draws.items():
        Errors(*map(median, zip(*every, strict=True))).check(what)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_is_the_same_bit_for_bit_over_runs(operator: Operator, backend: str) -> None:
    for sample in samples(operator, CUDA, torch.float32):
        expected = results(operator, sample, backend)
        for _ in range(20):
            assert_same(results(operator, sample, backend), expected, sample.label)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_a_graph_holds_both_passes(operator: Operator, backend: str) -> None:
    # Capture fails where something waits for the device or allocates outside of torch. A kernel on another stream than
    # the capturing one would not be in the graph, and what it writes is erased before the graph runs.
    def both_passes() -> list[Tensor | None]:
        outputs = call(operator, sample, backend)
        wanted = [leaf for leaf in leaves(sample) if leaf.requires_grad]
        reached = [output for output in outputs if output.requires_grad]
        upstream = [torch.ones_like(output) for output in reached]
        grads = torch.autograd.grad(reached, wanted, upstream, allow_unused=True)
        return [*(output.detach() for output in outputs), *grads]

    for sample in samples(operator, CUDA, torch.float32):
        if not all(leaf.numel() for leaf in leaves(sample)):
            continue  # no kernel runs
        expected = both_passes()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            both_passes()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = both_passes()
        for tensor in kept:
            if tensor is not None:
                tensor.zero_()
        graph.replay()
        assert_same(kept, expected, sample.label)
