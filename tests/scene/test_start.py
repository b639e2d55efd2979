"""Where motion tells depth, where it tells a lie, and what holds the depth there."""

import math

import pytest
import torch

from mcd import ops
from mcd.scene.start import start_loss, told_by_motion, travelled, without_untold

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


def at(depth, start):
    return {name: torch.full((1, 1, HEIGHT, WIDTH), value) for name, value in (("depth", depth), ("start", start))}


def inner(place):
    """A place without the window's half width."""
    return (0, 0, *(slice(side.start + 4, side.stop - 4) for side in place))


@pytest.mark.parametrize("least", [-0.01, 0.02])
def test_motion_tells_the_depth_of_what_stands_still_and_not_of_what_moves_along(scene, least):
    told = told_by_motion(**scene, **at(2.0, 2.0), least=least)
    assert told.shape == (1, 1, HEIGHT, WIDTH)
    assert not told[inner(CAR)].any()
    assert told[0, 0, 4:16, 10:-10].all()
    # Where nothing is seen, there is no evidence for or against.
    assert bool(told[inner(FLAT)].all()) is bool(told[inner(FLAT)].any()) is (least < 0)


def test_of_depth_and_start_the_one_that_fits_counts_if_they_are_near(scene):
    wall = (0, 0, slice(4, 16), slice(20, -20))
    for depth, start in ((2.0, 0.5), (0.5, 2.0), (2.0, 1.5)):
        told = told_by_motion(**scene, **at(depth, start), least=0.5)
        # Noise fits noise somewhere.
        assert bool(told[wall].float().mean() > 0.9) == (start != 0.5)


def test_what_moves_along_is_not_told_when_its_depth_has_gone_to_infinity(scene):
    assert not told_by_motion(**scene, **at(100.0, 2.0), least=-0.03)[inner(CAR)].any()


def test_pixels_that_no_source_shows_are_not_told(scene):
    away = scene | {"T_src_ref": scene["T_src_ref"].clone()}
    away["T_src_ref"][0, :, 0, 3] = 1e3
    assert not told_by_motion(**away, **at(2.0, 2.0), least=0.02).any()


def test_neither_depth_nor_motion_follows_what_is_not_told():
    told = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    told[..., CAR[0], CAR[1]] = False
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 3, HEIGHT, WIDTH, generator=generator)
    reference, sources = without_untold(told, images[:, 0], images[:, 1:])
    assert torch.equal(reference[told.expand_as(reference)], images[:, 0][told.expand_as(reference)])
    depth = torch.full((1, 1, HEIGHT, WIDTH), 2.0, requires_grad=True)
    K = torch.tensor([[40.0, 0, 63.5], [0, 40, 31.5], [0, 0, 1]])[None]
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[0, :, 0, 3] = torch.tensor([0.2, -0.2])
    result = ops.view_synthesis_loss(reference, sources, [depth], K, T)
    result.loss.backward()
    assert result.auto_mask.any()
    assert not result.auto_mask[:, None][inner(CAR)].any()
    assert depth.grad[inner(CAR)].count_nonzero() == 0


def test_what_is_told_counts_its_share_and_its_mean():
    told = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    told[..., :2] = True
    depth = torch.full((1, 1, 4, 4), 2.0)
    depth[..., :2] = 8.0
    ones = torch.ones(1, 1, 4, 4)
    held, followed = math.log(2), math.log(8)
    expected = (0.25 * followed + held) / 2 + followed
    assert start_loss(depth, ones, told, share=0.25).item() == pytest.approx(expected)
    # Told depth that is nearer here and farther there keeps its unit.
    depth[..., 0] = 1 / 8
    assert start_loss(depth, ones, told, share=0.25).item() == pytest.approx((0.25 * followed + held) / 2)
    assert start_loss(depth, ones, torch.zeros_like(told), share=0.25).item() > 0


def test_a_camera_that_hardly_moves_tells_nothing(scene):
    # By 0.2 units towards either source.
    still = torch.eye(4).repeat(1, 2, 1, 1)
    T = torch.cat((scene["T_src_ref"], still))
    assert travelled(T, 0.19).flatten().tolist() == [True, False]
    assert travelled(T, 0.21).flatten().tolist() == [False, False]
    assert travelled(T, 0.0).all()
