"""Where motion tells depth, where it tells a lie, and what holds the depth there."""

import pytest
import torch

from mcd.scene.start import only_where, start_loss, told_by_motion

HEIGHT, WIDTH, SHIFT = 64, 128, 4
CAR, FLAT = (slice(20, 44), slice(20, 50)), (slice(20, 44), slice(78, 108))
"""What moves along with the camera, and what has no texture."""


@pytest.fixture
def scene():
    """A wall at depth 2 that a camera passes sideways, by SHIFT pixels a frame; a part of it moves along."""
    generator = torch.Generator().manual_seed(0)
    wall = torch.rand(3, HEIGHT, WIDTH + 2 * SHIFT, generator=generator)
    wall[:, FLAT[0], FLAT[1].start : FLAT[1].stop + 2 * SHIFT] = 0.5
    frames = [wall[:, :, first : first + WIDTH].clone() for first in (0, SHIFT, 2 * SHIFT)]
    for frame in frames:
        frame[:, CAR[0], CAR[1]] = torch.rand(3, 24, 30, generator=torch.Generator().manual_seed(1))
    K = torch.tensor([[40.0, 0, 63.5], [0, 40, 31.5], [0, 0, 1]])[None]
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[0, :, 0, 3] = torch.tensor([SHIFT, -SHIFT]) * 2 / 40
    return {
        "reference": frames[1][None],
        "sources": torch.stack((frames[0], frames[2]))[None],
        "K": K,
        "T_src_ref": T,
    }


def inner(place):
    """A place without the window's half width."""
    return (0, 0, *(slice(side.start + 4, side.stop - 4) for side in place))


@pytest.mark.parametrize("least", [-0.01, 0.02])
def test_motion_tells_the_depth_of_what_stands_still_and_not_of_what_moves_along(scene, least):
    told = told_by_motion(**scene, depths=[torch.full((1, 1, HEIGHT, WIDTH), 2.0)], least=least)
    assert told.shape == (1, 1, HEIGHT, WIDTH)
    assert not told[inner(CAR)].any()
    assert told[0, 0, 4:16, 10:-10].all()
    # Where nothing is seen, there is no evidence for or against.
    assert bool(told[inner(FLAT)].all()) is bool(told[inner(FLAT)].any()) is (least < 0)


def test_of_two_depths_the_one_that_fits_counts(scene):
    right, wrong = torch.full((1, 1, HEIGHT, WIDTH), 2.0), torch.full((1, 1, HEIGHT, WIDTH), 0.5)
    wall = (0, 0, slice(4, 16), slice(20, -20))
    # Noise fits noise somewhere.
    assert told_by_motion(**scene, depths=[wrong], least=0.5)[wall].float().mean() < 0.1
    for depths in ([right, wrong], [wrong, right]):
        assert told_by_motion(**scene, depths=depths, least=0.5)[wall].all()


def test_pixels_that_no_source_shows_are_not_told(scene):
    away = scene | {"T_src_ref": scene["T_src_ref"].clone()}
    away["T_src_ref"][0, :, 0, 3] = 1e3
    assert not told_by_motion(**away, depths=[torch.full((1, 1, HEIGHT, WIDTH), 2.0)], least=0.02).any()


def test_depth_keeps_its_value_and_learns_only_where_it_is_told():
    told = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    told[..., :4] = True
    depths = [torch.rand(1, 1, 8 >> s, 8 >> s, requires_grad=True) for s in range(2)]
    held = only_where(told, depths)
    sum(depth.sum() for depth in held).backward()
    for scale, (depth, after) in enumerate(zip(depths, held, strict=True)):
        assert torch.equal(depth, after)
        assert (depth.grad[..., : 4 >> scale] == 1).all()
        assert (depth.grad[..., 4 >> scale :] == 0).all()


def test_what_is_told_counts_its_share():
    told = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    told[..., :2] = True
    depth = torch.full((1, 1, 4, 4), 2.0)
    depth[..., :2] = 8.0
    loss = start_loss(depth, torch.ones(1, 1, 4, 4), told, share=0.25)
    assert loss.item() == pytest.approx((0.25 * torch.log(torch.tensor(8.0)) + torch.log(torch.tensor(2.0))).item() / 2)
