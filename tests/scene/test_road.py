"""The road plane that a depth map shows, and what lies beyond it."""

import pytest
import torch

from mcd.scene.road import beyond_road, road_loss

HEIGHT, WIDTH = 40, 60
K = torch.tensor([[50.0, 0, 29.5], [0, 50, 15.5], [0, 0, 1]], dtype=torch.float64)


def street(camera_height: float) -> torch.Tensor:
    """Depth [1,1,H,W] of a flat road under a camera, a wall at 30 above the horizon."""
    row = torch.arange(HEIGHT, dtype=torch.float64)
    depth = torch.where(row > K[1, 2], camera_height * K[1, 1] / (row - K[1, 2]), 30.0).clamp(max=30)
    return depth.reshape(1, 1, HEIGHT, 1).repeat(1, 1, 1, WIDTH)


@pytest.mark.parametrize("camera_height", [0.1, 1.5])
def test_a_road_lies_on_itself_in_any_unit(camera_height):
    assert beyond_road(street(camera_height), K[None]).max() < 1e-12


def test_a_hole_in_the_road_is_seen_and_a_car_on_it_is_not():
    depth = street(1.5)
    depth[..., 24:28, 10:20] = 90.0
    depth[..., 24:28, 40:50] = 3.0
    beyond = beyond_road(depth, K[None])
    hole = torch.zeros_like(depth, dtype=torch.bool)
    hole[..., 24:28, 10:20] = True
    expected = (90 / (1.5 * 50 / (torch.arange(24, 28) - 15.5))).log()
    torch.testing.assert_close(beyond[..., 24:28, 15].flatten(), expected.double())
    assert (beyond[~hole] < 1e-12).all()


def test_the_loss_pulls_only_holes_nearer():
    depth = torch.cat((street(1.5), street(0.7)))
    depth[0, :, 24:28, 10:20] = 90.0
    depth.requires_grad_()
    road_loss(depth, K.repeat(2, 1, 1)).backward()
    assert (depth.grad[0, :, 24:28, 10:20] > 0).all()
    assert depth.grad.count_nonzero() == 4 * 10


def test_a_depth_map_without_a_road_below_has_no_loss():
    camera_above_all = K.clone()
    camera_above_all[1, 2] = HEIGHT + 1.0
    depth = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    loss = road_loss(depth, camera_above_all[None])
    loss.backward()
    assert loss == 0
    assert depth.grad.count_nonzero() == 0


def test_the_height_of_the_camera_takes_no_gradient():
    # Else the loss could be lowered by lifting the road that the plane is measured on.
    torch.manual_seed(0)
    depth = (street(1.5) * (1 + 0.4 * torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64))).requires_grad_()
    road_loss(depth, K[None]).backward()
    beyond = beyond_road(depth.detach(), K[None])
    expected = torch.where(beyond > 0.1, 1 / depth.detach(), 0.0) / depth.numel()
    assert expected[..., 34:, 18:42].any()
    torch.testing.assert_close(depth.grad, expected)
