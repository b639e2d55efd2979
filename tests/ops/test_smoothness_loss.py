"""Smoothness against loops over pixel pairs, and its edges: one pixel, no pair, masked NaN."""

import math

import pytest
import torch
from harness import serving

from mcd import use_backend
from mcd.ops.smoothness_loss import smoothness_loss, smoothness_loss_reference


@pytest.fixture(autouse=True, params=serving("smoothness_loss", "reference", "native", "triton"))
def backend(request):
    """Each test runs with every backend that is there."""
    with use_backend(request.param):
        yield request.param


def uniform(*shape, seed=0, low=0.1):
    return low + torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(height, width):
    """(direction, pixel, next pixel) of every horizontal and vertical neighbour pair."""
    for y in range(height):
        for x in range(width):
            if x + 1 < width:
                yield 0, (y, x), (y, x + 1)
            if y + 1 < height:
                yield 1, (y, x), (y + 1, x)


def loop_edge_aware(disparity, image):
    batch, _, height, width = disparity.shape
    total = 0.0
    for b in range(batch):
        d = disparity[b, 0] / disparity[b, 0].mean()
        for direction, p, q in pairs(height, width):
            count = batch * (height * (width - 1) if direction == 0 else (height - 1) * width)
            edge = sum(abs(float(channel[p] - channel[q])) for channel in image[b]) / len(image[b])
            total += abs(float(d[p] - d[q])) * math.exp(-edge) / count
    return total


def loop_masked(disparity, mask):
    sums, counts = [0.0, 0.0], [0, 0]
    for d, m in zip(disparity[:, 0], mask[:, 0], strict=True):
        inside = [float(value) for value, keep in zip(d.reshape(-1), m.reshape(-1), strict=True) if keep]
        for direction, p, q in pairs(*d.shape):
            if m[p] and m[q]:
                sums[direction] += abs(float(d[p] - d[q])) / (sum(inside) / len(inside))
                counts[direction] += 1
    return sum(total / count for total, count in zip(sums, counts, strict=True) if count)


def test_edge_aware_form_agrees_with_a_loop_over_pairs():
    shapes = [(5, 7), (3, 4), (1, 2)]
    disparities = [uniform(2, 1, *shape) for shape in shapes]
    images = [uniform(2, 3, *shape, seed=1) for shape in shapes]
    expected = sum(loop_edge_aware(d, i) / 2**s for s, (d, i) in enumerate(zip(disparities, images, strict=True))) / 3
    assert float(smoothness_loss(disparities, images)) == pytest.approx(expected, rel=1e-12)


def test_object_form_agrees_with_a_loop_over_pairs():
    disparities = [uniform(3, 1, 5, 6), uniform(3, 1, 2, 3)]
    masks = [uniform(3, 1, *d.shape[-2:], seed=1, low=0) > 0.3 for d in disparities]
    masks[0][1] = False  # a frame without the object
    expected = sum(loop_masked(d, m) / 2**s for s, (d, m) in enumerate(zip(disparities, masks, strict=True))) / 2
    assert float(smoothness_loss(disparities, masks=masks)) == pytest.approx(expected, rel=1e-12)


def test_a_step_of_known_height():
    # Halves of 1 and 3 with mean 2: one pair in three differs, by 1 after normalisation; the edge damps it by e.
    disparity = torch.tensor([[1.0, 1, 3, 3]]).view(1, 1, 1, 4)
    image = torch.tensor([[0.0, 0, 1, 1]]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert float(smoothness_loss([disparity], [image])) == pytest.approx(math.exp(-1) / 3, rel=1e-6)
    whole = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    assert float(smoothness_loss([disparity], masks=[whole])) == pytest.approx(1 / 3, rel=1e-6)


def test_scaling_the_disparity_changes_nothing():
    disparity, image = uniform(1, 1, 4, 6), uniform(1, 3, 4, 6, seed=1)
    torch.testing.assert_close(smoothness_loss([disparity], [image]), smoothness_loss([7 * disparity], [image]))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked):
    disparities = [uniform(2, 1, 4, 5).requires_grad_(), uniform(2, 1, 2, 3, seed=3).requires_grad_()]
    guides = [uniform(2, 3, 4, 5, seed=1), uniform(2, 3, 2, 3, seed=2)]
    masks = [guide[:, :1] > 0.4 for guide in guides] if masked else None
    torch.autograd.gradcheck(lambda *d: smoothness_loss_reference(d, guides, masks=masks), disparities)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (0, 1, 4, 4), (2, 1, 1, 1)])
def test_no_pair_costs_nothing_and_has_a_zero_gradient(shape):
    disparity = uniform(*shape).requires_grad_()
    for kwargs in (
        {"images": [torch.zeros(shape, dtype=torch.float64)]},
        {"masks": [torch.ones(shape, dtype=torch.bool)]},
    ):
        loss = smoothness_loss([disparity], **kwargs)
        (gradient,) = torch.autograd.grad(loss, disparity)
        assert loss.item() == 0 and not gradient.any()


def test_an_object_without_an_interior_pair_costs_nothing():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., ::2, ::2] = True  # no two neighbours
    for sparse in (mask, torch.zeros_like(mask)):
        disparity = uniform(1, 1, 4, 4).requires_grad_()
        loss = smoothness_loss([disparity], masks=[sparse])
        loss.backward()
        assert loss.item() == 0 and disparity.grad.isfinite().all()


def test_nan_outside_the_mask_does_not_poison_the_loss():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    disparity = uniform(1, 1, 4, 4)
    clean = smoothness_loss([disparity], masks=[mask])
    disparity[..., 3] = torch.nan
    disparity.requires_grad_()
    loss = smoothness_loss([disparity], masks=[mask])
    loss.backward()
    assert torch.equal(loss, clean)
    assert disparity.grad.isfinite().all()


def test_nan_in_the_disparity_gives_nan():
    disparity = uniform(1, 1, 4, 4)
    disparity[..., 0, 0] = torch.nan
    assert smoothness_loss([disparity], [uniform(1, 3, 4, 4)]).isnan()


@pytest.mark.parametrize(
    "disparities, kwargs, exception, message",
    [
        ([uniform(1, 1, 4, 4)], {}, ValueError, "neither images nor masks"),
        ([uniform(1, 1, 4, 4)], {"images": []}, ValueError, "1 disparities and 0 images"),
        ([uniform(1, 1, 4, 4)], {"images": [uniform(1, 3, 4, 5)]}, ValueError, r"images\[0\]"),
        ([uniform(1, 1, 4, 4)], {"masks": [uniform(1, 1, 4, 4)]}, TypeError, r"masks\[0\]"),
        (uniform(1, 1, 4, 4), {"images": [uniform(1, 3, 4, 4)]}, TypeError, "disparities"),
        ([uniform(1, 2, 4, 4)], {"images": [uniform(1, 3, 4, 4)]}, ValueError, r"disparities\[0\]"),
    ],
)
def test_bad_arguments_are_named(disparities, kwargs, exception, message):
    with pytest.raises(exception, match=message):
        smoothness_loss(disparities, **kwargs)
