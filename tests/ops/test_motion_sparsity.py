"""Motion sparsity against a loop, by hand, and its edges."""

import math

import pytest
import torch

from mcd.ops.motion_sparsity import motion_sparsity, motion_sparsity_reference


def test_agrees_with_a_loop_over_channels():
    motion = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for channel in motion.reshape(-1, 20):
        mean = sum(abs(float(m)) for m in channel) / 20
        values += [2 * mean * math.sqrt(abs(float(m)) / (mean + 1e-24) + 1) for m in channel]
    assert float(motion_sparsity(motion)) == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_any_number_of_leading_dimensions():
    motion = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert motion_sparsity(motion[None, None, None, None]) == motion_sparsity(motion)


def test_one_moving_pixel_costs_less_than_the_same_motion_spread():
    # Mean 1 over four pixels: spread 2·√2 each; alone (3·2·√1 + 2·√5) / 4.
    alone = torch.tensor([[[4.0, 0], [0, 0]]])
    spread = torch.ones(1, 2, 2)
    assert float(motion_sparsity(alone)) == pytest.approx((6 + 2 * math.sqrt(5)) / 4, rel=1e-6)
    assert float(motion_sparsity(spread)) == pytest.approx(2 * math.sqrt(2), rel=1e-6)


def test_gradient_holds_the_mean_constant():
    motion = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(motion_sparsity(motion), motion)
    mean = motion.detach().abs().mean((-2, -1), keepdim=True)
    expected = mean / (mean + 1e-24) / torch.sqrt(motion.abs() / (mean + 1e-24) + 1) * motion.sign() / motion.numel()
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=0)


def test_no_motion_costs_nothing_and_has_a_zero_gradient():
    for motion in (torch.zeros(2, 2, 3, 3), torch.zeros(0, 2, 3, 3), torch.zeros(1, 1, 1)):
        motion.requires_grad_()
        loss = motion_sparsity(motion)
        (gradient,) = torch.autograd.grad(loss, motion)
        assert loss.item() == 0 and not gradient.any()


def test_nan_in_nan_out():
    motion = torch.ones(1, 2, 2)
    motion[0, 0, 0] = torch.nan
    assert motion_sparsity_reference(motion).isnan()


@pytest.mark.parametrize(
    "motion, exception", [(torch.ones(3, 3), ValueError), (torch.ones(1, 3, 3).int(), TypeError), (None, TypeError)]
)
def test_bad_arguments_are_named(motion, exception):
    with pytest.raises(exception, match="motion_sparsity: motion"):
        motion_sparsity(motion)
