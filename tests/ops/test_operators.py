"""What holds for every operator and every backend, on the operator's own samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compare import Errors, assert_close_in_float64, assert_same, errors_of, pooled
from harness import (
    RegisteredCalls,
    SavedForBackward,
    call,
    differentiable,
    gradients,
    leaves,
    mapped,
    results,
    samples,
    serving,
    spoiled_gradients,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mcd import ops
from mcd.ops.registry import OPERATORS, Operator, Sample

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")

ALL = [pytest.param(operator, id=name) for name, operator in OPERATORS.items()]


def pairs(*backends: str) -> list:
    """Operators and those of these backends that serve them here."""
    return [
        pytest.param(operator, backend, id=f"{name}-{backend}", marks=pytest.mark.triton if backend == "triton" else ())
        for backend in backends
        for name, operator in OPERATORS.items()
        if operator.why_not(backend, "cpu") is None
    ]


IMPLEMENTED = pairs("native", "triton")
EVERY = pairs("reference", "native", "triton")
# Triton's gradients are the reference's, to all digits; in its interpreter finite differences would take minutes.
DIFFERENTIATED = pairs("reference", "native")
UNTRACED = ("test_schema", "test_autograd_registration", "test_faketensor")


def first_with_pixels(operator: Operator, dtype: torch.dtype = torch.float32) -> Sample:
    return next(sample for sample in samples(operator, dtype=dtype) if all(leaf.numel() for leaf in leaves(sample)))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, *backend.values, marks=backend.marks)
        for name in ("backward_warp", "forward_warp")
        for backend in serving(name, "native", "triton")
    ],
)
def test_a_gradient_that_is_not_finite_spoils_what_it_reaches_and_nothing_else(name: str, backend: str) -> None:
    # Sums in fixed point have one scale for all: a NaN may not set it, nor may one that reaches nothing show.
    expected = spoiled_gradients(name, "reference")
    assert expected[0].isfinite().all()
    assert 0 < expected[1].isnan().sum() <= 4
    assert_close_in_float64(spoiled_gradients(name, backend), expected, name)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_agrees_with_the_reference_in_float64(operator: Operator, backend: str) -> None:
    for ours, theirs in zip(samples(operator), samples(operator), strict=True):
        expected = results(operator, theirs, "reference")
        assert_close_in_float64(results(operator, ours, backend), expected, ours.label)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_float32_is_as_exact_as_the_reference(operator: Operator, backend: str) -> None:
    found: dict[tuple[str, int], list[Errors]] = {}
    # Triton's interpreter takes seconds for what the others do in milliseconds.
    for seed in range(3 if backend == "triton" else 24):
        for exact in samples(operator, seed=seed):
            single = mapped(exact, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
            double = mapped(single, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
            truth = results(operator, double, "reference")
            actual, reference = (results(operator, single, name) for name in (backend, "reference"))
            for i, errors in errors_of(actual, reference, truth).items():
                found.setdefault((exact.label, i), []).append(errors)
    assert found
    for (label, i), errors in found.items():
        pooled(errors).check(f"{label}[{i}]")


@pytest.mark.parametrize(("operator", "backend"), DIFFERENTIATED)
def test_gradients_are_those_of_finite_differences(operator: Operator, backend: str) -> None:
    checked = 0
    for sample in samples(operator):
        # Finite differences cost a call for each entry: small samples say the same.
        if sample.detached or sum(leaf.numel() for leaf in leaves(sample)) > 600:
            continue
        function, inputs = differentiable(operator, sample, backend)
        if inputs and function(*inputs):
            checked += torch.autograd.gradcheck(function, inputs, nondet_tol=0.0)
    if not checked:
        pytest.skip("a part of its formula is detached")


@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_strides_do_not_matter(operator: Operator, backend: str) -> None:
    def strided(leaf: Tensor) -> Tensor:
        wide = leaf.new_zeros(*leaf.shape, 3)
        wide[..., 1] = leaf
        return wide[..., 1]

    for sample in samples(operator):
        expected = results(operator, sample, backend)
        assert_close_in_float64(results(operator, mapped(sample, strided), backend), expected, sample.label, 1e-12)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_is_the_same_bit_for_bit_over_runs_and_threads(operator: Operator, backend: str, threads: None) -> None:
    for sample in samples(operator, dtype=torch.float32):
        torch.set_num_threads(1)
        expected = results(operator, sample, backend)
        # The interpreter runs one program after the other, so that more runs would show nothing.
        for run in range(2 if backend == "triton" else 20):
            torch.set_num_threads((1, 2, 4)[run % 3])
            assert_same(results(operator, sample, backend), expected, sample.label)


@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_reads_no_uninitialised_memory(operator: Operator, backend: str) -> None:
    for sample in samples(operator, dtype=torch.float32):
        expected = results(operator, sample, backend)
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
        try:
            actual = results(operator, sample, backend)
        finally:
            torch.use_deterministic_algorithms(False)
        assert_same(actual, expected, sample.label)


@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_computes_in_float32_under_autocast(operator: Operator, backend: str) -> None:
    sample = first_with_pixels(operator)
    expected = call(operator, sample, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(call(operator, sample, backend), expected)
        low = mapped(sample, lambda leaf: leaf.bfloat16() if leaf.is_floating_point() else leaf)
        for output, like in zip(call(operator, low, backend), expected, strict=True):
            assert output.dtype in (like.dtype, torch.bfloat16)


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_saves_a_twentieth_of_what_the_reference_saves(operator: Operator, backend: str) -> None:
    kept = {}
    for name in (backend, "reference"):
        sample = max(samples(operator), key=lambda sample: sum(leaf.numel() for leaf in leaves(sample)))
        with SavedForBackward(sample) as saved:
            outputs = call(operator, sample, name)
        kept[name] = saved.bytes(outputs)
    assert kept[backend] * 20 <= kept["reference"]


@pytest.mark.parametrize(("operator", "backend"), IMPLEMENTED)
def test_registered_operators_pass_opcheck(operator: Operator, backend: str) -> None:
    # Schema and shapes of Triton's are the native ones'; the interpreter takes its time.
    for sample in [first_with_pixels(operator, torch.float64)] if backend == "triton" else samples(operator):
        with RegisteredCalls() as recorded:
            results(operator, sample, backend)
        assert recorded.calls
        for function, args in recorded.calls:
            # opcheck compares the traced outputs with the eager ones, and to it a NaN differs from a NaN.
            outputs = [output for output in tree_leaves(function(*args)) if output.is_floating_point()]
            traced = () if any(output.isnan().any() for output in outputs) else ("test_aot_dispatch_dynamic",)
            torch.library.opcheck(function, args, test_utils=(*UNTRACED, *traced))


@pytest.mark.compiles
@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_compiles_into_one_graph_with_gradients(operator: Operator, backend: str) -> None:
    torch._dynamo.reset()
    sample = first_with_pixels(operator, torch.float64)

    # The graph and its gradients are what is tested here; the code generator is torch's.
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(args: tuple, kwargs: dict) -> list[Tensor]:
        return call(operator, Sample(args, kwargs), backend)

    expected = results(operator, sample, backend)
    outputs = compiled(sample.args, sample.kwargs)
    wanted = [leaf for leaf in leaves(sample) if leaf.requires_grad]
    actual: list[Tensor | None] = [output.detach() for output in outputs]
    actual += gradients(sample, outputs) if wanted else []
    assert_close_in_float64(actual, expected, relative=1e-12)


@pytest.mark.parametrize("operator", ALL)
def test_names_the_argument_that_is_wrong(operator: Operator) -> None:
    sample = first_with_pixels(operator)
    function = getattr(ops, operator.name)
    for place, argument in enumerate(sample.args):
        if not isinstance(argument, Tensor):
            continue
        for wrong, error in (
            (argument.detach().long(), TypeError),
            ("not a tensor", TypeError),
            (argument.detach().new_zeros(()), ValueError),
            (argument.detach().to("meta"), ValueError),
        ):
            if isinstance(wrong, Tensor) and wrong.is_meta and len(leaves(sample)) == 1:
                continue  # no other argument's device to differ from
            args = (*sample.args[:place], wrong, *sample.args[place + 1 :])
            with pytest.raises(error, match=operator.name):
                function(*args, **sample.kwargs)


def test_every_operator_has_a_room() -> None:
    """A file for the definition and a file for its tests, of the operator's name."""
    root = Path(__file__).parents[2]
    for name, operator in OPERATORS.items():
        rooms = [f"mcd/ops/{name}.py", f"tests/ops/test_{name}.py"]
        rooms += [f"csrc/{name}/{name}.{kind}" for kind in ("h", "cpp", "cu")] if operator.native else []
        rooms += [f"kernels/{name}.py"] if operator.triton else []
        assert [room for room in rooms if not (root / room).is_file()] == []
