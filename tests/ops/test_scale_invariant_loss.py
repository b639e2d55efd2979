"""Scale-invariant loss against NumPy sample by sample, by hand, and its edges."""

import numpy as np
import pytest
import torch

from mcd import use_backend
from mcd.ops import scale_invariant_loss
from mcd.ops.registry import OPERATORS


@pytest.fixture(autouse=True, params=["reference", "native"])
def backend(request):
    """Each test runs with every backend that is there."""
    reason = OPERATORS["scale_invariant_loss"].why_not(request.param, "cpu")
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


def uniform(*shape, seed=0, low=1.0, high=3.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def loop(prediction, target, mask):
    def lower_median(values):
        return np.sort(values)[(len(values) - 1) // 2]

    total, weight, gates = 0.0, 0, []
    for p, q, m in zip(
        *(tensor.numpy().reshape(len(tensor), -1) for tensor in (prediction, target, mask)), strict=True
    ):
        gate = np.zeros(p.shape, bool)
        counted = (q > 0) & np.isfinite(q)
        if counted.any():
            rescaled = lower_median(p[counted] / q[counted]) * q
            gate = counted & (rescaled >= p[counted].min()) & (rescaled <= np.percentile(p[counted], 90))
        if gate.any():
            error = np.abs(p - lower_median(p[gate] / q[gate]) * q)
            total, weight = total + error[gate & m].sum(), weight + (gate & m).sum()
        gates.append(gate)
    return total / (weight + 1e-10), np.array(gates)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_loop_over_samples(seed):
    prediction, target = uniform(3, 1, 6, 7, seed=seed), uniform(3, 1, 6, 7, seed=seed + 10)
    target[0].view(-1)[::4] = 0
    target[1].view(-1)[::3] = torch.inf
    target[1].view(-1)[1::9] = torch.nan
    target[2].view(-1)[::5] *= -1
    mask = uniform(3, 1, 6, 7, seed=seed + 20) > 1.7
    loss, gate = scale_invariant_loss(prediction, target, mask)
    expected_loss, expected_gate = loop(prediction, target, mask)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    assert gate.dtype == torch.bool
    assert gate.shape == prediction.shape
    assert gate.flatten(1).tolist() == expected_gate.tolist()


def test_by_hand():
    # p/q is 2 at six of eight pixels: r₁ = 2, rescaled targets 2…14 and 20; p from 2 to 14, its 90th percentile 12.6.
    # The gate leaves out 14 and 20; r₂ = 2; errors over the gate are 0, but for 9 - 2·4 = 1.
    prediction = torch.tensor([2.0, 4, 6, 9, 10, 12, 14, 2]).reshape(1, 1, 2, 4)
    target = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 10]).reshape(1, 1, 2, 4)
    loss, gate = scale_invariant_loss(prediction, target, torch.ones(1, 1, 2, 4, dtype=torch.bool))
    assert gate.flatten().tolist() == [True] * 6 + [False] * 2
    assert loss.item() == pytest.approx(1 / 6)


def test_the_scale_of_a_sample_does_not_matter():
    prediction, target = uniform(2, 1, 5, 6), uniform(2, 1, 5, 6, seed=1)
    mask = torch.ones(2, 1, 5, 6, dtype=torch.bool)
    loss, _ = scale_invariant_loss(prediction, target, mask)
    # Powers of two keep every comparison as it is.
    rescaled, _ = scale_invariant_loss(prediction, target * torch.tensor([8.0, 0.25]).reshape(2, 1, 1, 1), mask)
    assert rescaled.item() == pytest.approx(loss.item(), rel=1e-12)


def test_the_mask_limits_the_sum_and_not_the_gate():
    prediction, target = uniform(1, 1, 5, 6), uniform(1, 1, 5, 6, seed=1)
    mask = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    full_loss, full_gate = scale_invariant_loss(prediction, target, ~mask)
    loss, gate = scale_invariant_loss(prediction, target, mask)
    assert loss == 0
    assert full_loss > 0
    assert gate.equal(full_gate)


@pytest.mark.parametrize("nothing", [0.0, -2.0, torch.nan, torch.inf])
def test_a_sample_without_a_target_adds_nothing(nothing):
    prediction, target = uniform(2, 1, 4, 5).requires_grad_(), uniform(2, 1, 4, 5, seed=1)
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    alone, _ = scale_invariant_loss(prediction[:1], target[:1], mask[:1])
    target[1] = nothing
    loss, gate = scale_invariant_loss(prediction, target, mask)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-14)
    assert not gate[1].any()
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_a_nan_counts_only_where_there_is_a_target():
    prediction, target = uniform(1, 1, 4, 5), uniform(1, 1, 4, 5, seed=1)
    mask = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    prediction[0, 0, 0, 0], target[0, 0, 0, 0] = torch.nan, 0
    prediction.requires_grad_()
    loss, gate = scale_invariant_loss(prediction, target, mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert not gate[0, 0, 0, 0]
    target[0, 0, 0, 0] = 1
    assert scale_invariant_loss(prediction, target, mask)[0].isnan()


def test_loss_over_nothing_is_zero():
    loss, gate = scale_invariant_loss(torch.ones(0, 1, 3, 3), torch.ones(0, 1, 3, 3), torch.ones(0, 1, 3, 3).bool())
    assert loss.item() == 0
    assert gate.shape == (0, 1, 3, 3)


def test_gradient_is_the_sign_of_the_error_over_gate_and_mask():
    prediction, target = uniform(2, 1, 4, 5).requires_grad_(), uniform(2, 1, 4, 5, seed=1).requires_grad_()
    mask = uniform(2, 1, 4, 5, seed=2) > 1.8
    loss, gate = scale_invariant_loss(prediction, target, mask)
    gradient, of_target = torch.autograd.grad(loss, (prediction, target), allow_unused=True)
    assert of_target is None
    chosen = gate & mask
    ratio = prediction / target
    factor = torch.stack([r[v].median() for r, v in zip(ratio, gate, strict=True)])
    expected = (ratio - factor.reshape(2, 1, 1, 1)).sign() * chosen / chosen.sum()
    assert (expected[gate & mask] == 0).any(), "the pixel that sets the factor should be among these"
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"prediction": torch.ones(1, 3, 3)}, ValueError, "prediction has shape"),
        ({"target": torch.ones(1, 1, 3, 4)}, ValueError, "target has shape"),
        ({"target": torch.ones(1, 1, 3, 3).double()}, TypeError, "target is torch.float64"),
        ({"mask": torch.ones(1, 1, 3, 3)}, TypeError, "mask is torch.float32"),
        ({"mask": torch.ones(2, 1, 3, 3).bool()}, ValueError, "mask has shape"),
    ],
)
def test_bad_arguments_are_named(arguments, exception, message):
    right = {name: torch.ones(1, 1, 3, 3) for name in ("prediction", "target")}
    right["mask"] = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(exception, match=f"scale_invariant_loss: {message}"):
        scale_invariant_loss(**(right | arguments))
