"""Depth metrics by hand, against NumPy, and over an empty region."""

import math

import numpy as np
import pytest
import torch

from mcd.evaluation.metrics import METRICS, depth_metrics, median_ratio


def test_by_hand():
    # Truth 2 and 4 predicted as 3 and 4: errors 1 and 0, ratios 1.5 and 1.
    metrics = depth_metrics(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 4.0]))
    assert tuple(metrics) == METRICS
    expected = [0.25, 0.25, math.sqrt(0.5), math.log(1.5) / math.sqrt(2), 0.5, 1, 1]
    assert [float(metrics[name]) for name in METRICS] == pytest.approx(expected, rel=1e-6)


def test_thresholds_are_strict():
    metrics = depth_metrics(torch.tensor([1.25, 1.0]), torch.tensor([1.0, 1.5625]))
    assert [float(metrics[name]) for name in ("a1", "a2", "a3")] == [0, 0.5, 1]


def test_the_truth_has_no_error():
    truth = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) + 1
    metrics = depth_metrics(truth, truth)
    assert all(not metrics[name].any() for name in METRICS[:4])
    assert all(metrics[name].tolist() == [1, 1, 1] for name in METRICS[4:])


def test_pixels_outside_the_mask_do_not_count_whatever_they_are():
    generator = torch.Generator().manual_seed(0)
    prediction, truth = (torch.rand(2, 9, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    mask = torch.rand(2, 9, generator=generator) > 0.4
    prediction[~mask], truth[~mask] = torch.nan, 0.0
    metrics = depth_metrics(prediction, truth, mask)
    for b in range(2):
        alone = depth_metrics(prediction[b][mask[b]], truth[b][mask[b]])
        for name in METRICS:
            assert metrics[name][b] == pytest.approx(float(alone[name]), rel=1e-14)


def test_a_region_without_pixels_has_no_figure():
    mask = torch.tensor([[True, True], [False, False]])
    metrics = depth_metrics(torch.ones(2, 2), torch.ones(2, 2), mask)
    assert all(value.isnan().tolist() == [False, True] for value in metrics.values())
    assert median_ratio(torch.ones(2, 2), torch.ones(2, 2), mask).isnan().tolist() == [False, True]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_median_is_the_one_of_numpy(count):
    generator = torch.Generator().manual_seed(count)
    prediction, truth = (torch.rand(2, count, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = np.median(truth.numpy(), axis=-1) / np.median(prediction.numpy(), axis=-1)
    assert median_ratio(prediction, truth).tolist() == pytest.approx(expected.tolist(), rel=1e-14)


def test_metrics_after_the_median_ratio_do_not_depend_on_the_scale_of_the_prediction():
    generator = torch.Generator().manual_seed(0)
    prediction, truth = (torch.rand(50, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    one, other = (
        depth_metrics(scaled * median_ratio(scaled, truth), truth) for scaled in (prediction, 37.3 * prediction)
    )
    for name in METRICS:
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-12)


def test_a_nan_that_counts_is_not_passed_over():
    prediction = torch.tensor([1.0, torch.nan, 3.0])
    assert median_ratio(prediction, torch.ones(3)).isnan()
    assert depth_metrics(prediction, torch.ones(3))["abs_rel"].isnan()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="depth_metrics: prediction is"):
        depth_metrics(torch.ones(3), torch.ones(2))
    with pytest.raises(TypeError, match="median_ratio: mask"):
        median_ratio(torch.ones(3), torch.ones(3), torch.ones(3))
