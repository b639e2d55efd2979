"""The roads that nets are pre-trained on: exact depth, poses that explain it, files that are repeatable."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.photograph import photograph
from mcd.streets.roads.rasterizer import GROUND, SKY, Camera, ground_inverse_depth, rasterize
from mcd.streets.roads.scene import Builder, Cut, Terrain
from mcd.streets.roads.store import make_shard, write_shard
from mcd.streets.roads.views import View, make_views, render, rotation, sample_camera, textures
from mcd.streets.roads.world import KINDS, make_world

SIZE = (48, 96)
K = np.array([[60.0, 0, 47.5], [0, 55.0, 20.5], [0, 0, 1]])


def camera(pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0, height: float = 1.5) -> Camera:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(pitch, yaw, roll), (0.3, -height, 0)
    return Camera(K, pose, SIZE)


def noise(seed: int = 0) -> list[NoiseTexture]:
    return textures(np.random.default_rng(seed))


def world_points(view: Camera, inverse: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    rays = np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.ones(SIZE)], -1)
    depth = 1 / np.maximum(inverse[..., None].astype(np.float64), 1e-9)
    return rays * depth @ view.T_world_cam[:3, :3].T + view.T_world_cam[:3, 3]


@pytest.mark.parametrize(("slope", "bend"), [(0, 0), (0.04, 0), (-0.03, 0.0004), (0.02, -0.0006)])
def test_ground_is_where_its_parabola_is(slope: float, bend: float) -> None:
    terrain = Terrain(slope, bend, 0.0)
    view = camera(pitch=0.05, yaw=0.1, roll=0.03)
    inverse = ground_inverse_depth(terrain, view)
    seen = inverse > 0
    assert seen[-1].all() and not seen[0].any()
    points = world_points(view, inverse)[seen]
    near = points[:, 2] < 60
    # float32 rays; far away a pixel is metres of ground.
    np.testing.assert_allclose(points[near, 1], terrain.ground(points[near, 2]), atol=2e-3)


def test_positive_pitch_looks_down_and_positive_yaw_to_the_right() -> None:
    flat = Terrain(0, 0, 0)
    horizon = [(ground_inverse_depth(flat, camera(pitch=p)) > 0)[:, 48].argmax() for p in (-0.1, 0, 0.1)]
    assert horizon[0] > horizon[1] > horizon[2]
    assert (rotation(0, 0.2, 0) @ [0, 0, 1])[0] > 0.1


def test_a_box_is_as_deep_as_loops_over_rays_say() -> None:
    b = Builder(Terrain(0, 0, 0), np.random.default_rng(0))
    b.at(1.0, 8.0, 0.5).box((2.0, 1.6, 4.0), (0.5, 0.5, 0.5))
    scene, view = b.scene(), camera(0.02, -0.05, 0.01)
    buffer = rasterize(scene, view, noise()[1])
    eye, turn = view.T_world_cam[:3, 3], view.T_world_cam[:3, :3]
    cos, sin = math.cos(0.5), math.sin(0.5)
    to_box = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    start = to_box @ (eye - [1.0, 0.0, 8.0])
    low, high = np.array([-1, -1.6, -2.0]), np.array([1, 0, 2.0])
    wrong = 0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            ray = turn @ [(column - K[0, 2]) / K[0, 0], (row - K[1, 2]) / K[1, 1], 1]
            first, second = (low - start) / (to_box @ ray), (high - start) / (to_box @ ray)
            enter, leave = np.minimum(first, second).max(), np.maximum(first, second).min()
            box = enter if 0 < enter < leave else math.inf
            ground = -eye[1] / ray[1] if ray[1] > 1e-9 else math.inf
            expected = min(box, ground)
            # A ray that grazes an edge may fall to either side.
            wrong += not math.isclose(buffer.inverse[row, column], 1 / expected, rel_tol=1e-3, abs_tol=1 / 400)
            if box < ground:
                wrong += buffer.surface[row, column] < 0
    assert wrong < 0.005 * SIZE[0] * SIZE[1]


def test_faces_look_outwards_from_every_side() -> None:
    for yaw in np.linspace(0, 6, 9):
        b = Builder(Terrain(0, 0, 0), np.random.default_rng(0))
        b.at(0.0, 9.0, yaw).box((2.0, 1.2, 4.0), (0.5, 0.5, 0.5))
        buffer = rasterize(b.scene(), camera(), noise()[1])
        # Its middle is nearer than its place: the faces that are seen are the near ones. Three at most of one box are.
        middle = buffer.surface[24:28, 44:52]
        assert (middle >= 0).all()
        assert (1 / buffer.inverse[24:28, 44:52] < 9.0).all()
        assert len(np.unique(buffer.surface[buffer.surface >= 0])) <= 3


def test_a_disc_and_pickets_leave_holes() -> None:
    shares = {}
    for cut, look in ((Cut.NONE, (0, 0, 0)), (Cut.DISC, (0, 0, 0)), (Cut.PICKETS, (0.5, 0.25, 0))):
        b = Builder(Terrain(0, 0, 0), np.random.default_rng(0))
        corners = [(-2, 0.5, 0), (2, 0.5, 0), (2, 4.5, 0), (-2, 4.5, 0)]
        b.at(0.3, 8.0).quad(corners, (1, 1, 1), cut=cut, look=look)
        shares[cut] = (rasterize(b.scene(), camera(), noise()[1]).surface >= 0).sum()
    assert shares[Cut.DISC] / shares[Cut.NONE] == pytest.approx(math.pi / 4, abs=0.04)
    assert shares[Cut.PICKETS] / shares[Cut.NONE] == pytest.approx(0.5, abs=0.06)


def test_a_ball_is_as_deep_as_its_near_side() -> None:
    b = Builder(Terrain(0, 0, 0), np.random.default_rng(0))
    b.at(50.0, 50.0).box((1, 1, 1), (0, 0, 0))
    b.at(0.3, 10.0).ball((0, 1.5, 0), (1.0, 0.5, 2.0), (0.2, 0.4, 0.1))
    buffer = rasterize(b.scene(), camera(), noise()[1])
    found = buffer.surface == len(b.quads)
    assert 1 / buffer.inverse[found].max() == pytest.approx(8.0, rel=5e-3)  # no pixel looks at that point itself
    assert found.any(0).sum() / K[0, 0] * 10 == pytest.approx(2.0, abs=0.4)
    assert found.any(1).sum() / K[1, 1] * 10 == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_road_has_road_below_and_things_on_it(kind: str) -> None:
    rng = np.random.default_rng(3)
    pictures = []
    for _ in range(3):
        world = make_world(rng, kind)
        assert world.kind == kind
        view = render(world, noise(), K, 1.5, (0.0, 0.0, 0.0), SIZE)
        assert (view.depth[-1] > 0).mean() > 0.9
        assert 0.5 < np.median(view.depth[-1][view.depth[-1] > 0]) < 12
        assert view.image.std() > 10
        pictures.append(view.image)
    assert not np.array_equal(pictures[0], pictures[1])


def test_markings_wet_and_shadows_change_no_depth() -> None:
    rng = np.random.default_rng(5)
    world = make_world(rng, "motorway")
    plain = replace(
        world,
        scene=replace(world.scene, decals=[]),
        surface=replace(world.surface, lines=[], wet=0.0),
    )
    drawn = replace(world, surface=replace(world.surface, wet=0.8))
    with_marks, without = (render(w, noise(), K, 1.5, (0.0, 0.0, 0.0), SIZE) for w in (drawn, plain))
    assert np.array_equal(with_marks.depth, without.depth)
    assert not np.array_equal(with_marks.image, without.image)


def reprojected(first: View, second: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of the first view's static points in the second, what is seen there, and which points count."""
    height, width = first.depth.shape
    rows, columns = np.mgrid[:height, :width]
    intrinsics = first.K
    rays = np.stack(
        [
            (columns - intrinsics[0, 2]) / intrinsics[0, 0],
            (rows - intrinsics[1, 2]) / intrinsics[1, 1],
            np.ones_like(first.depth),
        ],
        -1,
    )
    world = (rays * first.depth[..., None]) @ first.T_world_cam[:3, :3].T + first.T_world_cam[:3, 3]
    there = (world - second.T_world_cam[:3, 3]) @ second.T_world_cam[:3, :3]
    z = np.maximum(there[..., 2], 0.1)
    x = np.rint(there[..., 0] / z * intrinsics[0, 0] + intrinsics[0, 2]).astype(int)
    y = np.rint(there[..., 1] / z * intrinsics[1, 1] + intrinsics[1, 2]).astype(int)
    counts = (first.depth > 0) & (first.depth < 40) & ~first.moving & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = second.depth[y.clip(0, height - 1), x.clip(0, width - 1)]
    return z, seen, counts & (seen > 0)


def test_poses_explain_what_stands_still_and_not_what_moves() -> None:
    errors, moving = [], 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        (clip,) = make_views(rng, noise(), (64, 128), cameras=1, frames=2)
        z, seen, counts = reprojected(*clip)
        errors.append(np.median(np.abs(np.log(z[counts] / seen[counts]))))
        moving += clip[0].moving.sum()
    # Half a pixel of rounding near the road's far end.
    assert max(errors) < 0.03
    assert moving > 0


def test_cameras_cover_the_ranges_and_see_the_horizon() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_camera(rng, (160, 288)) for _ in range(300)]
    views = [math.degrees(2 * math.atan(144 / intrinsics[0, 0])) for intrinsics, _, _ in drawn]
    heights = [height for _, height, _ in drawn]
    assert min(views) < 45 and max(views) > 95 and min(views) > 39 and max(views) < 101
    assert 0.8 <= min(heights) < 1.0 and 2.5 < max(heights) <= 3.0
    rows = [K_[1, 2] - K_[1, 1] * math.tan(turn[0]) for K_, _, turn in drawn]
    assert np.mean([0 < row < 160 for row in rows]) > 0.98


def test_a_shard_is_the_same_bits_again_and_another_is_not(tmp_path: Path) -> None:
    first, again, other = (make_shard(0, number, views=2, size=SIZE) for number in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])
    assert first["depth"].dtype == np.float16 and first["image"].shape == (2, *SIZE, 3)


def test_a_shard_that_is_there_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0003.npz").write_bytes(b"kept")
    monkeypatch.setattr("mcd.streets.roads.store.make_shard", lambda *_: pytest.fail("drawn again"))
    assert write_shard(tmp_path, 0, 3).read_bytes() == b"kept"


def test_photographs_differ_and_stay_pictures() -> None:
    rng = np.random.default_rng(0)
    image = np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    texture = NoiseTexture(np.random.default_rng(2))
    found = [photograph(rng, image, texture) for _ in range(30)]
    assert all(picture.shape == image.shape and picture.dtype == np.uint8 for picture in found)
    levels = [picture.mean() for picture in found]
    assert max(levels) - min(levels) > 40
    # None is so dark or bright that nothing is left.
    assert np.median([picture.std() for picture in found]) > 20


def test_sky_is_no_ground_and_the_constants_differ() -> None:
    buffer = rasterize(_empty(), camera(), noise()[1])
    assert set(np.unique(buffer.surface)) == {SKY, GROUND}
    assert np.array_equal(buffer.surface == SKY, buffer.inverse == 0)


def _empty():
    b = Builder(Terrain(0, 0, 0), np.random.default_rng(0))
    b.at(0.0, -50.0).box((1, 1, 1), (0, 0, 0))
    return b.scene()
