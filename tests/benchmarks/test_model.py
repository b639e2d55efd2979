"""The gate on modelled times: what it lets pass."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import model


def rows() -> list[dict]:
    return json.loads(model.RESULTS.read_text())


def test_the_kept_table_is_no_slower_than_itself_and_has_every_operator_on_both_processors() -> None:
    kept = rows()
    assert model.slower(kept, kept) == []
    assert {(r["operator"], r["architecture"]) for r in kept} == {
        (name, architecture) for name in model.OPERATORS for architecture in model.PROCESSORS
    }


def test_a_kernel_six_percent_slower_fails_and_one_four_percent_slower_does_not() -> None:
    kept, now = rows(), deepcopy(rows())
    row = now[0]["kernels"][0]
    row["microseconds"] = kept[0]["kernels"][0]["microseconds"] * 1.04
    assert model.slower(now, kept) == []
    row["microseconds"] = kept[0]["kernels"][0]["microseconds"] * 1.06
    (failure,) = model.slower(now, kept)
    assert row["kernel"] in failure


def test_an_operator_without_a_row_fails() -> None:
    kept = rows()
    assert len(model.slower(kept, kept[1:])) == 1
