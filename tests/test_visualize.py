"""Pictures: what a colour means, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcd.report.charts import COLOURS
from mcd.report.view import GROUND, HERE, MARK, PATH
from mcd.visualize import (
    colour_depth,
    colour_error,
    colour_flow,
    colour_shares,
    depth_range,
    from_bytes,
    gather_points,
    outline,
    panel,
    tint,
    to_bytes,
)


def test_nearer_is_brighter() -> None:
    depth = torch.linspace(1, 50, 200)[None]
    lightness = colour_depth(depth).mean(0)[0]
    assert (lightness.diff() <= 1e-6).all()
    assert lightness[0] > 0.7
    assert lightness[-1] < 0.05


def test_colours_do_not_depend_on_the_unit_of_depth() -> None:
    depth = torch.rand(8, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.allclose(colour_depth(depth), colour_depth(1000 * depth), atol=1e-5)


@pytest.mark.parametrize("unknown", [0.0, -1.0, float("nan"), float("inf")])
def test_pixels_without_depth_are_grey_and_change_no_other(unknown: float) -> None:
    depth = torch.rand(8, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    holed = torch.cat([depth, torch.full((8, 1), unknown)], dim=1)
    picture = colour_depth(holed)
    assert torch.equal(picture[:, :, :9], colour_depth(depth))
    assert torch.equal(picture[:, 0, 9], picture[:, 7, 9])
    assert picture[:, 0, 9].std() < 0.02


def test_a_map_without_any_depth_can_be_drawn() -> None:
    assert colour_depth(torch.zeros(2, 3)).shape == (3, 2, 3)


def test_the_range_of_a_constant_depth_can_be_drawn() -> None:
    assert torch.isfinite(colour_depth(torch.full((2, 3), 5.0))).all()


def test_the_range_ignores_a_few_outliers() -> None:
    depth = torch.cat([torch.linspace(10, 20, 1000), torch.tensor([1e-3, 1e6])])
    near, far = depth_range(depth[None])
    assert near == pytest.approx(10, rel=0.03)
    assert far == pytest.approx(20, rel=0.03)


def test_too_near_is_blue_and_too_far_red() -> None:
    near, right, far = colour_error(torch.tensor([[1.0, 2.0, 4.0]]), torch.full((1, 3), 2.0))[:, 0].T
    assert near[2] > 2 * near[0]
    assert far[0] > 2 * far[2]
    assert right.min() > 0.9


def test_flow_is_white_where_nothing_moves_and_opposite_ways_differ() -> None:
    flow = torch.zeros(2, 1, 3)
    flow[0, 0, 0], flow[0, 0, 2] = -1.0, 1.0
    left, still, right = colour_flow(flow)[:, 0].T
    assert torch.equal(still, torch.ones(3))
    assert (left - right).abs().max() > 0.5


def test_an_outline_leaves_the_inside_and_the_outside_alone() -> None:
    picture = torch.zeros(3, 6, 7)
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[1:5, 1:6] = True
    drawn = outline(picture, mask).amax(0) > 0
    border = mask.clone()
    border[2:4, 2:5] = False
    assert torch.equal(drawn, border)


def test_gathered_points_are_the_nearest_of_their_cell() -> None:
    sparse = torch.zeros(4, 6)
    sparse[0, 0], sparse[1, 1], sparse[3, 5] = 7.0, 3.0, 9.0
    assert gather_points(sparse, (2, 3)).tolist() == [[3.0, 0.0, 0.0], [0.0, 0.0, 9.0]]


def test_a_panel_puts_pictures_in_their_places() -> None:
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 5)
    blue = torch.tensor([0, 0, 1.0])[:, None, None].expand(3, 8, 10)  # twice as large: shrunk to the first
    sheet = panel([[red, None], [None, blue]], gap=1)
    assert sheet.shape == (3, 1 + 2 * 5, 1 + 2 * 6)
    assert torch.equal(sheet[:, 1:5, 1:6], red)
    assert torch.equal(sheet[:, 6:10, 7:12], blue[:, :4, :5])
    assert (sheet[:, 1:5, 7:12] == 1).all()


def test_bytes_survive_the_way_to_a_picture_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(to_bytes(from_bytes(image)), image)


def test_maps_of_the_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth must be \[H, W\], got \[1, 2, 3\]"):
        colour_depth(torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="one size"):
        colour_error(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least one picture"):
        panel([[None]])


def test_tint_colours_what_is_covered_and_greys_the_rest() -> None:
    picture = torch.tensor([0.9, 0.3, 0.0])[:, None, None].expand(3, 2, 2)
    share = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    tinted = tint(picture, share, colour=(0.0, 1.0, 0.0))
    assert tinted[:, 0, 0].tolist() == pytest.approx([0.4] * 3)
    assert tinted[:, 0, 1].tolist() == pytest.approx([0.2, 0.7, 0.2])
    with pytest.raises(ValueError, match="share is"):
        tint(picture, share[:1])


def test_shares_are_mixed_and_each_has_its_own_colour() -> None:
    whole = torch.eye(8)[:, :, None]
    colours = colour_shares(whole)[:, :, 0].T
    assert torch.cdist(colours, colours).add(torch.eye(8)).min() > 0.1
    mixed = colour_shares((whole[:, :1] + whole[:, 1:2]) / 2)
    torch.testing.assert_close(mixed[:, 0, 0], (colours[0] + colours[1]) / 2)
    with pytest.raises(ValueError, match="9 shares"):
        colour_shares(torch.ones(9, 1, 1))


# Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1: of linear RGB.
BLIND = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colours: torch.Tensor, sight: str) -> torch.Tensor:
    """CIE L*a*b* of sRGB colours [n,3], D65, as somebody with a colour vision deficiency sees them."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    linear = (linear @ torch.tensor(BLIND[sight], dtype=colours.dtype).T).clamp(0, 1)
    xyz = (
        linear
        @ torch.tensor(
            [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
        )
        .to(colours)
        .T
        / torch.tensor([0.95047, 1.0, 1.08883]).to(colours)
    )
    f = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), dim=1)


@pytest.mark.parametrize("sight", BLIND)
def test_whoever_is_colour_blind_tells_colours_apart(sight: str) -> None:
    # From a distance of about 10, two areas that lie apart are seen to differ at a glance.
    shares = colour_shares(torch.eye(8)[:, :, None])[:, :, 0].T.double()
    assert torch.pdist(lab(shares, sight)).min() > 10
    depth = colour_depth(1 / (1 + torch.linspace(0, 1, 64)[None]), (0.5, 1.0))[:, 0].T.double()
    assert (lab(depth, sight)[:, 0].diff() > -0.5).all(), "nearer is lighter"
    error = colour_error(4 ** torch.linspace(0, 1, 3)[None] / 2, torch.ones(1, 3))[:, 0].T.double()
    assert torch.pdist(lab(error, sight)).min() > 40
    lines = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in COLOURS]).double() / 255
    assert torch.pdist(lab(lines, sight)).min() > 10
    marks = torch.tensor([MARK, PATH, HERE, GROUND]).double() / 255
    assert torch.pdist(lab(marks, sight)).min() > 20
