"""Every operator: backends, torch.compile and peers, in turn within each round."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import Settings, record, run_rounds
from benchmarks.contest import Contest
from benchmarks.inputs import Size
from mcd.ops import OPERATORS

pytestmark = pytest.mark.timeout(0)


@pytest.mark.parametrize("operator", OPERATORS)
def bench_operator(benchmark: Any, settings: Settings, copy: float, operator: str, size: Size) -> None:
    contest = Contest(
        operator,
        size,
        settings.device,
        compiled=settings.compiled(operator, size),
        peers=not settings.backends_only,
        quick=settings.quick,
    )
    contest.check()
    run_rounds(benchmark, settings, contest)
    record(benchmark, kind="operator", **contest.summary(copy))
    torch._dynamo.reset()
