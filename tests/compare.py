"""How results are compared, and why by these tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def assert_same(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], what: str = "") -> None:
    """Bit for bit, NaN being equal to NaN."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if a is None or b is None:
            assert a is b, f"{what}[{i}]: one of them is None"
            continue
        assert a.dtype == b.dtype, f"{what}[{i}]: {a.dtype} and {b.dtype}"
        assert a.shape == b.shape, f"{what}[{i}]: {list(a.shape)} and {list(b.shape)}"
        same = (a == b) | ((a != a) & (b != b))
        assert same.all(), f"{what}[{i}]: {int((~same).sum())} of {a.numel()} entries differ"


def assert_close_in_float64(
    actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], what: str = "", relative: float = 1e-10
) -> None:
    """Within `relative` of the largest entry: in double precision rounding is far below, a wrong formula far above.

    Integers and masks must be equal, and NaN stand at the same places. None stands for zeros.
    """
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b = _zeros_for_none(a, b)
        if a is None or b is None:
            continue
        assert a.shape == b.shape, f"{what}[{i}]: {list(a.shape)} and {list(b.shape)}"
        if not a.dtype.is_floating_point:
            assert_same([a], [b], f"{what}[{i}]")
            continue
        assert_same([a.isnan()], [b.isnan()], f"{what}[{i}] is NaN")
        difference, scale = (a - b).nan_to_num(), b.nan_to_num().abs()
        error = difference.abs().max() / scale.max().clamp(min=1e-30) if a.numel() else 0.0
        assert error <= relative, f"{what}[{i}]: off by {float(error):.1e} of the largest entry"


def assert_as_exact_as(
    actual: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
    truth: Sequence[Tensor | None],
    what: str = "",
) -> None:
    """A float32 result against float64: RMS at most 1.5 ×, maximum at most 3 × the reference's own float32 error.

    No fixed tolerance: how large rounding may be is what the plain PyTorch formula shows. Of few entries the ratio says
    nothing, so errors of a few roundings of the largest entry pass.
    """
    for i, errors in errors_of(actual, reference, truth).items():
        errors.check(f"{what}[{i}]")


def pooled(several: Sequence[Errors]) -> Errors:
    """The errors of several draws of the same result as those of one: a sum over pixels is a dozen numbers, whose
    rounding in a single draw is a matter of luck, and another processor's matrix products draw another luck."""
    rms, reference_rms, largest, reference_largest, floor = zip(*several, strict=True)
    return Errors(_rms(rms), _rms(reference_rms), max(largest), max(reference_largest), max(floor))


def _rms(values: Sequence[float]) -> float:
    return (sum(value**2 for value in values) / len(values)) ** 0.5


class Errors(NamedTuple):
    """Of one float32 result and of the reference's, and what passes as a rounding of its largest entry."""

    rms: float
    reference_rms: float
    largest: float
    reference_largest: float
    floor: float

    def check(self, what: str) -> None:
        assert self.rms <= max(1.5 * self.reference_rms, self.floor), (
            f"{what}: RMS error {self.rms:.1e}, the reference's {self.reference_rms:.1e}"
        )
        assert self.largest <= max(3 * self.reference_largest, 2 * self.floor), (
            f"{what}: largest error {self.largest:.1e}, the reference's {self.reference_largest:.1e}"
        )


def errors_of(
    actual: Sequence[Tensor | None], reference: Sequence[Tensor | None], truth: Sequence[Tensor | None]
) -> dict[int, Errors]:
    """By their place, the errors of the results that have any."""
    found = {}
    for i, (a, r, t) in enumerate(zip(actual, reference, truth, strict=True)):
        if a is None or r is None or t is None or not a.dtype.is_floating_point or a.numel() == 0:
            continue
        errors = [(value.double() - t).nan_to_num() for value in (a, r)]
        rms = [float(error.square().mean().sqrt()) for error in errors]
        largest = [float(error.abs().max()) for error in errors]
        floor = 2 * torch.finfo(torch.float32).eps * float(t.nan_to_num().abs().max())
        found[i] = Errors(*rms, *largest, floor)
    return found


def _zeros_for_none(a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if a is None and b is not None:
        a = torch.zeros_like(b)
    if b is None and a is not None:
        b = torch.zeros_like(a)
    return a, b
