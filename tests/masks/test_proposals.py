"""Moving objects by what stands on the road and how it moves: small rendered worlds, and the clip of real driving."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from rendered_road import SIZE, SPEED, Box, K, noise, pose, render
from torch import Tensor

from mcd.config import Proposals
from mcd.data.files import resize_image
from mcd.data.video import VideoReader
from mcd.geometry import invert_rigid
from mcd.inference.camera import camera_matrix
from mcd.inference.motion import CameraMotion
from mcd.inference.predictor import DepthPredictor
from mcd.masks.proposals import Objects, find_road, look, propose
from mcd.run.checkpoint import START
from mcd.scene.flow import optical_flow
from mcd.scene.plane import pixel_rays
from mcd.visualize import from_bytes

CLIP = Path(__file__).parents[1] / "clip"


def found(boxes: list[Box], speed: float = SPEED, said: float | None = None, marking: bool = False) -> list[np.ndarray]:
    """Masks of what moves in the frame at time 0; ``said`` is the speed that the pose net believes."""
    objects = asked(boxes, speed, said, marking)
    return list(objects.masks[objects.moves])


def asked(boxes: list[Box], speed: float = SPEED, said: float | None = None, marking: bool = False) -> Objects:
    before, now, after = (render(time, boxes, speed, marking) for time in (-1, 0, 1))
    said = speed if said is None else said
    seen = look(
        now.image,
        torch.stack((before.image, after.image)),
        now.depth,
        K,
        np.stack((pose(-said), pose(said))),
        Proposals(),
    )
    assert seen is not None
    return propose(seen, now.depth, Proposals())


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


ALONG = Box(-2.5, 12, 2.2, 1.6, SPEED)
STILL = Box(2.5, 10, 2.2, 1.6)


def test_a_box_that_drives_along_is_found_where_it_is() -> None:
    masks = found([ALONG])
    assert len(masks) == 1
    assert overlap(masks[0], render(0, [ALONG]).owner == 0) > 0.7


def test_a_box_that_stands_still_is_found_as_such() -> None:
    objects = asked([STILL])
    assert objects.moves.tolist() == [False]
    assert overlap(objects.masks[0], render(0, [STILL]).owner == 0) > 0.7


def test_of_both_the_one_that_moves() -> None:
    masks = found([ALONG, STILL])
    assert len(masks) == 1
    assert overlap(masks[0], render(0, [ALONG, STILL]).owner == 0) > 0.7
    objects = asked([ALONG, STILL])
    assert objects.moves.tolist() == [True, False]
    assert overlap(objects.masks[1], render(0, [ALONG, STILL]).owner == 1) > 0.7


@pytest.mark.parametrize("factor", [0.7, 2.0])
def test_the_pose_net_may_be_wrong_about_the_speed(factor: float) -> None:
    masks = found([ALONG, STILL], said=factor * SPEED)
    assert len(masks) == 1
    assert overlap(masks[0], render(0, [ALONG, STILL]).owner == 0) > 0.7


def test_what_lies_in_the_road_is_no_object_whatever_it_does() -> None:
    assert len(asked([], marking=True).masks) == 0


def test_a_box_that_comes_towards_the_camera_is_found() -> None:
    oncoming = ALONG._replace(speed=-1.2)
    masks = found([oncoming, STILL])
    assert [overlap(mask, render(0, [oncoming, STILL]).owner == 0) > 0.6 for mask in masks] == [True]


def test_two_side_by_side_are_two() -> None:
    boxes = [Box(-2.5, 12, 2.0, 1.5, SPEED), Box(-5.6, 12.5, 2.0, 1.5, SPEED)]
    masks, truth = found(boxes), render(0, boxes).owner
    assert len(masks) == 2
    assert all(max(overlap(mask, truth == number) for mask in masks) > 0.7 for number in (0, 1))


def test_what_hangs_in_the_air_is_none() -> None:
    """As a sign that seems to come along: no road is at its foot."""
    boxes = [ALONG]
    before, now, after = (render(time, boxes) for time in (-1, 0, 1))
    owner = now.owner == 0
    # The same pixels, but as of something behind the road at its foot is not there: three times as near.
    depth = np.where(owner, now.depth / 4, now.depth).astype(np.float32)
    sources = torch.stack((before.image, after.image))
    seen = look(now.image, sources, depth, K, np.stack((pose(-SPEED), pose(SPEED))), Proposals())
    assert seen is not None and len(propose(seen, depth, Proposals())[0]) == 0


def test_a_camera_that_stands_says_nothing() -> None:
    frames = [render(0, [ALONG._replace(speed=0.0)], speed=0.0)] * 3
    seen = look(
        frames[1].image,
        torch.stack((frames[0].image, frames[2].image)),
        frames[1].depth,
        K,
        np.stack((pose(-SPEED), pose(SPEED))),
        Proposals(),
    )
    assert seen is not None and not seen.told.any()
    assert len(propose(seen, frames[1].depth, Proposals())[0]) == 0


def test_the_own_vehicle_is_none() -> None:
    before, now, after = (render(time, [ALONG]) for time in (-1, 0, 1))
    own = now.owner == 0
    seen = look(
        now.image,
        torch.stack((before.image, after.image)),
        now.depth,
        K,
        np.stack((pose(-SPEED), pose(SPEED))),
        Proposals(),
        own=own,
    )
    assert seen is not None and len(propose(seen, now.depth, Proposals())[0]) == 0


def test_a_wall_before_the_camera_shows_no_road() -> None:
    assert find_road(np.full(SIZE, 5.0, dtype=np.float32), pixel_rays(SIZE, K)) is None


def test_the_road_is_that_of_the_world() -> None:
    road = find_road(render(0, [ALONG, STILL]).depth, pixel_rays(SIZE, K))
    assert road is not None
    assert road.height == pytest.approx(1, rel=0.01)
    assert road.normal == pytest.approx([0, 1, 0], abs=0.01)


def test_flow_is_that_of_a_shifted_picture() -> None:
    generator = np.random.default_rng(0)
    v, u = np.mgrid[:96, :192].astype(float)
    seed = int(generator.integers(100))

    def picture(dx: float, dy: float) -> Tensor:
        return torch.from_numpy(noise((u - dx) / 5, (v - dy) / 5, seed)).float().expand(1, 3, -1, -1)

    flow = optical_flow(picture(0, 0), picture(5.3, -2.6))
    inside = (slice(12, -12), slice(12, -12))
    assert flow.flow[0, 0][inside].median() == pytest.approx(5.3, abs=0.05)
    assert flow.flow[0, 1][inside].median() == pytest.approx(-2.6, abs=0.05)
    assert (flow.flow[0] - torch.tensor([5.3, -2.6]).view(2, 1, 1))[(slice(None), *inside)].abs().median() < 0.3


def box_of(mask: np.ndarray) -> tuple[float, ...]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def box_overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    high = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_vehicles_of_real_driving_are_found_and_little_else() -> None:
    """The nets that come with mcd, on a motorway where every vehicle drives along."""
    size = (192, 352)
    images = list(VideoReader(CLIP / "highway.mp4"))
    high, wide = images[0].shape[:2]
    truth: dict[int, list[tuple[float, ...]]] = {}
    with (CLIP / "vehicles.csv").open() as file:
        for row in csv.DictReader(file):
            box = [int(row[key]) for key in ("x0", "y0", "x1", "y1")]
            scale = size[1] / wide, size[0] / high
            truth.setdefault(int(row["frame"]), []).append(tuple(v * scale[i % 2] for i, v in enumerate(box)))
    depth_net, pose_net = DepthPredictor.load(START, size=size), CameraMotion.load(START)
    near = covered = things = vehicles = 0
    for frame, boxes in truth.items():
        around = [from_bytes(resize_image(images[frame + step], size))[None] for step in (-1, 0, 1)]
        depth = depth_net(around[1])[0, 0].numpy()
        poses = torch.cat((invert_rigid(pose_net(around[0], around[1])), pose_net(around[1], around[2]))).numpy()
        seen = look(
            around[1][0],
            torch.cat((around[0], around[2])),
            depth,
            np.asarray(camera_matrix(None, 70.0, *size)),
            poses,
            Proposals(),
        )
        assert seen is not None
        objects = propose(seen, depth, Proposals())
        masks = [box_of(mask) for mask in objects.masks[objects.moves]]
        large = [box for box in boxes if box[2] - box[0] >= size[1] * 45 / 960]
        near += len(large)
        covered += sum(any(box_overlap(box, mask) >= 0.4 for mask in masks) for box in large)
        things += len(masks)
        vehicles += sum(any(box_overlap(box, mask) >= 0.3 for box in boxes) for mask in masks)
    assert near >= 3
    assert covered >= 0.6 * near
    assert things - vehicles <= 0.4 * things
