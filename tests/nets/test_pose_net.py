"""Pose nets: small motions, in temporal order, independent of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcd.nets import build_pose_net


@pytest.fixture(scope="module", params=["light", "resnet18"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_pose_net(request.param)


def frames(batch: int = 2) -> Tensor:
    return torch.rand(2, batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_a_fresh_net_predicts_almost_no_motion(net: nn.Module) -> None:
    angles, translation = net.train()(*frames())
    assert angles.shape == translation.shape == (2, 3)
    # Outputs of order one in hundredths of a radian and of a unit.
    assert 0 < angles.abs().max() < 0.02
    assert 0 < translation.abs().max() < 0.02


def test_every_parameter_gets_a_gradient(net: nn.Module) -> None:
    net.train().zero_grad(set_to_none=True)
    angles, translation = net(*frames())
    (angles.sum() + translation.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_exchanged_frames_are_another_motion(net: nn.Module) -> None:
    net.eval()
    first, second = frames()
    with torch.no_grad():
        forwards, backwards = torch.cat(net(first, second)), torch.cat(net(second, first))
    assert (forwards - backwards).abs().max() > 1e-6


def test_evaluation_does_not_see_the_batch(net: nn.Module) -> None:
    net.eval()
    first, second = frames()
    with torch.no_grad():
        both, alone = net(first, second), net(first[:1], second[:1])
    for value, single in zip(both, alone, strict=True):
        # A convolution may sum in another order for another batch size.
        torch.testing.assert_close(value[:1], single, rtol=1e-4, atol=1e-7)


def test_motion_is_float32_under_autocast(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert [value.dtype for value in net(*frames())] == [torch.float32, torch.float32]


def test_parameter_counts() -> None:
    counts = {name: sum(p.numel() for p in build_pose_net(name).parameters()) for name in ("light", "resnet18")}
    # Published: 13,013,492 with ResNet's classifier of 513,000, which nothing reads.
    assert counts["resnet18"] == 13_013_492 - 513_000
    assert counts["light"] < 1e6


def test_frames_of_two_sizes_are_rejected(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="inputs of one size"):
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 96))


def test_unknown_net_names_the_known() -> None:
    with pytest.raises(ValueError, match="no pose net 'deep'; there are light, resnet18"):
        build_pose_net("deep")
