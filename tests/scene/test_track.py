"""The camera's motion along a sequence: looked up, kept, and found in pieces."""

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import parse_config
from mcd.data import DataError, FrameDataset, SequenceFolder
from mcd.geometry import flip_rigid, pose_matrix
from mcd.scene import track as track_module
from mcd.scene.track import CameraTrack, even_units, find_track


@pytest.fixture
def track():
    generator = torch.Generator().manual_seed(0)
    motions = pose_matrix(0.1 * torch.rand(4, 3, generator=generator), torch.rand(4, 3, generator=generator))
    names = "abcde"
    found = {(names[i], names[i + 1]): motions[i].double().numpy() for i in range(4)}
    return CameraTrack(found, dict.fromkeys(names, 1.5), 1.1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(7):
        name = number if number < 5 else number + 10  # a gap
        Image.fromarray(rng.integers(0, 255, (40, 64, 3), np.uint8)).save(tmp_path / f"{name:04}.png")
    return tmp_path


def data_of(folder, **more):
    settings = {"kind": "sequence", "root": str(folder), "size": (32, 64), "fov": 60, "train_frames": (0, 6)} | more
    return parse_config({"data": settings}).data


class Pose(torch.nn.Module):
    def forward(self, first, second):
        return torch.zeros(len(first), 3), torch.zeros(len(first), 3)


def find(data):
    with pytest.warns():
        reader = SequenceFolder(data, "train")
    K = torch.tensor([[50.0, 0, 31.5], [0, 50, 15.5], [0, 0, 1]])
    return find_track(reader, data, K, lambda images: torch.full_like(images[:, :1], 5.0), Pose())


def test_motions_are_joined_over_the_distance(track):
    T = track("c", 2)
    assert T.shape == (2, 4, 4)
    assert T.dtype == np.float32
    m = list(track.motions.values())
    np.testing.assert_allclose(T[1], m[3] @ m[2], atol=1e-6)
    np.testing.assert_allclose(T[0] @ m[1] @ m[0], np.eye(4), atol=1e-6)


def test_a_motion_that_is_not_known_is_named(track):
    with pytest.raises(DataError, match="frame b: the motion"):
        track("b", 2)


def test_a_file_gives_it_back_and_a_broken_one_is_named(track, tmp_path):
    path = tmp_path / "run" / "odometry.npz"
    track.save(path)
    again = CameraTrack.load(path)
    assert list(again.motions) == list(track.motions)
    np.testing.assert_array_equal(again("c", 1), track("c", 1))
    assert (again.units, again.height) == (track.units, track.height)
    track.height = None
    track.save(path)
    assert CameraTrack.load(path).height is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"odometry\.npz cannot be read: .*; delete it"):
        CameraTrack.load(path)


def test_no_motion_is_found_across_a_gap_or_through_a_broken_image(folder):
    assert [int(b) for _, b in find(data_of(folder)).motions] == [1, 2, 3, 4, 16]
    (folder / "0002.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="0002"):
        find(data_of(folder))
    assert [int(b) for _, b in find(data_of(folder, on_error="skip")).motions] == [1, 4, 16]


def test_long_sequences_are_solved_in_pieces_that_share_a_frame(folder, monkeypatch):
    seen = []

    def remember(images, depth, K, begin, own):
        seen.append(len(images))
        return begin

    monkeypatch.setattr(track_module, "direct_motion", remember)
    monkeypatch.setattr(track_module, "_TOGETHER", 3)
    assert len(find(data_of(folder)).motions) == 5
    assert seen == [4, 2, 2]


def test_items_have_the_motion_of_their_distance_and_of_their_flip(folder):
    data = data_of(folder, spacing=(1, 2))
    track = find(data)
    with pytest.warns():
        reader = SequenceFolder(data, "train")
    for flip in (0.0, 1.0):
        augment = parse_config({"augment": {"flip": flip, "jitter": 0}}).augment
        dataset = FrameDataset(reader, data, augment=augment, motion=track)
        place = reader.frames.index("0002")
        found = torch.stack([dataset[place, draw]["T_src_ref"] for draw in range(12)])
        expected = [torch.from_numpy(track("0002", spacing)) for spacing in (1, 2)]
        expected = [flip_rigid(T) if flip else T for T in expected]
        near = [[torch.equal(T, one) for one in expected] for T in found]
        assert all(sum(row) == 1 for row in near)
        assert {row.index(True) for row in near} == {0, 1}


K = torch.tensor([[110.0, 0, 47.5], [0, 110, 20.0], [0, 0, 1]])


def roads(heights, K=K, rows=48, columns=96):
    """Depth [N,1,H,W] of flat roads so far below the camera, a wall twenty heights ahead."""
    slope = (torch.arange(rows) - K[1, 2]) / K[1, 1]
    depth = torch.tensor(heights)[:, None] / slope.clamp(min=0.05)
    return depth[:, None, :, None].expand(-1, 1, -1, columns).contiguous()


def test_depth_of_every_frame_is_brought_to_one_height_of_the_camera():
    heights = [1.0, 1.0, 1.0, 1.1, 1.2, 1.3, 1.3, 1.3]
    factors, height = even_units(roads(heights), K, None)
    assert height == pytest.approx(1.15)
    np.testing.assert_allclose(factors * heights, 1.15, rtol=1e-3)
    factors, height = even_units(roads(heights), K, 2.3)
    assert height == 2.3
    np.testing.assert_allclose(factors * heights, 2.3, rtol=1e-3)


def test_a_frame_with_another_road_or_none_has_the_unit_of_those_around():
    depth = roads([1.0] * 7)
    depth[2] *= 3
    depth[5] = 4 + torch.rand(1, 48, 96, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(even_units(depth, K, None)[0], 1, rtol=1e-3)


def test_where_hardly_a_frame_shows_a_road_units_stay():
    depth = roads([1.0, 1.5, 1.2])
    depth[1:] = 4 + torch.rand(2, 1, 48, 96, generator=torch.Generator().manual_seed(0))
    for height in (None, 2.0):
        factors, after = even_units(depth, K, height)
        assert (factors == 1).all()
        assert after == height


def test_the_bonnet_is_no_road():
    depth = roads([1.0, 1.0, 1.0])
    own = torch.zeros(48, 96, dtype=torch.bool)
    own[36:] = True
    depth[:, :, 36:] *= torch.tensor([0.5, 0.6, 0.7])[:, None, None, None]
    assert not np.allclose(even_units(depth, K, None)[0], 1, rtol=1e-3)
    np.testing.assert_allclose(even_units(depth, K, None, own)[0], 1, rtol=1e-3)


def test_the_units_of_a_track_are_those_of_the_start(folder):
    """Whatever the unit of the depth that the motion is found with, one height of the camera for both."""
    data = data_of(folder, train_frames=(0, 4))
    with pytest.warns():
        reader = SequenceFolder(data, "train")
    K = torch.tensor([[50.0, 0, 31.5], [0, 50, 8], [0, 0, 1]])
    flat = roads([1.0], K, 32, 64)
    track = find_track(
        reader, data, K, lambda images: 1.3 * flat.expand(len(images), -1, -1, -1), None,
        lambda images: 0.9 * flat.expand(len(images), -1, -1, -1), 2.0,
    )  # fmt: skip
    assert track.height == 2.0
    assert list(track.units) == ["0000", "0001", "0002", "0003", "0004"]
    np.testing.assert_allclose(list(track.units.values()), 2.0 / 0.9, rtol=1e-3)
    assert track.unit("0003")["unit"].item() == pytest.approx(2.0 / 0.9, rel=1e-3)
