"""Statistics of instances against NumPy mask by mask, and their edges."""

import math

import numpy as np
import pytest
import torch
from harness import serving

from mcd import Instances, use_backend
from mcd.ops import instance_stats
from mcd.ops.instance_stats import distinct, instance_stats_reference, random_instances


@pytest.fixture(autouse=True, params=serving("instance_stats", "reference", "native", "triton"))
def backend(request):
    """Each test runs with every backend that is there."""
    with use_backend(request.param):
        yield request.param


QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def each(values, instances):
    """The values of each instance, as arrays."""
    return [part.numpy() for part in values.split(instances.count.tolist())]


def whole(values):
    """One instance of all of `values`."""
    return Instances.from_masks([torch.ones(1, 1, len(values), dtype=torch.bool)])


def random_values(count, dtype):
    return torch.randn(count, generator=generator(), dtype=torch.float64).to(dtype)


# What makes a selection by histograms go another way: more values than it holds apart, in one bin or in all.
HARD = {
    "spread": random_values,
    "one value": lambda count, dtype: torch.full((count,), 1.5, dtype=dtype),
    "two values": lambda count, dtype: (random_values(count, dtype) > 0).to(dtype),
    "many ties": lambda count, dtype: (3 * random_values(count, dtype)).round(),
    "neighbours in the last bit": lambda count, dtype: 1 + torch.finfo(dtype).eps * random_values(count, dtype).round(),
    "all magnitudes": lambda count, dtype: random_values(count, dtype) * 10 ** (12 * random_values(count, dtype)),
    "one far away": lambda count, dtype: random_values(count, dtype).index_fill(0, torch.tensor([7]), 1e30),
    "infinities": lambda count, dtype: 1 / (2 * random_values(count, dtype)).round(),
    "zeros of both signs": lambda count, dtype: torch.where((some := random_values(count, dtype)) > 1, 1.0, 0 * some),
    "subnormal": lambda count, dtype: random_values(count, dtype) * torch.finfo(dtype).tiny,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", HARD)
def test_ranks_of_many_values_are_exact(kind, dtype, backend):
    values = HARD[kind](3001, dtype)
    step = 1000 if backend == "triton" else 97  # the interpreter takes its time
    quantiles = [rank / 3000 for rank in range(0, 3001, step)]
    found = instance_stats(values, whole(values), quantiles, "lower").quantiles[0]
    ranks = [math.floor(quantile * 3000) for quantile in quantiles]
    assert found.tolist() == values.sort().values[ranks].tolist()
    interpolated = instance_stats(values, whole(values), (0.5001, 0.9), "linear").quantiles[0]
    if values.isfinite().all():
        expected = np.quantile(values.double().numpy(), (0.5001, 0.9))
        np.testing.assert_allclose(interpolated.double().numpy(), expected, rtol=1e-6, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("interpolation", ["lower", "linear"])
def test_agrees_with_numpy_mask_by_mask(interpolation):
    instances = random_instances((3, 5, 7), ([1, 2, 35], [], [3, 20]), generator())
    values = torch.randn(len(instances.pixel), generator=generator(), dtype=torch.float64)
    stats = instance_stats(values, instances, QUANTILES, interpolation)
    parts = each(values, instances)
    assert stats.count.tolist() == [len(part) for part in parts]
    assert stats.mean.tolist() == pytest.approx([part.mean() for part in parts], rel=1e-12)
    assert stats.min.tolist() == [part.min() for part in parts]
    assert stats.max.tolist() == [part.max() for part in parts]
    for part, quantiles in zip(parts, stats.quantiles, strict=True):
        expected = np.quantile(part, QUANTILES, method=interpolation)
        np.testing.assert_allclose(quantiles.numpy(), expected, rtol=1e-14, atol=1e-15)


def test_the_lower_median_is_the_one_of_torch_ties_included():
    instances = random_instances((1, 6, 6), ([1, 2, 8, 36],), generator())
    values = torch.randint(0, 4, (len(instances.pixel),), generator=generator()).float()
    stats = instance_stats(values, instances, (0.5,), "lower")
    expected = [part.median().item() for part in values.split(instances.count.tolist())]
    assert stats.quantiles[:, 0].tolist() == expected


def test_the_rank_is_rounded_down_in_double_precision():
    # 0.29 · 100 is a little less than 29 in double precision, and exactly 29 in single.
    values = torch.arange(101.0)
    assert instance_stats(values, whole(values), (0.29,), "lower").quantiles.item() == 28
    # 0.9 · 10 is exactly 9.
    assert instance_stats(values[:11], whole(values[:11]), (0.9,), "lower").quantiles.item() == 9


def test_values_of_whole_frames_are_looked_up():
    instances = random_instances((2, 4, 5), ([7], [9, 3]), generator())
    values = torch.randn(2, 1, 4, 5, generator=generator(), dtype=torch.float64)
    for of_frame, of_pixel in zip(
        instance_stats(values, instances, (0.3,)),
        instance_stats(instances.gather(values), instances, (0.3,)),
        strict=True,
    ):
        torch.testing.assert_close(of_frame, of_pixel, rtol=0, atol=0)


def test_negative_and_infinite_values_are_in_order():
    values = torch.tensor([3.0, -torch.inf, -2.0, torch.inf, 0.0])
    stats = instance_stats(values, whole(values), (0, 0.25, 0.5, 0.75, 1))
    assert stats.quantiles.tolist() == [[-torch.inf, -2, 0, 3, torch.inf]]
    assert (stats.min.item(), stats.max.item()) == (-torch.inf, torch.inf)


def test_an_empty_instance_has_a_count_only():
    instances = random_instances((1, 3, 3), ([0, 4, 0],), generator())
    stats = instance_stats(torch.ones(4), instances, (0.5, 0.9))
    assert stats.count.tolist() == [0, 4, 0]
    for name in ("mean", "min", "max"):
        assert getattr(stats, name).isnan().tolist() == [True, False, True]
    assert stats.quantiles.isnan().tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_a_nan_stays_within_its_instance():
    instances = random_instances((1, 3, 3), ([4, 3],), generator())
    values = torch.tensor([1.0, torch.nan, 2, 3, 5, 6, 7])
    stats = instance_stats(values, instances, (0.0, 0.5))
    assert stats.count.tolist() == [4, 3]
    for value in (stats.mean, stats.min, stats.max, stats.quantiles[:, 0], stats.quantiles[:, 1]):
        assert value[0].isnan()
    assert [stats.mean[1].item(), stats.min[1].item(), stats.max[1].item()] == [6, 5, 7]
    assert stats.quantiles[1].tolist() == [5, 6]


@pytest.mark.parametrize("size", [(0, 3, 3), (2, 3, 3)])
def test_no_instance_gives_empty_results(size):
    instances = random_instances(size, [[]] * size[0], generator())
    for values in (torch.zeros(0), torch.zeros(size[0], 1, 3, 3)):
        stats = instance_stats(values, instances, (0.5, 0.9))
        assert [tuple(value.shape) for value in stats] == [(0,)] * 4 + [(0, 2)]


def test_only_the_mean_has_a_gradient():
    instances = random_instances((1, 4, 5), ([7, 0, 5],), generator())
    values = torch.randn(12, generator=generator(), dtype=torch.float64, requires_grad=True)
    stats = instance_stats(values, instances, (0.5,))
    assert [value.requires_grad for value in stats] == [False, True, False, False, False]
    (gradient,) = torch.autograd.grad(stats.mean, values, torch.tensor([7.0, 100, 10], dtype=torch.float64))
    assert gradient.tolist() == pytest.approx([1.0] * 7 + [2.0] * 5, rel=1e-14)
    frames = torch.randn(1, 1, 4, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    instances = random_instances((1, 4, 5), ([7, 5],), generator())
    assert torch.autograd.gradcheck(lambda values: instance_stats(values, instances).mean, frames)


def test_values_under_autocast_are_float32():
    values = distinct((6,), generator()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert instance_stats(values, whole(values)).mean.dtype == torch.float32


def test_reference_works_without_its_wrapper():
    values = torch.arange(4.0)
    assert instance_stats_reference(values, whole(values)).mean.item() == 1.5


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"values": torch.ones(3)}, ValueError, r"values has shape \[3\]"),
        ({"values": torch.ones(1, 1, 2, 3)}, ValueError, "values has shape"),
        ({"values": torch.ones(4).int()}, TypeError, "values is torch.int32"),
        ({"values": None}, TypeError, "values should be a tensor"),
        ({"instances": torch.ones(1, 2, 2).bool()}, TypeError, "instances should be mcd.Instances, not Tensor"),
        ({"quantiles": (0.5, 1.1)}, ValueError, "quantiles"),
        ({"quantiles": (float("nan"),)}, ValueError, "quantiles"),
        ({"interpolation": "nearest"}, ValueError, "interpolation is 'nearest'"),
    ],
)
def test_bad_arguments_are_named(arguments, exception, message):
    right = {"values": torch.ones(4), "instances": whole(torch.ones(4)), "quantiles": (), "interpolation": "lower"}
    with pytest.raises(exception, match=f"instance_stats: {message}"):
        instance_stats(**(right | arguments))
