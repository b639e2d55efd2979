"""Numbers that follow objects through frames, and what is decided for an object as a whole: hand-made sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcd.config import ConfigError, InstancesStage, parse_config
from mcd.files import frame_path
from mcd.masks.instances import FrameInstances, read_rows
from mcd.masks.tracks import PATIENCE, Follower, TrackSums
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.instances import FOLLOWED, InstancesPreparation
from mcd.train import run_part
from mcd.training.profiling import ProfileWindow

SIZE = (24, 80)
Box = tuple[int, int, int, int]
"""Top, left, height, width."""


def mask(box: Box) -> np.ndarray:
    top, left, height, width = box
    found = np.zeros(SIZE, dtype=bool)
    found[max(top, 0) : top + height, max(left, 0) : max(left + width, 0)] = True
    return found


def frame(boxes: list[Box], carried: list[Box] | None = None, coverage: list[float] | None = None) -> FrameInstances:
    """Objects and where the predicted motion carries them; without it, it says that nothing moves."""
    own, following = (np.array([mask(box) for box in found]).reshape(-1, *SIZE) for found in (boxes, carried or boxes))
    shares = np.array(coverage if coverage is not None else [0.0] * len(boxes), dtype=np.float32)
    yes = np.ones(len(boxes), dtype=bool)
    masks = np.stack((own, own, following), axis=1)
    return FrameInstances(np.arange(len(boxes)), shares >= 0.5, shares, yes, yes, masks)


def numbers(frames: list[FrameInstances]) -> list[list[int]]:
    follower = Follower()
    return [follower(found).tolist() for found in frames]


def test_a_number_stays_with_its_object_whatever_the_order_of_the_masks() -> None:
    left, right = (4, 5, 8, 12), (4, 50, 8, 12)
    assert numbers([frame([left, right]), frame([right, left]), frame([left, right])]) == [[0, 1], [1, 0], [0, 1]]


def test_the_predicted_motion_finds_an_object_that_has_left_its_place() -> None:
    seen, gone_on = (4, 5, 8, 10), (4, 25, 8, 10)
    assert numbers([frame([seen]), frame([gone_on])]) == [[0], [1]], "without it, nothing is where it was"
    assert numbers([frame([seen], [gone_on]), frame([gone_on])]) == [[0], [0]]


def test_where_the_prediction_fails_an_object_goes_on_at_its_own_speed() -> None:
    # Four pixels of a width of ten overlap by 0.43; then it is faster than any overlap with where it was.
    places = [(4, 5, 8, 10), (4, 9, 8, 10), (4, 13, 8, 10)]
    assert numbers([frame([place]) for place in places]) == [[0], [0], [0]]
    steps = [(4, 5, 8, 10), (4, 10, 8, 10), (4, 18, 8, 10)]
    assert numbers([frame([place]) for place in steps]) == [[0], [0], [0]], "0.11 at its place, 0.54 where it was going"


def test_two_objects_that_pass_keep_their_numbers() -> None:
    # The one of greater overlap for itself would take the other's.
    frames = [frame([(4, 10 + 6 * t, 8, 16), (6, 60 - 6 * t, 8, 16)]) for t in range(8)]
    assert numbers(frames) == [[0, 1]] * 8


def test_a_missed_object_is_found_again_a_forgotten_one_is_new() -> None:
    def seen(t: int) -> FrameInstances:
        return frame([(4, 5 + 3 * t, 8, 12)])

    empty = frame([])
    missed = [seen(0), seen(1), *([empty] * PATIENCE), seen(2 + PATIENCE)]
    assert numbers(missed) == [[0], [0], *([[]] * PATIENCE), [0]]
    forgotten = [seen(0), seen(1), *([empty] * (PATIENCE + 1)), seen(3 + PATIENCE)]
    assert numbers(forgotten)[-1] == [1]


def test_what_leaves_the_picture_ends() -> None:
    leaving = [frame([(4, 62 + 6 * t, 8, 16)]) for t in range(3)] + [frame([])] * 2
    assert numbers([*leaving, frame([(4, 62, 8, 16)])])[-1] == [1]


def test_beyond_a_cut_nothing_goes_on() -> None:
    follower = Follower()
    assert follower(frame([(4, 5, 8, 10)])).tolist() == [0]
    follower.cut()
    assert follower(frame([(4, 5, 8, 10)])).tolist() == [1]


def test_an_object_moves_where_most_of_its_pixels_do_over_all_its_frames() -> None:
    settings = InstancesStage(middle=None)
    far, near = (10, 20, 2, 4), (4, 20, 12, 20)  # 8 and 240 pixels
    sums = TrackSums(settings)
    for box, coverage in ((far, 0.0), (far, 0.0), (far, 0.1), (near, 0.9)):
        sums.add(frame([box], coverage=[coverage]), np.array([7]))
    track = sums.tracks()[7]
    assert track.frames == 4 and track.coverage == pytest.approx((0.8 + 216) / 264)
    assert track.moves(settings), "three of four frames are too far away to say it"
    assert not track.moves(InstancesStage(middle=None, coverage=0.9))


def test_an_object_is_straight_ahead_where_it_is_so_most_of_the_time() -> None:
    settings = InstancesStage(middle=20)
    ahead, beside = (4, 38, 8, 10), (4, 10, 8, 10)
    for boxes, expected in (([ahead, ahead, beside], True), ([ahead, beside, beside], False)):
        sums = TrackSums(settings)
        for box in boxes:
            sums.add(frame([box]), np.array([0]))
        assert sums.tracks()[0].moves(settings) is expected
    assert not sums.tracks()[0].moves(InstancesStage(middle=None))


FRAMES = 8


def make_context(folder: Path, **settings: Any) -> Context:
    """A car that moves in three of its six inner frames, for all that is seen of each, and a marking seen once."""
    root = folder / "data"
    root.mkdir(exist_ok=True)
    for number in range(FRAMES):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / f"{number:03d}.png")
    config = parse_config({
        "runs": str(folder / "runs"),
        "stages": ["instances"],
        "data": {"kind": "sequence", "root": str(root), "size": SIZE, "fov": 70},
        "instances": {"middle": None, "tracks": True} | settings,
    })  # fmt: skip
    context = Context(config, Run(config), __import__("torch").device("cpu"))
    for split in ("train", "val"):
        for t in range(1, FRAMES - 1):
            car, marking = (4, 5 + 3 * t, 8, 12), (14, 60, 6, 9)
            found = (
                frame([car], coverage=[0.9 if t % 2 else 0.2]) if t != 3 else frame([marking, car], None, [1.0, 0.9])
            )
            found.save(frame_path(context.run.stage(FOLLOWED), split, f"{t:03d}"))
    return context


def second_part(context: Context) -> dict[str, Any]:
    first, second = InstancesPreparation.parts(context)
    assert (first.name, second.name) == (FOLLOWED, "instances")
    return run_part(second, context, lambda: False, ProfileWindow(None, context.run.path))  # type: ignore[arg-type]


@pytest.fixture
def no_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcd.stages.instances.ScenePredictions", lambda context: None)


@pytest.mark.usefixtures("no_nets")
def test_the_stage_decides_by_object_and_leaves_out_what_does_not_persist(tmp_path: Path) -> None:
    context = make_context(tmp_path, persist=3)
    facts = second_part(context)["train"]
    assert facts == {"frames": 6, "instances": 6, "dynamic": 6, "triplets": 6, "tracks": 1, "moving": 1, "brief": 1}
    rows = read_rows(context.run.stage("instances"), "train")
    assert [(row.frame, row.row, row.id, row.dynamic) for row in rows] == [
        (f"{t:03d}", 0, 0, True) for t in range(1, 7)
    ]
    assert [row.coverage for row in rows] == [0.9, 0.2, 0.9, 0.2, 0.9, 0.2], "what was seen of each frame stays"
    kept = FrameInstances.load(frame_path(context.run.stage("instances"), "train", "003"))
    assert kept.masks.shape == (1, 3, *SIZE) and np.array_equal(kept.masks[0, 1], mask((4, 14, 8, 12)))


@pytest.mark.usefixtures("no_nets")
def test_the_second_part_may_be_repeated(tmp_path: Path) -> None:
    context = make_context(tmp_path, persist=3)
    first = second_part(context)
    before = {path: path.read_bytes() for path in context.run.stage("instances").rglob("*.[nc]*")}
    assert second_part(context)["train"] == first["train"]
    assert before == {path: path.read_bytes() for path in before} and len(before) > 20


def test_tracks_need_frames_that_follow_each_other() -> None:
    for data in ({"kind": "triplets"}, {"kind": "sequence", "spacing": [2, 1]}):
        with pytest.raises(ConfigError, match="needs data of kind sequence whose 'spacing' begins with 1"):
            parse_config({"data": data, "instances": {"tracks": True}})
