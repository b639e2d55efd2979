"""From slot masks to objects, and from detections to labels: drawn frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcd.config import ConfigError, Detector, parse_config
from mcd.masks.detections import (
    REASONS,
    VIEWS,
    FrameDetections,
    look_through,
    objects_of_slots,
    paste_back,
    read_counts,
    tidied,
    window_slices,
    write_counts,
)

# A third of the published width: radii of 10 pixels are 3 here.
SIZE = (64, 171)
GROUND_FROM = 40
Box = tuple[slice, slice]
CAR = (slice(24, 46), slice(20, 50))
OTHER = (slice(28, 44), slice(100, 124))


def drawn(*shapes: Box, size: tuple[int, int] = SIZE) -> Tensor:
    masks = torch.zeros(len(shapes), *size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, shapes, strict=True):
        mask[rows, columns] = True
    return masks


def frame(*slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [1,2,5,...] with the same masks in both directions, the ground, and what moves: all of the slots."""
    masks = torch.zeros(5, *SIZE, dtype=torch.bool)
    masks[1 : 1 + len(slots)] = torch.stack(slots)
    moving = masks.any(dim=0)
    masks[0] = ~moving
    ground = drawn((slice(GROUND_FROM, 64), slice(0, 171)))
    return masks.expand(1, 2, -1, -1, -1).clone(), ground[None], moving[None, None]


def above_ground(shape: Box) -> Tensor:
    rows, columns = shape
    return drawn((slice(rows.start, min(rows.stop, GROUND_FROM)), columns))[0]


def objects(*slots: Tensor, **settings: object) -> tuple[Tensor, dict[str, int]]:
    """Of one frame and one direction: the objects, and how many candidates were dropped for each reason that was."""
    settings = {"both_directions": False} | settings
    found, dropped = objects_of_slots(Detector(epochs=1, **settings), *frame(*slots))
    (masks,) = found
    return masks, {reason: count for reason, count in zip(REASONS, dropped[0].tolist(), strict=True) if count}


def union(*shapes: Box) -> Tensor:
    return drawn(*shapes).any(dim=0)


PUBLISHED: dict[str, object] = {"both_directions": False, "split": False, "reach": 0}


def test_a_car_on_the_ground_is_an_object_that_ends_where_ground_begins() -> None:
    masks, dropped = objects(drawn(CAR)[0])
    assert dropped == {}
    assert len(masks) == 1
    assert torch.equal(masks[0], above_ground(CAR))
    # Nothing of the ground lies in the box of what is left, and the published form wants some there.
    assert objects(drawn(CAR)[0], **PUBLISHED)[1] == {"off the ground": 1}
    slots, ground, moving = frame(drawn(CAR)[0])
    ground[..., 38:40, 20:24] = True
    (published,), _ = objects_of_slots(Detector(epochs=1, **PUBLISHED), slots, ground, moving)
    assert torch.equal(published[0], above_ground(CAR) & ~ground[0, 0])


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ((slice(20, 50), slice(20, 23)), "thin"),
        ((slice(10, 60), slice(5, 100)), "large"),
        ((slice(2, 20), slice(60, 90)), "off the ground"),
        ((slice(33, 45), slice(20, 27)), "small"),
    ],
)
def test_what_is_no_car_is_dropped_with_its_reason(slot: Box, reason: str) -> None:
    masks, dropped = objects(drawn(slot)[0], min_area=0.005, largest_box=0.2)
    assert len(masks) == 0
    assert dropped == {reason: 1}


def test_a_slot_that_does_not_fill_its_box_is_ragged() -> None:
    corner = drawn((slice(10, 40), slice(20, 28)), (slice(32, 40), slice(20, 60))).any(dim=0)
    assert objects(corner)[1] == {"ragged": 1}
    assert len(objects(corner, fill=0.3)[0]) == 1


def test_two_cars_in_one_slot_are_two_objects_smallest_first() -> None:
    both = drawn(CAR, OTHER).any(dim=0)
    masks, _ = objects(both)
    assert [torch.equal(mask, above_ground(car)) for mask, car in zip(masks, (OTHER, CAR), strict=True)] == [True] * 2
    assert objects(both, split=False)[1] == {"ragged": 1}


def test_the_largest_slot_is_the_background_wherever_it_stands() -> None:
    slots, ground, moving = frame(drawn(CAR)[0])
    for order in ([1, 0, 2, 3, 4], [4, 3, 2, 1, 0]):
        (masks,), _ = objects_of_slots(Detector(epochs=1), slots[:, :, order], ground, moving)
        assert torch.equal(masks[0], above_ground(CAR))


def test_a_car_that_only_one_direction_shows_is_found_and_one_that_both_show_is_found_once() -> None:
    slots, ground, moving = frame(drawn(CAR)[0], drawn(OTHER)[0])
    slots[:, 0, 2] = False  # towards the previous frame, the other car is no slot
    (masks,), _ = objects_of_slots(Detector(epochs=1), slots, ground, moving)
    assert len(masks) == 2
    (masks,), _ = objects_of_slots(Detector(epochs=1, both_directions=False), slots, ground, moving)
    assert len(masks) == 1


def test_frames_keep_their_objects_apart_and_frames_without_any_have_none() -> None:
    with_car, nothing = frame(drawn(CAR)[0]), frame(torch.zeros(SIZE, dtype=torch.bool))
    batch = [torch.cat(pair) for pair in zip(nothing, with_car, nothing, strict=True)]
    found, dropped = objects_of_slots(Detector(epochs=1), *batch)
    assert [len(masks) for masks in found] == [0, 1, 0]
    assert dropped.shape == (3, len(REASONS)) and not dropped.any()


def detections(*shapes: Box, scores: list[float]) -> FrameDetections:
    return FrameDetections(drawn(*shapes), torch.tensor(scores))


def tidy(found: FrameDetections, *, thorough: bool = True, **settings: object) -> FrameDetections:
    ground = drawn((slice(GROUND_FROM, 64), slice(0, 171)))[0]
    return tidied(Detector(epochs=1, **settings), found, ground, thorough=thorough)


def test_small_masks_end_and_the_best_come_first() -> None:
    speck, empty = (slice(10, 12), slice(10, 15)), (slice(0, 0), slice(0, 0))
    kept = tidy(detections(CAR, speck, empty, OTHER, scores=[0.6, 0.9, 0.9, 0.8]), thorough=False)
    assert kept.scores.tolist() == pytest.approx([0.8, 0.6])
    assert torch.equal(kept.masks, drawn(OTHER, CAR))


def test_thorough_rounds_merge_take_the_best_score_and_take_out_ground() -> None:
    upper = (slice(24, 40), slice(20, 50))
    kept = tidy(detections(upper, OTHER, CAR, scores=[0.7, 0.8, 0.95]))
    assert kept.scores.tolist() == pytest.approx([0.95, 0.8])
    assert torch.equal(kept.masks, torch.stack((above_ground(CAR), above_ground(OTHER))))


def test_masks_that_do_not_fill_their_box_end_unless_they_are_alone() -> None:
    found = detections(CAR, OTHER, scores=[0.9, 0.8])
    found.masks[0, 24:36, 20:40] = False
    assert torch.equal(tidy(found).masks[0], above_ground(OTHER))
    alone = FrameDetections(found.masks[:1], found.scores[:1])
    assert torch.equal(tidy(alone).masks, alone.masks)
    assert len(tidy(found, box_excess=1.0).masks) == 2


def test_a_speck_does_not_switch_the_other_filters_on() -> None:
    # The published area test takes the wrong axes, and keeps all that is not empty.
    found = detections(CAR, (slice(10, 12), slice(10, 12)), scores=[0.9, 0.8])
    found.masks[0, 24:36, 20:40] = False
    assert torch.equal(tidy(found).masks, found.masks[:1])
    assert torch.equal(tidy(found, thorough=False).masks, found.masks[:1])


def test_what_is_small_without_its_ground_ends() -> None:
    on_ground = (slice(GROUND_FROM - 1, GROUND_FROM + 3), slice(80, 86))
    assert torch.equal(tidy(detections(CAR, on_ground, scores=[0.9, 0.8])).masks[0], above_ground(CAR))
    assert len(tidy(detections(CAR, on_ground, scores=[0.9, 0.8]), thorough=False).masks) == 2


def test_a_frame_without_detections_stays_one() -> None:
    nothing = FrameDetections(torch.zeros(0, *SIZE, dtype=torch.bool), torch.zeros(0))
    for thorough in (False, True):
        assert tidy(nothing, thorough=thorough).masks.shape == (0, *SIZE)


def test_views_are_the_published_five() -> None:
    size = (192, 512)
    seen = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in
            (window_slices(window, size) for window in VIEWS)]  # fmt: skip
    assert seen[0] == (0, 192, 0, 512)
    # Four fifths of the image, at its lower corners; then the same of its central half, rows 48 to 144.
    assert seen[1:3] == [(38, 192, 0, 410), (38, 192, 102, 512)]
    assert seen[3:] == [(67, 144, 128, 333), (67, 144, 179, 384)]


@pytest.mark.parametrize("window", VIEWS)
def test_what_is_seen_through_a_window_is_pasted_back_where_it_is(window: tuple[float, float, float, float]) -> None:
    # A block well inside all windows; enlarging and shrinking may move its border by a pixel.
    mask = drawn((slice(26, 44), slice(70, 100)))
    seen = look_through(window, mask[:, None].float())
    assert seen.shape == (1, 1, *SIZE)
    (back,) = paste_back(window, seen)
    shared, either = (back & mask[0]).sum(), (back | mask[0]).sum()
    assert shared / either > 0.85
    rows, columns = window_slices(window, SIZE)
    full = paste_back(window, torch.ones(1, 1, *SIZE))[0]
    assert full[rows, columns].all() and int(full.sum()) == full[rows, columns].numel()


@pytest.mark.parametrize("count", [0, 3])
def test_detections_of_a_frame_come_back_from_disk(tmp_path, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    masks = torch.rand(count, 5, 7, generator=generator) > 0.5  # 35 bits a mask: no multiple of a byte
    found = FrameDetections(masks, torch.rand(count, generator=generator))
    found.save(tmp_path / "city" / "frame.npz")
    back = FrameDetections.load(tmp_path / "city" / "frame.npz")
    assert torch.equal(back.masks, found.masks) and torch.equal(back.scores, found.scores)


def test_counts_of_a_split_come_back_in_their_order(tmp_path) -> None:
    counts = {"b/b_1": 3, "a/a_2": 0}
    write_counts(tmp_path / "train.csv", counts)
    assert list(read_counts(tmp_path / "train.csv").items()) == list(counts.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": [0.5, None]}, "must end with a number"),
        ({"scores": [None, 0.5], "filter_after": [2]}, "names round 2, but 'scores' has rounds 0 to 1"),
        ({"scores": []}, "scores"),
        ({"scores": [0.5], "filter_after": []}, "several 'views' show objects more than once"),
        ({"absorb": 0.2, "replace": 0.25}, "'replace', 0.25, must lie above 0 and not above 'absorb', 0.2"),
        ({"absorb": 0.5, "replace": 0}, "'replace', 0, must lie above 0"),
    ],
)
def test_impossible_rounds_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"detector": {"epochs": 1} | settings})
