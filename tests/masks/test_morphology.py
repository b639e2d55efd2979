"""Mask work against loops over pixels, and on drawn cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from mcd.masks import morphology as work

# Not square; wider than a structuring element of radius 2, not than two of them.
SIZE = (7, 9)


@pytest.fixture
def noise() -> Tensor:
    """Masks of every density, an empty and a full one among them."""
    density = torch.linspace(0, 1, 12)[:, None, None]
    return torch.rand(12, *SIZE, generator=torch.Generator().manual_seed(0)) < density


def drawn(*shapes: tuple[slice, slice], size: tuple[int, int] = (20, 30)) -> Tensor:
    masks = torch.zeros(len(shapes), *size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, shapes, strict=True):
        mask[rows, columns] = True
    return masks


def pixels(mask: Tensor) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in mask.nonzero()}


def test_boxes_are_those_of_a_loop_over_pixels(noise: Tensor) -> None:
    for mask, box, filled, area in zip(
        noise, work.boxes(noise).tolist(), work.filled_boxes(noise), work.box_areas(noise).tolist(), strict=True
    ):
        inside = pixels(mask)
        rows, columns = [y for y, _ in inside], [x for _, x in inside]
        expected = [min(columns), min(rows), max(columns) + 1, max(rows) + 1] if inside else [0, 0, 0, 0]
        assert box == expected
        covered = set(itertools.product(range(expected[1], expected[3]), range(expected[0], expected[2])))
        assert pixels(filled) == covered
        assert area == len(covered)


def test_a_grown_box_is_the_dilated_one_and_that_of_nothing_stays_empty(noise: Tensor) -> None:
    margins = torch.arange(len(noise)) % 4
    for mask, margin, grown in zip(noise, margins.tolist(), work.filled_boxes(noise, margins), strict=True):
        box = work.filled_boxes(mask[None])
        assert torch.equal(grown, work.dilate(box, margin)[0])
        assert torch.equal(work.filled_boxes(mask[None], margin)[0], grown)
    assert not work.filled_boxes(torch.zeros(1, 5, 6, dtype=torch.bool), 3).any()


def test_the_box_of_a_single_pixel_has_an_area() -> None:
    # The published boxes end at the last pixel itself, so that this one is degenerate.
    assert work.boxes(drawn((slice(3, 4), slice(5, 6)))).tolist() == [[5, 3, 6, 4]]


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_dilation_and_erosion_are_those_of_a_loop_over_pixels(noise: Tensor, radius: int) -> None:
    height, width = SIZE
    for mask, grown, shrunk in zip(noise, work.dilate(noise, radius), work.erode(noise, radius), strict=True):
        for y, x in itertools.product(range(height), range(width)):
            window = mask[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            assert grown[y, x] == window.any()
            assert shrunk[y, x] == window.all()


def test_five_dilations_by_five_are_one_of_radius_ten() -> None:
    # The published sizes are given as repeated 5x5 kernels.
    mask = drawn((slice(8, 9), slice(12, 17)))
    repeated = mask
    for _ in range(5):
        repeated = work.dilate(repeated, 2)
    assert torch.equal(work.dilate(mask, 10), repeated)


def test_opening_drops_what_is_thin_and_closing_fills_gaps() -> None:
    mask = drawn((slice(5, 12), slice(5, 12)))
    line, gap = mask.clone(), mask.clone()
    line[0, 8, 12:30] = True
    gap[0, 8, 5:12] = False
    assert torch.equal(work.opened(line, 2), mask)
    assert torch.equal(work.closed(gap, 1), mask)
    assert not work.opened(drawn((slice(3, 4), slice(3, 4))), 1).any()


def test_parts_are_those_of_a_flood_fill(noise: Tensor) -> None:
    parts, owner = work.components(noise)
    found: list[tuple[int, frozenset[tuple[int, int]]]] = [
        (int(which), frozenset(pixels(part))) for part, which in zip(parts, owner, strict=True)
    ]
    expected = []
    for index, mask in enumerate(noise):
        left = pixels(mask)
        while left:
            part, border = set(), [left.pop()]
            while border:
                y, x = border.pop()
                part.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                border += near
            expected.append((index, frozenset(part)))
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert owner.tolist() == sorted(owner.tolist())


def test_small_parts_are_left_out_and_neighbouring_masks_stay_apart() -> None:
    masks = drawn((slice(0, 4), slice(0, 4)), (slice(0, 4), slice(0, 4)))
    masks[0, 10, 10:13] = True
    parts, owner = work.components(masks, smallest=4)
    assert owner.tolist() == [0, 1]
    assert work.areas(parts).tolist() == [16, 16]


def test_nothing_has_no_parts_and_merges_into_nothing() -> None:
    for nothing in (torch.zeros(0, *SIZE, dtype=torch.bool), torch.zeros(3, *SIZE, dtype=torch.bool)):
        assert work.components(nothing)[0].shape == (0, *SIZE)
        merged, members = work.merge(nothing)
        assert merged.shape == (0, *SIZE) and members == []
        assert work.match(nothing, nothing) == []
        for radius in (0, 2):
            assert not work.closed(nothing, radius).any()


def test_overlaps_are_those_of_sets_of_pixels(noise: Tensor) -> None:
    others = noise.flip(0)[:5]
    shared, union, covered = (
        work.intersections(noise, others),
        work.overlap(noise, others),
        work.coverage(noise, others),
    )
    for (i, mask), (j, other) in itertools.product(enumerate(noise), enumerate(others)):
        a, b = pixels(mask), pixels(other)
        assert shared[i, j] == len(a & b)
        assert union[i, j].item() == pytest.approx(len(a & b) / max(len(a | b), 1))
        assert covered[i, j].item() == pytest.approx(len(a & b) / max(len(a), 1))


def test_box_excess_is_what_the_box_has_beyond_the_mask() -> None:
    mask = drawn((slice(0, 10), slice(0, 10)))
    assert work.box_excess(mask).tolist() == [0.0]
    mask[0, :5, :5] = False
    assert work.box_excess(mask).tolist() == pytest.approx([25 / 75])
    assert work.box_excess(torch.zeros_like(mask)).tolist() == [0.0]


def merged_by_sets(masks: Tensor, absorb: float, replace: float) -> list[tuple[list[int], set[tuple[int, int]]]]:
    """The rule of merging, on sets of pixels."""
    left = {index: (pixels(mask), [index]) for index, mask in enumerate(masks) if mask.any()}
    for index in sorted(left):
        own, members = left[index]
        share = {other: len(own & left[other][0]) / len(own) for other in left if other != index}
        if not share or max(share.values()) < absorb:
            continue
        host = max((j for j in share if share[j] >= replace), key=lambda j: (len(left[j][0]), -j))
        left[host] = (left[host][0] | own, left[host][1] + members)
        del left[index]
    ends = {
        index
        for index, (own, _) in left.items()
        for other, (theirs, _) in left.items()
        if len(theirs) > len(own) and len(own & theirs) >= replace * len(own)
    }
    return [(sorted(members), own) for index, (own, members) in sorted(left.items()) if index not in ends]


@pytest.mark.parametrize("seed", range(8))
def test_merging_is_what_the_rule_says_of_sets_of_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = []
    for _ in range(15):
        top, left = draw.integers(0, 16), draw.integers(0, 24)
        shapes.append((slice(top, top + draw.integers(0, 10)), slice(left, left + draw.integers(1, 12))))
    masks = drawn(*shapes)
    merged, members = work.merge(masks)
    expected = merged_by_sets(masks, 0.5, 0.25)
    assert members == [which for which, _ in expected]
    assert [pixels(mask) for mask in merged] == [own for _, own in expected]
    assert len(merged) < len(masks)


def test_copies_become_one_parts_join_and_strangers_stay() -> None:
    car, upper, other = (slice(4, 12), slice(2, 14)), (slice(2, 8), slice(2, 14)), (slice(4, 12), slice(20, 28))
    merged, members = work.merge(drawn(car, car, upper, other))
    assert members == [[0, 1, 2], [3]]
    assert pixels(merged[0]) == pixels(drawn(car)[0]) | pixels(drawn(upper)[0])
    assert torch.equal(merged[1], drawn(other)[0])


def test_a_mask_of_which_a_larger_one_covers_a_quarter_ends() -> None:
    large, small = (slice(0, 10), slice(0, 10)), (slice(7, 13), slice(0, 5))  # 15 of 30 pixels shared, exactly half
    apart = (slice(8, 14), slice(0, 5))  # 10 of 30
    assert work.merge(drawn(large, small))[1] == [[0, 1]]
    assert work.merge(drawn(large, apart))[1] == [[0]]
    assert work.merge(drawn(large, apart), replace=0.4)[1] == [[0], [1]]


def test_matching_finds_as_many_pairs_as_there_can_be() -> None:
    # The best single pair (0, 0) would leave mask 1 and other 1 alone.
    masks = drawn((slice(0, 10), slice(0, 10)), (slice(0, 10), slice(3, 13)))
    others = drawn((slice(0, 10), slice(1, 11)), (slice(0, 10), slice(0, 7)))
    shares = work.overlap(masks, others)
    assert shares[0, 0] == shares.max() and shares[1, 1] < 0.5
    assert sorted(work.match(masks, others)) == [(0, 1), (1, 0)]
    assert work.match(masks, others, threshold=0.75) == [(0, 0)]


def test_what_is_no_mask_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"boxes: masks should be a bool tensor \[n, H, W\], not torch.float32 \[2, 3\]"
    ):
        work.boxes(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="radius is -1"):
        work.dilate(drawn((slice(0, 1), slice(0, 1))), -1)


def test_closing_agrees_with_scipy_away_from_the_border(noise: Tensor) -> None:
    padded = torch.nn.functional.pad(noise, (6, 6, 6, 6))
    for mask, closed in zip(padded, work.closed(padded, 2), strict=True):
        expected = ndimage.binary_closing(mask.numpy(), structure=np.ones((5, 5)))
        assert np.array_equal(closed.numpy(), expected)
