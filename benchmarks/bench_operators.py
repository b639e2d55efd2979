"""Every operator: backends, torch.compile and peers, in turn within each round.

What pytest-benchmark prints is the time of a round, of all contestants together; the times of each are in the JSON's
`extra_info`, and `python -m benchmarks.report` makes a table of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import Settings, run_rounds
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
    benchmark.extra_info.update(kind="operator", **contest.summary(copy))
    torch._dynamo.reset()
