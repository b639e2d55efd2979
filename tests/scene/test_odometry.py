"""The camera's motion straight from images: a rendered road whose camera's motion is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcd.geometry import invert_rigid, pose_matrix
from mcd.scene.odometry import direct_motion, road_pixels

HEIGHT, WIDTH = 96, 192
K = torch.tensor([[110.0, 0, 95.5], [0, 110, 40.0], [0, 0, 1]])
SPEED, YAW = 0.3, 0.004


def texture(x, z, seed):
    """Smooth noise of places on a surface."""
    noise = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(seed))
    noise = F.avg_pool2d(F.pad(noise, (2,) * 4, mode="replicate"), 5, 1)
    grid = torch.stack((x / 16, z / 16 - 1), -1)[None].float()
    return F.grid_sample(noise, grid, align_corners=False, padding_mode="reflection")[0, 0]


def view(T_world_camera, car=None):
    """Image [3,H,W] and depth [1,H,W] of a road one unit below and a wall far ahead; a car that keeps its distance."""
    v, u = torch.meshgrid(torch.arange(HEIGHT).double(), torch.arange(WIDTH).double(), indexing="ij")
    rays = torch.stack(((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)), -1)
    R, centre = T_world_camera[:3, :3], T_world_camera[:3, 3]
    directions = rays @ R.T
    road = torch.where(directions[..., 1] > 1e-3, (1 - centre[1]) / directions[..., 1].clamp(min=1e-3), 1e9)
    wall = (20 - centre[2]) / directions[..., 2]
    depth = torch.minimum(road, wall)
    place = centre + depth[..., None] * directions
    image = torch.where(road < wall, texture(place[..., 0], place[..., 2], 0), texture(place[..., 0], place[..., 1], 1))
    if car is not None:
        inside = (u > 70) & (u < 120) & (v > 30) & (v < 66)
        image = torch.where(inside, texture(u / 12, v / 12, 2), image)
        depth = torch.where(inside, torch.tensor(car).double(), depth)
    return image.expand(3, -1, -1).float(), depth[None].float()


def drive(count, car=None):
    step = pose_matrix(torch.tensor([0.0, YAW, 0.0]).double(), torch.tensor([0, 0, -SPEED]).double())  # to the next
    poses = [torch.eye(4).double()]
    for _ in range(count - 1):
        poses.append(poses[-1] @ invert_rigid(step))
    images, depths = zip(*(view(pose, car) for pose in poses), strict=True)
    return torch.stack(images), torch.stack(depths), step.float()


def begin(count, share):
    T = torch.eye(4).repeat(count - 1, 1, 1)
    T[:, 2, 3] = -share * SPEED
    return T


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_the_motion_of_a_rendered_drive_is_found_wherever_the_search_begins(share):
    images, depth, step = drive(6)
    T = direct_motion(images, depth, K, begin(6, share))
    assert T.shape == (5, 4, 4)
    assert (T[:, :3, 3] - step[:3, 3]).abs().max() < 0.03 * SPEED
    assert (T[:, :3, :3] - step[:3, :3]).abs().max() < 1e-3


def test_what_moves_along_does_not_slow_the_camera():
    images, depth, _ = drive(6, car=3.0)
    T = direct_motion(images, depth, K, begin(6, 1.0))
    assert T[:, 2, 3].numpy() == pytest.approx(-SPEED, rel=0.06)


def test_the_unit_is_that_of_depth():
    images, depth, _ = drive(4)
    T = direct_motion(images, 2 * depth, K, begin(4, 1.0))
    assert T[:, 2, 3].numpy() == pytest.approx(-2 * SPEED, rel=0.05)


def test_a_camera_that_stands_stands():
    images, depth, _ = drive(1)
    T = direct_motion(images.repeat(3, 1, 1, 1), depth.repeat(3, 1, 1, 1), K, begin(3, 1.0))
    assert T[:, :3, 3].abs().max() < 0.01


def test_without_texture_or_road_it_stays_finite_and_near_where_it_began():
    T = direct_motion(torch.full((3, 3, 64, 96), 0.5), torch.full((3, 1, 64, 96), 5.0), K, begin(3, 1.0))
    assert torch.isfinite(T).all()
    assert T[:, 2, 3].numpy() == pytest.approx(-SPEED)


def test_the_own_vehicle_says_nothing():
    images, depth, _ = drive(4)
    own = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    own[70:] = True
    images[:, :, 70:] = texture(torch.arange(WIDTH)[None] / 9.0, torch.zeros(1, WIDTH), 3)
    T = direct_motion(images, depth, K, begin(4, 0.5), own)
    assert T[:, 2, 3].numpy() == pytest.approx(-SPEED, rel=0.05)


def test_road_pixels_are_those_of_the_plane():
    _, depth, _ = drive(1, car=3.0)
    road = road_pixels(depth, K)[0].numpy()
    truth = np.isclose(depth[0, 0].numpy() * (np.arange(HEIGHT)[:, None] - 40.0) / 110, 1, atol=1e-3)
    assert road[truth].mean() > 0.99
    assert road[~truth].mean() < 0.05
