"""Calls are cheap: the way to a kernel takes little beside what torch itself takes for a registered operator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mcd import use_backend
from mcd.ops import backend as backends
from mcd.ops.registry import OPERATORS

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks.bench_overhead import ALLOWED, measure, smallest_arguments


@pytest.mark.parametrize("name", smallest_arguments())
def test_a_call_takes_little_more_than_a_plain_operator(name: str, threads: None) -> None:
    torch.set_num_threads(1)
    tried = []
    for _ in range(5):
        with torch.no_grad():
            tried.append(measure(name, smallest_arguments()[name]))
        # The bar is for a quiet machine and judged by the benchmark; what this must notice, a search for the backend or
        # a file at every call, takes a hundred microseconds. Where plain operators crawl, this does so as well.
        if tried[-1].seconds <= 4 * max(ALLOWED, tried[-1].plain):
            return
    pytest.fail(f"{tried}")


def test_every_operator_is_measured() -> None:
    assert set(smallest_arguments()) == set(OPERATORS)


def test_a_backend_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    why_not = backends.why_not
    monkeypatch.setattr(backends, "why_not", lambda *args: asked.append(args) or why_not(*args))
    operator, tensor = OPERATORS["motion_sparsity"], torch.zeros(1, 1, 1)
    backends.served.clear()
    first = operator.implementation(None, tensor)
    once = len(asked)
    assert once > 0
    assert operator.implementation(None, tensor) is first
    assert len(asked) == once
    with use_backend("reference"):
        assert operator.implementation(None, tensor) is operator.reference
    assert operator.implementation(None, tensor) is first
    # A choice for the process forgets what was found: what can serve may have changed meanwhile.
    asked.clear()
    monkeypatch.setattr(backends, "_process", {})
    backends.set_backend("auto")
    assert operator.implementation(None, tensor) is first
    assert asked
