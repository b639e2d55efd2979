"""The forward warp against a loop over rays, against cases solved by hand, and its edges."""

import math

import pytest
import torch
from harness import serving

from mcd import use_backend
from mcd.ops.forward_warp import forward_warp, forward_warp_reference


@pytest.fixture(autouse=True, params=serving("forward_warp", "reference", "native", "triton"))
def backend(request):
    """Each test runs with every backend that is there."""
    with use_backend(request.param):
        yield request.param


def uniform(*shape, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def camera(height, width, batch=1):
    K = torch.tensor(
        [[0.9 * width, 0.3, 0.45 * width], [0, 1.1 * height, 0.55 * height], [0, 0, 1]], dtype=torch.float64
    )
    return K.repeat(batch, 1, 1)


def pose(yaw=0.0, translation=(0.0, 0.0, 0.0), batch=1):
    T = torch.eye(4, dtype=torch.float64)
    T[0, 0] = T[2, 2] = math.cos(yaw)
    T[0, 2], T[2, 0] = math.sin(yaw), -math.sin(yaw)
    T[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return T.repeat(batch, 1, 1)


def loop_forward_warp(attribute, depth, K, T, motion, upscale):
    """One sample: attribute [C,H,W], depth [H,W], motion [3,H,W]; ray by ray, then cell by cell."""
    channels, height, width = attribute.shape
    R, t, rays = T[:3, :3], T[:3, 3], torch.linalg.inv(K)
    nearest = torch.zeros(height, width, dtype=torch.float64)
    winner = torch.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            if not depth[y, x] > 0:
                continue
            for j in range(upscale):
                for i in range(upscale):
                    offset = [(k - (upscale - 1) / 2) / upscale for k in (i, j)]
                    start = torch.tensor([x + offset[0], y + offset[1], 1.0], dtype=torch.float64)
                    q = K @ (R @ (depth[y, x] * (rays @ start)) + t + motion[:, y, x])
                    if not q[2] > 1e-3:
                        continue
                    column, row = (math.floor(float(q[axis] / q[2]) + 0.5) for axis in (0, 1))
                    if not (0 <= column < width and 0 <= row < height):
                        continue
                    if winner[row, column] < 0 or q[2] < nearest[row, column] - 1e-12:  # exact ties up to rounding
                        nearest[row, column], winner[row, column] = q[2], y * width + x
    warped = torch.zeros(channels, height, width, dtype=torch.float64)
    for row, column in (winner >= 0).nonzero().tolist():
        origin = int(winner[row, column])
        X = nearest[row, column] * (rays @ torch.tensor([column, row, 1.0]).double())
        q = K @ (R.T @ (X - t - motion[:, origin // width, origin % width]))
        u, v = min(max(float(q[0] / q[2]), 0), width - 1), min(max(float(q[1] / q[2]), 0), height - 1)
        for y in (math.floor(v), math.floor(v) + 1):
            for x in (math.floor(u), math.floor(u) + 1):
                weight = (1 - abs(u - x)) * (1 - abs(v - y))
                if weight > 0:
                    warped[:, row, column] += weight * attribute[:, y, x]
    return warped, nearest, winner


@pytest.mark.parametrize("upscale", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_agrees_with_a_loop_over_rays(size, upscale):
    attribute, depth = uniform(2, 2, *size), uniform(2, 1, *size, seed=1, low=3, high=6)
    motion = uniform(2, 3, *size, seed=2, low=-0.4, high=0.4)
    K = camera(*size, batch=2)
    T = torch.cat((pose(0.05, (0.3, -0.2, 0.4)), pose(-0.1, (-0.5, 0.1, -1.0))))
    warped, depth_dst, winner = forward_warp_reference(attribute, depth, K, T, motion, upscale=upscale)
    for b in range(2):
        expected = loop_forward_warp(attribute[b], depth[b, 0], K[b], T[b], motion[b], upscale)
        assert torch.equal(winner[b].long(), expected[2])
        torch.testing.assert_close(depth_dst[b, 0], expected[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(warped[b], expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
def test_identity_gives_everything_back(upscale):
    attribute, depth = uniform(1, 2, 6, 9), uniform(1, 1, 6, 9, seed=1, low=1, high=9)
    warped, depth_dst, winner = forward_warp(attribute, depth, camera(6, 9), pose(), upscale=upscale)
    assert torch.equal(winner.flatten(), torch.arange(54, dtype=torch.int32))
    torch.testing.assert_close(depth_dst, depth, rtol=1e-13, atol=0)
    torch.testing.assert_close(warped, attribute, rtol=0, atol=1e-12)


def test_sideways_step_of_whole_pixels_moves_the_image_and_leaves_holes():
    K = torch.tensor([[[10.0, 0, 3], [0, 10, 2], [0, 0, 1]]]).double()
    attribute, depth = uniform(1, 1, 5, 7), torch.full((1, 1, 5, 7), 5.0).double()
    warped, depth_dst, winner = forward_warp(
        attribute, depth, K, pose(translation=(1.0, 0, 0))
    )  # 10 · 1 / 5 = 2 pixels
    torch.testing.assert_close(warped[..., 2:], attribute[..., :-2], rtol=0, atol=1e-12)
    assert not warped[..., :2].any() and not depth_dst[..., :2].any() and (winner[..., :2] == -1).all()


def test_the_nearer_surface_wins_and_keeps_its_size():
    # The truncating splat of the published code grows such a rectangle by a row and a column.
    depth = torch.full((1, 1, 12, 16), 10.0).double()
    depth[..., 4:8, 5:11] = 4.0
    near = (depth == 4).double()
    warped, depth_dst, _ = forward_warp(near, depth, camera(12, 16), pose())
    assert torch.equal(depth_dst == 4, near.bool())
    torch.testing.assert_close(warped, near, rtol=0, atol=1e-12)


def test_equal_depth_goes_to_the_smaller_source_pixel():
    # Seen from twice as far away, four pixels of the plane fall into one cell.
    K = torch.tensor([[[8.0, 0, 0], [0, 8, 0], [0, 0, 1]]]).double()
    depth = torch.full((1, 1, 4, 4), 5.0).double()
    _, depth_dst, winner = forward_warp(depth, depth, K, pose(translation=(0, 0, 5.0)), upscale=1)
    assert winner[0, :3, :3].tolist() == [[0, 1, 3], [4, 5, 7], [12, 13, 15]]
    assert (depth_dst[0, 0, :3, :3] == 10).all() and (winner[0, 3] == -1).all()


@pytest.mark.parametrize("bad", [0.0, -2.0, math.nan, math.inf, -math.inf])
def test_depth_that_is_no_depth_sends_nothing(bad):
    # In the published code a zero lands on the epipole and wins there.
    attribute, depth = uniform(1, 1, 6, 8), uniform(1, 1, 6, 8, seed=1, low=4, high=5)
    depth[0, 0, 3, 4] = bad
    T = pose(translation=(0, 0, 0.05)).requires_grad_()
    depth.requires_grad_()
    warped, depth_dst, winner = forward_warp(attribute, depth, camera(6, 8), T)
    assert not (winner == 3 * 8 + 4).any() and depth_dst[depth_dst > 0].min() > 4
    (warped.sum() + depth_dst.sum()).backward()
    assert depth.grad.isfinite().all() and T.grad.isfinite().all() and depth.grad[0, 0, 3, 4] == 0


def test_points_behind_the_destination_are_dropped():
    attribute, depth = uniform(1, 1, 4, 4), torch.full((1, 1, 4, 4), 5.0).double()
    for z in (-5.0, -7.0):
        warped, depth_dst, winner = forward_warp(attribute, depth, camera(4, 4), pose(translation=(0, 0, z)))
        assert not warped.any() and not depth_dst.any() and (winner == -1).all()


def test_the_motion_undone_is_the_winners():
    # One near pixel moves two columns; the pixel it lands on does not move.
    K = torch.tensor([[[10.0, 0, 3], [0, 10, 2], [0, 0, 1]]]).double()
    attribute, depth = uniform(1, 1, 5, 7), torch.full((1, 1, 5, 7), 9.0).double()
    motion = torch.zeros(1, 3, 5, 7).double()
    depth[0, 0, 2, 1], motion[0, 0, 2, 1] = 5.0, 1.0
    warped, _, winner = forward_warp(attribute, depth, K, pose(), motion)
    assert winner[0, 2, 3] == 2 * 7 + 1
    torch.testing.assert_close(warped[0, 0, 2, 3], attribute[0, 0, 2, 1], rtol=0, atol=1e-12)
    assert winner[0, 2, 1] == -1


def test_nan_motion_silences_its_pixel_only():
    attribute, depth = uniform(1, 1, 5, 6), uniform(1, 1, 5, 6, seed=1, low=3, high=4)
    motion = torch.zeros(1, 3, 5, 6).double()
    motion[0, 1, 0, 0] = math.nan
    arguments = [value.requires_grad_() for value in (attribute, depth, pose(), motion)]
    warped, depth_dst, winner = forward_warp(arguments[0], arguments[1], camera(5, 6), *arguments[2:])
    assert (winner.flatten() == torch.tensor([-1, *range(1, 30)])).all()
    (warped.sum() + depth_dst.sum()).backward()
    assert all(argument.grad.isfinite().all() for argument in arguments)


def test_gradients():
    attribute, depth = uniform(1, 2, 4, 5), uniform(1, 1, 4, 5, seed=1, low=3, high=6)
    motion, T = uniform(1, 3, 4, 5, seed=2, low=-0.3, high=0.3), pose(0.05, (0.3, -0.2, 0.4))
    inputs = [value.requires_grad_() for value in (attribute, depth, T, motion)]

    def function(attribute, depth, T, motion):
        # The inverse is written for rigid T; every entry of T is a free number to both the formula and gradcheck.
        return forward_warp_reference(attribute, depth, camera(4, 5), T, motion)[:2]

    torch.autograd.gradcheck(function, inputs)


def test_gradient_of_depth_reaches_the_winner_alone():
    depth = torch.full((1, 1, 12, 16), 10.0).double()
    depth[..., 4:8, 5:11] = 4.0
    depth.requires_grad_()
    _, depth_dst, winner = forward_warp(depth.detach(), depth, camera(12, 16), pose(translation=(0.7, 0, 0)))
    depth_dst.sum().backward()
    shown = torch.bincount(winner[winner >= 0].long(), minlength=12 * 16).view(1, 1, 12, 16)
    torch.testing.assert_close(depth.grad, shown.double(), rtol=0, atol=1e-12)


def test_intrinsics_are_a_constant():
    K = camera(4, 4).requires_grad_()
    depth = uniform(1, 1, 4, 4, low=3, high=4).requires_grad_()
    forward_warp(depth.detach(), depth, K, pose())[0].sum().backward()
    assert K.grad is None


def test_half_precision_attribute_keeps_its_dtype(backend):
    if backend == "triton":
        pytest.skip("triton's interpreter cuts bfloat16 off where a GPU rounds it")
    attribute, depth = uniform(1, 1, 5, 6).bfloat16(), uniform(1, 1, 5, 6, low=3, high=4).float()
    warped, depth_dst, _ = forward_warp(attribute, depth, camera(5, 6).float(), pose(0.1).float())
    expected, _, _ = forward_warp(attribute.float(), depth, camera(5, 6).float(), pose(0.1).float())
    assert warped.dtype == torch.bfloat16 and depth_dst.dtype == torch.float32
    assert torch.equal(warped, expected.bfloat16())


def test_no_frames_and_no_channels():
    for batch, channels in ((0, 3), (2, 0)):
        depth = torch.ones(batch, 1, 3, 4)
        warped, depth_dst, winner = forward_warp(
            torch.ones(batch, channels, 3, 4), depth, torch.eye(3).expand(batch, 3, 3), torch.eye(4).expand(batch, 4, 4)
        )
        assert (
            warped.shape == (batch, channels, 3, 4) and depth_dst.shape == depth.shape and winner.shape == (batch, 3, 4)
        )


@pytest.mark.parametrize(
    "changes, exception, message",
    [
        ({"upscale": 0}, ValueError, "upscale"),
        ({"upscale": 2.0}, ValueError, "upscale"),
        ({"depth": uniform(1, 1, 4, 5)}, ValueError, "depth"),
        ({"motion": uniform(1, 2, 4, 4)}, ValueError, "motion"),
        ({"attribute": uniform(1, 1, 0, 4), "depth": uniform(1, 1, 0, 4)}, ValueError, "H is 0"),
        ({"K": camera(4, 4).long()}, TypeError, "K"),
        ({"attribute": torch.ones(1, 1, 4, 4, dtype=torch.int32)}, TypeError, "attribute"),
    ],
)
def test_bad_arguments_are_named(changes, exception, message):
    arguments = {"attribute": uniform(1, 1, 4, 4), "depth": uniform(1, 1, 4, 4), "K": camera(4, 4), "T_dst_ref": pose()}
    with pytest.raises(exception, match=message):
        forward_warp(**(arguments | changes))
