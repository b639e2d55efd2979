"""Depth-scale alignment against a loop over instances, by hand, and its edges."""

import pytest
import torch
from harness import serving

from mcd import Instances, use_backend
from mcd.ops import align_scale
from mcd.ops.instance_stats import random_instances


@pytest.fixture(autouse=True, params=serving("align_scale", "reference", "native", "triton"))
def backend(request):
    """Each test runs with every backend that is there."""
    with use_backend(request.param):
        yield request.param


def uniform(*shape, seed=0, low=1.0, high=3.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(batch=1, width=4):
    """One instance of all pixels in each frame of one row."""
    return Instances.from_masks(list(torch.ones(batch, 1, 1, width, dtype=torch.bool)))


def loop(object_depth, target_depth, instances, scale, delta):
    aligned, losses = [], []
    for n in range(len(instances)):
        begin, end = instances.offset[n], instances.offset[n + 1]
        depth = object_depth[begin:end]
        target = target_depth[instances.frame[n], 0].flatten()[instances.pixel[begin:end].long()]
        normalised = depth / depth.mean()
        if scale is None:
            ratios = sorted((target / normalised)[target > 0].tolist())
            factor = ratios[(len(ratios) - 1) // 2]
        else:
            factor = scale[n]
        aligned.append(factor * normalised)
        errors = [abs(float(error)) for error in aligned[-1] - target]
        huber = [e**2 / 2 if e <= delta else delta * (e - delta / 2) for e in errors]
        losses.append(sum(huber) / len(huber))
    return torch.cat(aligned), losses


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("delta", [0.005, 1.0])
def test_agrees_with_a_loop_over_instances(given, delta):
    instances = random_instances((2, 5, 7), ([1, 34], [8, 9, 2]), generator())
    object_depth, target = uniform(len(instances.pixel)), uniform(2, 1, 5, 7, seed=1, low=5, high=9)
    target.view(-1)[::6] *= -1 if not given else 1  # not part of the closed form
    scale = uniform(5, seed=2, low=5, high=9) if given else None
    aligned, loss = align_scale(object_depth, target, instances, scale, delta=delta)
    expected_aligned, expected_loss = loop(object_depth, target, instances, scale, delta)
    torch.testing.assert_close(aligned, expected_aligned, rtol=1e-12, atol=0)
    assert loss.tolist() == pytest.approx(expected_loss, rel=1e-12)


def test_huber_by_hand():
    # Normalised depth 0.5 and 1.5, at scale 2: 1 and 3. Errors 0.25 (quadratic) and 2 (linear), δ = 0.5.
    target = torch.tensor([0.75, 5.0]).reshape(1, 1, 1, 2)
    aligned, loss = align_scale(torch.tensor([10.0, 30.0]), target, whole(width=2), torch.tensor([2.0]), delta=0.5)
    assert aligned.tolist() == [1, 3]
    assert loss.item() == pytest.approx((0.25**2 / 2 + 0.5 * (2 - 0.25)) / 2)


def test_closed_form_finds_the_scale_back_whatever_the_unit_of_the_object():
    target = uniform(1, 1, 1, 9)
    for unit in (1e-3, 1.0, 1e3):
        aligned, loss = align_scale(unit * target.flatten(), target, whole(width=9))
        torch.testing.assert_close(aligned, target.flatten(), rtol=1e-12, atol=0)
        assert loss.item() < 1e-20


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf])
def test_an_instance_without_a_positive_finite_mean_is_left_out(bad):
    instances = random_instances((1, 3, 3), ([4, 0, 3],), generator())
    object_depth, scale = uniform(7), uniform(3, seed=1)
    object_depth[:4] = bad
    for given in (scale.requires_grad_(), None):
        depth = object_depth.clone().requires_grad_()
        aligned, loss = align_scale(depth, uniform(1, 1, 3, 3, seed=2), instances, given)
        assert aligned.isnan().tolist() == [True] * 4 + [False] * 3
        assert loss[:2].tolist() == [0, 0]
        assert loss[2] > 0
        aligned[4:].sum().add(loss.sum()).backward()
        assert not depth.grad[:4].any()
        assert depth.grad.isfinite().all()
    assert scale.grad[:2].tolist() == [0, 0]
    assert scale.grad[2] != 0


def test_closed_form_without_a_target_is_left_out():
    target = torch.tensor([[0.0, -1, torch.nan], [0, 2, 2]], dtype=torch.float64).reshape(2, 1, 1, 3)
    aligned, loss = align_scale(torch.ones(6, dtype=torch.float64), target, whole(2, 3))
    assert aligned.tolist()[3:] == [2, 2, 2]
    assert aligned[:3].isnan().all()
    assert loss[0] == 0
    assert loss[1] > 0


@pytest.mark.parametrize("delta", [0.005, 2.0])
def test_gradients_run_through_the_mean_and_the_scale(delta):
    instances = random_instances((2, 3, 4), ([5, 0], [7]), generator())
    depth = uniform(12).requires_grad_()
    target, scale = uniform(2, 1, 3, 4, seed=1, low=5, high=9), uniform(3, seed=2).requires_grad_()

    def finite(depth, scale):
        aligned, loss = align_scale(depth, target, instances, scale, delta=delta)
        return aligned, loss

    assert torch.autograd.gradcheck(finite, (depth, scale))


def test_closed_form_is_a_constant_of_the_gradient():
    instances = whole(width=5)
    depth, target = uniform(5).requires_grad_(), uniform(1, 1, 1, 5, seed=1)
    aligned, loss = align_scale(depth, target, instances)
    scale = aligned.detach().mean().reshape(1)
    (gradient,) = torch.autograd.grad(loss.sum(), depth)
    (expected,) = torch.autograd.grad(align_scale(depth, target, instances, scale)[1].sum(), depth)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_target_has_no_gradient():
    target = uniform(1, 1, 1, 4).requires_grad_()
    _, loss = align_scale(uniform(4, seed=1), target, whole())
    assert not loss.requires_grad


@pytest.mark.parametrize("size", [(0, 3, 3), (2, 3, 3)])
def test_no_instance_gives_empty_results(size):
    instances = random_instances(size, [[]] * size[0], generator())
    for scale in (None, torch.zeros(0)):
        aligned, loss = align_scale(torch.zeros(0), torch.ones(size[0], 1, 3, 3), instances, scale)
        assert aligned.shape == loss.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"object_depth": torch.ones(3)}, ValueError, "object_depth has shape"),
        ({"target_depth": torch.ones(1, 1, 2, 4)}, ValueError, "target_depth has shape"),
        ({"target_depth": torch.ones(1, 1, 1, 4).double()}, TypeError, "target_depth is torch.float64"),
        ({"scale": torch.ones(2)}, ValueError, "scale has shape"),
        ({"instances": None}, TypeError, "instances should be mcd.Instances"),
        ({"delta": 0.0}, ValueError, "delta is 0.0"),
        ({"delta": float("nan")}, ValueError, "delta is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, exception, message):
    right = {"object_depth": torch.ones(4), "target_depth": torch.ones(1, 1, 1, 4), "instances": whole()}
    with pytest.raises(exception, match=f"align_scale: {message}"):
        align_scale(**(right | arguments))
