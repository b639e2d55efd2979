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


def test_euler_angles_come_back_where_they_are_unique() -> None:
    angles = torch.empty(4, 25, 3, dtype=torch.float64).uniform_(-1.5, 1.5)
    angles[..., (0, 2)] *= 2
    torch.testing.assert_close(geometry.matrix_to_euler(geometry.euler_to_matrix(angles)), angles, rtol=0, atol=1e-12)


def test_euler_angles_at_the_pole_give_the_same_rotation() -> None:
    pole = geometry.euler_to_matrix(torch.tensor([0.3, math.pi / 2, 0.4], dtype=torch.float64))
    pole[0, 2] = 1 + 1e-16  # rounding may lift a sine beyond 1
    assert geometry.matrix_to_euler(pole).isfinite().all()


def test_a_rigid_motion_and_its_inverse_cancel() -> None:
    T = random_pose(3, 2)
    identity = torch.eye(4, dtype=torch.float64).expand(3, 2, 4, 4)
    torch.testing.assert_close(geometry.invert_rigid(T) @ T, identity, rtol=0, atol=1e-14)


def test_rotations_and_their_angles_are_differentiable() -> None:
    angles = torch.empty(2, 3, dtype=torch.float64).uniform_(-1, 1).requires_grad_()
    rotation = geometry.euler_to_matrix(angles).detach().requires_grad_()
    assert torch.autograd.gradcheck(geometry.euler_to_matrix, (angles,))
    assert torch.autograd.gradcheck(geometry.matrix_to_euler, (rotation,))


def test_poses_and_their_inverses_are_differentiable() -> None:
    angles, translation = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for function in (geometry.pose_matrix, lambda *pose: geometry.invert_rigid(geometry.pose_matrix(*pose))):
        assert torch.autograd.gradcheck(function, (angles, translation))


def test_depth_is_the_inverse_of_disparity_within_its_range() -> None:
    depth = geometry.sigmoid_to_depth(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(depth, torch.tensor([100, 1 / (0.01 + 9.99 / 2), 0.1], dtype=torch.float64))
    torch.testing.assert_close(geometry.disp_to_depth(geometry.depth_to_disp(depth)), depth)


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


def test_cropped_intrinsics_follow_a_cropped_image() -> None:
    points = torch.rand(9, 3, dtype=torch.float64) + torch.tensor([0, 0, 2.0], dtype=torch.float64)
    moved = pixels_of(geometry.crop_intrinsics(camera(), 3, 2), points)
    torch.testing.assert_close(moved, pixels_of(camera(), points) - torch.tensor([3, 2], dtype=torch.float64))


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
