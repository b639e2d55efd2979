"""What holds for every operator on inputs that nobody chose: sizes, strides, dtypes, geometry that no camera sees."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, Case
from compare import assert_close_in_float64, assert_same
from harness import call, mapped, results
from torch import Tensor

from mcd.ops.registry import OPERATORS, Operator

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

pytestmark = [
    pytest.mark.skipif(
        OPERATORS["backward_warp"].why_not("native", "cpu") is not None, reason="the compiled module is missing"
    ),
    pytest.mark.parametrize("operator", [pytest.param(OPERATORS[name], id=name) for name in CASES]),
]
# The same examples on every run: a failure can be found again.
EXAMPLES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
NEEDS_WINDOWS = ("photometric_error", "view_synthesis_loss")
WILD = (0.0, -0.0, -3.0, 1e-30, 1e6, -1e6, math.inf, -math.inf, math.nan)


@st.composite
def cases(draw: st.DrawFn, least: int = 1, **fields: object) -> Case:
    return Case(
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))),
        batch=draw(st.integers(0, 3)),
        height=draw(st.integers(least, 20)),
        width=draw(st.integers(least, 37)),
        sources=draw(st.integers(1, 3)),
        scales=draw(st.integers(1, 3)),
        motion=draw(st.sampled_from((0, 2, 3))),
        **fields,  # type: ignore[arg-type]
    )


def case_for(operator: Operator, data: st.DataObject, **fields: object) -> Case:
    return data.draw(cases(4 if operator.name in NEEDS_WINDOWS else 1, **fields))


def laid_out(layout: int, leaf: Tensor) -> Tensor:
    """The same numbers, otherwise in memory: dense, every second one, or with the axes in reverse order."""
    if layout == 1:
        wide = leaf.new_zeros(*leaf.shape, 2)
        wide[..., 0] = leaf
        return wide[..., 0]
    if layout == 2:
        order = list(reversed(range(leaf.dim())))
        return leaf.permute(order).contiguous().permute(order)
    return leaf


@EXAMPLES
@given(data=st.data())
def test_any_size_and_layout_agrees_with_the_reference(operator: Operator, data: st.DataObject) -> None:
    sample = CASES[operator.name](case_for(operator, data))
    expected = results(operator, sample, "reference")
    layout = data.draw(st.integers(0, 2))
    other = mapped(sample, lambda leaf: laid_out(layout, leaf))
    assert_close_in_float64(results(operator, other, "native"), expected, operator.name)


@EXAMPLES
@given(data=st.data())
def test_impossible_geometry_agrees_with_the_reference(operator: Operator, data: st.DataObject) -> None:
    # Behind the camera, at infinity, not a number, or moved by thousands of images.
    share = data.draw(st.sampled_from((0.02, 0.3, 1.0)))
    values = data.draw(st.lists(st.sampled_from(WILD), min_size=1, max_size=3))

    def spoil(geometry: Tensor) -> Tensor:
        chosen = torch.rand(geometry.shape, generator=case.generator) < share
        which = torch.randint(0, len(values), geometry.shape, generator=case.generator)
        return torch.where(chosen, torch.tensor(values, dtype=geometry.dtype)[which], geometry)

    case = case_for(operator, data, distance=data.draw(st.sampled_from((0.5, 10.0, 1e4))))
    case.spoil = spoil
    sample = CASES[operator.name](case)
    expected = [value.nan_to_num() if value is not None else None for value in results(operator, sample, "reference")]
    actual = [value.nan_to_num() if value is not None else None for value in results(operator, sample, "native")]
    assert_close_in_float64(actual, expected, operator.name, 1e-8)


@EXAMPLES
@given(data=st.data())
def test_float32_and_16_bit_images_never_crash_on_impossible_geometry(operator: Operator, data: st.DataObject) -> None:
    # In float32 the references themselves disagree with float64 there; that all of it ends is what is asked.
    image_dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    case = case_for(operator, data, dtype=torch.float32, image_dtype=image_dtype)
    spoilt = data.draw(st.sampled_from(WILD))

    def spoil(geometry: Tensor) -> Tensor:
        return torch.where(torch.rand(geometry.shape, generator=case.generator) < 0.2, spoilt, geometry)

    case.spoil = spoil
    sample = CASES[operator.name](case)
    assert_same(results(operator, sample, "native"), results(operator, sample, "native"), operator.name)


@EXAMPLES
@given(data=st.data())
def test_16_bit_images_are_read_exactly_and_rounded_once(operator: Operator, data: st.DataObject) -> None:
    image_dtype = data.draw(st.sampled_from((torch.bfloat16, torch.float16)))
    sample = CASES[operator.name](case_for(operator, data, dtype=torch.float32, image_dtype=image_dtype))
    wide = mapped(sample, lambda leaf: leaf.float() if leaf.dtype == image_dtype else leaf)
    actual, expected = call(operator, sample, "native"), call(operator, wide, "native")
    assert_same(actual, [b.to(a.dtype) for a, b in zip(actual, expected, strict=True)], operator.name)
