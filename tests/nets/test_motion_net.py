"""Motion nets: correlation and upsampling against their definitions, a quiet start, and that a shift is learnt."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow
from torchvision.models.optical_flow.raft import CorrBlock

from mcd.nets import build_motion_net
from mcd.nets.motion import convex_upsample, correlation_pyramid


@pytest.fixture(scope="module", params=["light", "raft"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_motion_net(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force_correlation(first: Tensor, second: Tensor, radius: int, levels: int) -> Tensor:
    batch, channels, height, width = first.shape
    out = first.new_zeros(batch, levels, 2 * radius + 1, 2 * radius + 1, height, width)
    for level in range(levels):
        coarse = F.avg_pool2d(second, 2**level)

        def at(y: int, x: int, coarse: Tensor = coarse) -> Tensor:
            inside = 0 <= y < coarse.shape[2] and 0 <= x < coarse.shape[3]
            return coarse[:, :, y, x] if inside else torch.zeros_like(coarse[:, :, 0, 0])

        for y in range(height):
            for x in range(width):
                top, left = y // 2**level, x // 2**level
                v, u = y / 2**level - top, x / 2**level - left
                for i, dx in enumerate(range(-radius, radius + 1)):
                    for j, dy in enumerate(range(-radius, radius + 1)):
                        upper = (1 - u) * at(top + dy, left + dx) + u * at(top + dy, left + dx + 1)
                        lower = (1 - u) * at(top + dy + 1, left + dx) + u * at(top + dy + 1, left + dx + 1)
                        feature = (1 - v) * upper + v * lower
                        out[:, level, i, j, y, x] = (first[:, :, y, x] * feature).sum(1) / math.sqrt(channels)
    return out.flatten(1, 3)


def test_correlation_equals_its_definition() -> None:
    # 6 x 7 is no multiple of the coarser cells (2 and 4), so both the padding and the dropped remainder are met.
    first, second = random(2, 3, 6, 7), random(2, 3, 6, 7, seed=1)
    actual = correlation_pyramid(first, second, radius=2, levels=3)
    torch.testing.assert_close(actual, brute_force_correlation(first, second, 2, 3), rtol=1e-12, atol=1e-12)


def test_correlation_equals_the_lookup_of_torchvision() -> None:
    # The smallest size that four levels of torchvision take; float32, whose products of 8 features err by 1e-6.
    first, second = random(1, 8, 16, 24).float(), random(1, 8, 16, 24, seed=1).float()
    block = CorrBlock()
    block.build_pyramid(first, second)
    expected = block.index_pyramid(make_coords_grid(1, 16, 24))
    torch.testing.assert_close(correlation_pyramid(first, second, 4, 4), expected, rtol=1e-5, atol=1e-5)


def test_correlation_gradient() -> None:
    # Two levels at an odd width: the interpolated and the plain one.
    first, second = (random(1, 2, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: correlation_pyramid(a, b, 1, 2), (first, second), fast_mode=True)


def test_convex_upsampling_equals_that_of_torchvision() -> None:
    flow, weights = random(2, 2, 3, 5), random(2, 9 * 64, 3, 5, seed=1)
    torch.testing.assert_close(convex_upsample(flow, weights, 8), upsample_flow(flow, weights, 8), rtol=0, atol=1e-12)


def test_fresh_light_net_sees_almost_no_motion() -> None:
    torch.manual_seed(0)
    motion = build_motion_net("light")(*random(2, 2, 3, 64, 96).float())
    assert motion.shape == (2, 2, 64, 96)
    assert 0 < motion.abs().mean() < 0.5


def test_every_parameter_gets_a_gradient(net: nn.Module) -> None:
    net.train().zero_grad(set_to_none=True)
    net(*random(2, 2, 3, 64, 96).float()).square().mean().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # RAFT's encoder of the present flow sees zeros: there is one iteration, and it starts from zero flow.
    known = [name for name in dead if name == "update_block.motion_encoder.convflow1.0.weight"]
    assert dead == known


def test_evaluation_is_repeatable_and_does_not_see_the_batch(net: nn.Module) -> None:
    net.eval()
    warped, source = random(2, 2, 3, 64, 64).float()
    with torch.no_grad():
        both, again, alone = net(warped, source), net(warped, source), net(warped[:1], source[:1])
    assert torch.equal(both, again)
    # A convolution may sum in another order for another batch size.
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)


def test_motion_is_contiguous_float32_under_autocast(net: nn.Module) -> None:
    net.eval()
    warped, source = random(2, 1, 3, 64, 96).float().to(memory_format=torch.contiguous_format)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        motion = net(warped, source)
    assert motion.dtype == torch.float32
    assert motion.is_contiguous()


def test_light_net_learns_a_shift() -> None:
    torch.manual_seed(0)
    net = build_motion_net("light")
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        # Textures of 4-pixel grain; the second image is the first moved by up to 4 pixels, 2.2 in the mean.
        texture = F.interpolate(torch.rand(6, 3, 24, 24, generator=generator), scale_factor=4.0, mode="bilinear")
        shifts = torch.randint(-4, 5, (6, 2), generator=generator)
        first = texture[:, :, 16:80, 16:80]
        moved = [t[:, 16 - y : 80 - y, 16 - x : 80 - x] for t, (x, y) in zip(texture, shifts.tolist(), strict=True)]
        loss = (net(first, torch.stack(moved)) - shifts[:, :, None, None]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # A net that ignores the images cannot be better than 2.2.
    assert sum(losses[-10:]) / 10 < 1.3


def test_parameter_counts() -> None:
    counts = {name: sum(p.numel() for p in build_motion_net(name).parameters()) for name in ("light", "raft")}
    assert counts["raft"] == 5_257_536
    assert counts["light"] < 1e6


def test_images_too_small_for_the_coarsest_level_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"'raft' takes .* at least 64; this image is 32x64"):
        build_motion_net("raft")(*torch.zeros(2, 1, 3, 32, 64))


def test_unknown_net_names_the_known() -> None:
    with pytest.raises(ValueError, match="no motion net 'flow'; there are light, raft"):
        build_motion_net("flow")
