"""Geometry against independent implementations, and its round trips."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from mcd import geometry
from mcd.ops.camera import upsample


def random_pose(*shape: int) -> torch.Tensor:
    angles = torch.empty(*shape, 3, dtype=torch.float64).uniform_(-1.4, 1.4)
    return geometry.pose_matrix(angles, torch.randn(*shape, 3, dtype=torch.float64))


def camera() -> torch.Tensor:
    return torch.tensor([[20.0, 0.7, 8.25], [0, 22.0, 5.5], [0, 0, 1]], dtype=torch.float64)


def pixels_of(K: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    q = points @ K.T
    return q[:, :2] / q[:, 2:]


def test_euler_angles_are_intrinsic_xyz() -> None:
    angles = torch.empty(50, 3, dtype=torch.float64).uniform_(-math.pi, math.pi)
    expected = Rotation.from_euler("XYZ", angles.numpy()).as_matrix()
    torch.testing.assert_close(geometry.euler_to_matrix(angles), torch.from_numpy(expected), rtol=0, atol=1e-14)


def test_a_rigid_motion_and_its_inverse_cancel() -> None:
    T = random_pose(3, 2)
    identity = torch.eye(4, dtype=torch.float64).expand(3, 2, 4, 4)
    torch.testing.assert_close(geometry.invert_rigid(T) @ T, identity, rtol=0, atol=1e-14)


def test_rotations_are_differentiable() -> None:
    angles = torch.empty(2, 3, dtype=torch.float64).uniform_(-1, 1).requires_grad_()
    assert torch.autograd.gradcheck(geometry.euler_to_matrix, (angles,))


def test_poses_and_their_inverses_are_differentiable() -> None:
    angles, translation = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for function in (geometry.pose_matrix, lambda *pose: geometry.invert_rigid(geometry.pose_matrix(*pose))):
        assert torch.autograd.gradcheck(function, (angles, translation))


def test_depth_is_the_inverse_of_disparity_within_its_range() -> None:
    depth = geometry.sigmoid_to_depth(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(depth, torch.tensor([100, 1 / (0.01 + 9.99 / 2), 0.1], dtype=torch.float64))


def test_scaled_intrinsics_follow_a_resized_image() -> None:
    """A picture of pixel x, resized, shows it where the scaled camera projects it."""
    x = torch.arange(24, dtype=torch.float64).expand(1, 1, 16, 24)
    small = F.interpolate(x, (8, 12), mode="area")[0, 0, 0]  # the mean x of the pixels under each small one
    K = torch.eye(3, dtype=torch.float64)
    scaled = geometry.scale_intrinsics(K, 0.5, 0.5)
    points = torch.stack((small, torch.zeros(12), torch.ones(12)), -1).double()
    torch.testing.assert_close(pixels_of(scaled, points)[:, 0], torch.arange(12, dtype=torch.float64))


def test_published_scaling_multiplies_the_rows() -> None:
    expected = torch.diag(torch.tensor([0.5, 0.25, 1], dtype=torch.float64)) @ camera()
    torch.testing.assert_close(geometry.scale_intrinsics(camera(), 0.5, 0.25, half_pixel=False), expected)


def test_flipped_intrinsics_follow_a_mirrored_world_and_image() -> None:
    points = torch.rand(9, 3, dtype=torch.float64) + torch.tensor([0, 0, 2.0], dtype=torch.float64)
    mirrored = points * torch.tensor([-1, 1, 1], dtype=torch.float64)
    flipped = geometry.flip_intrinsics(camera(), 17)
    expected = pixels_of(camera(), points)
    expected[:, 0] = 16 - expected[:, 0]
    torch.testing.assert_close(pixels_of(flipped, mirrored), expected)
    assert flipped[0, 0] > 0


def test_upsampling_leaves_an_image_of_that_size_alone() -> None:
    image = torch.rand(1, 2, 3, 4)
    assert upsample(image, (3, 4)) is image
    assert upsample(image, (7, 9)).shape == (1, 2, 7, 9)


def test_points_are_where_their_pixels_look_and_project_back() -> None:
    K = torch.stack((camera(), camera() + torch.diag(torch.tensor([1.0, 2, 0]))))
    depth = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 1
    points = geometry.backproject(depth, K)
    for b in range(2):
        expected = depth[b, 0, 2, 3] * torch.linalg.solve(K[b], torch.tensor([3.0, 2, 1], dtype=torch.float64))
        torch.testing.assert_close(points[b, :, 2, 3], expected)
    pixels, z = geometry.project(points, K)
    torch.testing.assert_close(z, depth)
    torch.testing.assert_close(pixels[:, 0], torch.arange(5, dtype=torch.float64).expand(2, 4, 5))
    torch.testing.assert_close(pixels[:, 1], torch.arange(4, dtype=torch.float64)[:, None].expand(2, 4, 5))
    shared = geometry.backproject(depth, K[0])
    torch.testing.assert_close(shared, geometry.backproject(depth, K[:1].expand(2, 3, 3)))


def test_projection_and_its_inverse_are_differentiable() -> None:
    depth = (torch.rand(1, 1, 2, 3, dtype=torch.float64) + 1).requires_grad_()
    K = camera()[None].requires_grad_()
    assert torch.autograd.gradcheck(geometry.backproject, (depth, K))
    points = geometry.backproject(depth, K).detach().requires_grad_()
    assert torch.autograd.gradcheck(geometry.project, (points, K))
