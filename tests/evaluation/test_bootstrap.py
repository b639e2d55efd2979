"""Bootstrap intervals against the normal theory they should agree with, and against known differences."""

from __future__ import annotations

import numpy as np
import pytest

from mcd.evaluation.bootstrap import block_length, difference, draw_weights, intervals
from mcd.evaluation.metrics import METRICS


def rows(values: np.ndarray) -> dict[str, dict[str, float]]:
    return {str(number): dict.fromkeys(METRICS, float(value)) for number, value in enumerate(values)}


def test_the_interval_of_independent_frames_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.02, 400)
    low, high = intervals(rows(values), clip=False)["abs_rel"]
    wide = 1.96 * values.std() / 20
    # 2,000 draws know a percentile to about 3 % of the standard error.
    assert low == pytest.approx(values.mean() - wide, abs=0.15 * wide)
    assert high == pytest.approx(values.mean() + wide, abs=0.15 * wide)


def test_frames_that_repeat_one_another_have_a_wider_interval() -> None:
    values = np.repeat(np.random.default_rng(1).normal(0.1, 0.02, 50), 8)
    apart, clip = (intervals(rows(values), clip=clip)["abs_rel"] for clip in (False, True))
    # 400 frames that are 50: the true interval is sqrt(8) times that of 400; blocks of 7 reach most of it.
    assert 1.8 < (clip[1] - clip[0]) / (apart[1] - apart[0]) < 2.9


def test_a_small_difference_in_every_frame_is_real_and_noise_is_not() -> None:
    rng = np.random.default_rng(2)
    hard = rng.uniform(0.05, 0.5, 100)
    better, worse = hard - 0.002 + rng.normal(0, 0.002, 100), hard
    # The intervals of the two overlap nearly whole; paired, the difference is ten of its standard errors.
    one, other = (intervals(rows(values), clip=False)["abs_rel"] for values in (better, worse))
    assert one[1] > other[0]
    found = difference(rows(worse), rows(better), "abs_rel", clip=False)
    assert found is not None
    assert found.real
    assert found.mean == pytest.approx(float((worse - better).mean()))
    noise = difference(rows(hard + rng.normal(0, 0.01, 100)), rows(hard), "abs_rel", clip=False)
    assert noise is not None
    assert not noise.real


def test_of_true_nulls_one_in_twenty_is_called_real() -> None:
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(200):
        found = difference(rows(rng.normal(0, 1, 60)), rows(np.zeros(60)), "abs_rel", clip=False)
        called += found is not None and found.real
    assert 3 <= called <= 22  # binomial, 200 at 5 to 6 %: 99.9 % lie in here


def test_only_shared_frames_count_and_few_say_nothing() -> None:
    first, second = rows(np.arange(10.0)), rows(np.arange(10.0) + 1)
    few = {name: second[name] for name in list(second)[:4]}
    assert difference(first, few, "abs_rel", clip=False) is None
    assert intervals(few, clip=False) == {}
    found = difference(first, {name: second[name] for name in list(second)[:6]}, "abs_rel", clip=False)
    assert found is not None
    assert (found.frames, found.mean) == (6, -1.0)


def test_every_draw_is_a_mean_of_blocks() -> None:
    weights = draw_weights(10, 3, draws=50)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights.max(axis=1) > 0.1).any()
    assert block_length(1000, clip=True) == 10
    assert block_length(1000, clip=False) == 1
