"""Scale nets: one positive number a sample, the published linear output by option, nothing shared in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcd.nets import build_scale_net


@pytest.fixture(scope="module", params=["light", "resnet18"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_scale_net(request.param)


def inputs(batch: int = 2) -> tuple[Tensor, ...]:
    return torch.rand(batch, 5, 64, 96, generator=torch.Generator().manual_seed(1)).split((3, 1, 1), dim=1)


def pull_negative(net: nn.Module) -> None:
    """Make the last layer answer -3 or so, whatever it sees."""
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.constant_(last.bias, -3.0)


def test_one_scale_a_sample(net: nn.Module) -> None:
    scale = net(*inputs())
    assert scale.shape == (2,)
    # softplus(0) = 0.69, give or take the first weights.
    assert ((scale > 0.3) & (scale < 1.5)).all()


@pytest.mark.parametrize("name", ["light", "resnet18"])
def test_positive_by_default_and_linear_by_option(name: str) -> None:
    torch.manual_seed(0)
    linear = build_scale_net(name, positive=False).eval()
    pull_negative(linear)
    positive = build_scale_net(name).eval()
    positive.load_state_dict(linear.state_dict() | {"positive": torch.tensor(True)})
    with torch.no_grad():
        assert (linear(*inputs()) < 0).all()
        torch.testing.assert_close(positive(*inputs()), linear(*inputs()).exp().log1p())


def test_every_parameter_gets_a_gradient(net: nn.Module) -> None:
    net.zero_grad(set_to_none=True)
    net(*inputs()).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_sample_does_not_see_its_batch_in_training_either(net: nn.Module) -> None:
    net.train()
    alone = net(*(tensor[:1] for tensor in inputs()))
    # A convolution may sum in another order for another batch size.
    torch.testing.assert_close(net(*inputs())[:1], alone, rtol=1e-4, atol=1e-5)


def test_every_input_matters(net: nn.Module) -> None:
    net.eval()
    given = inputs()
    with torch.no_grad():
        scale = net(*given)
        for index in range(3):
            changed = [torch.zeros_like(tensor) if i == index else tensor for i, tensor in enumerate(given)]
            assert (net(*changed) - scale).abs().min() > 1e-6


def test_scale_is_float32_under_autocast(net: nn.Module) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(*inputs()).dtype == torch.float32


def test_parameter_counts() -> None:
    counts = {name: sum(p.numel() for p in build_scale_net(name).parameters()) for name in ("light", "resnet18")}
    assert counts["resnet18"] == 11_347_137
    assert counts["light"] < 1e6


def test_ground_with_colours_is_rejected(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"takes \[B, 1, H, W\], not \[1, 3, 64, 64\]"):
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))


def test_unknown_net_names_the_known() -> None:
    with pytest.raises(ValueError, match="no scale net 'dsa'; there are light, resnet18"):
        build_scale_net("dsa")
