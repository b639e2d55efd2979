"""The plane of the road in depth that a test makes itself, with clutter, noise and the wrong surfaces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mcd.scene.plane import fit_road, pixel_rays, under_camera

SIZE = (60, 160)
K = np.array([[90.0, 0, 80], [0, 95, 24], [0, 0, 1]])


def road(height: float, pitch: float = 0.0, roll: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Depth of a plane (0 above its horizon) and its normal, by intersecting every pixel's ray with it."""
    normal = np.array([np.sin(roll), np.cos(roll) * np.cos(pitch), np.sin(pitch)])
    normal /= np.linalg.norm(normal)
    depth = np.zeros(SIZE)
    for v in range(SIZE[0]):
        for u in range(SIZE[1]):
            ray = np.array([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], 1.0])
            if normal @ ray > 0.02:
                depth[v, u] = height / (normal @ ray)
    return depth, normal


def fit(depth: NDArray[np.float64]):
    rays = pixel_rays(SIZE, K)
    asked = (depth > 0) & under_camera(rays)
    return fit_road(depth[asked], rays[asked])


@pytest.mark.parametrize(("height", "pitch", "roll"), [(1.65, 0, 0), (0.02, 0.04, 0), (300.0, -0.03, 0.05)])
def test_a_plane_is_found_in_any_unit_and_tilt(height: float, pitch: float, roll: float) -> None:
    depth, normal = road(height, pitch, roll)
    found = fit(depth)
    assert found is not None
    assert found.height == pytest.approx(height, rel=1e-9)
    np.testing.assert_allclose(found.normal, normal, atol=1e-9)
    assert found.share == 1


def test_vehicles_holes_and_noise_do_not_move_it() -> None:
    rng = np.random.default_rng(3)
    depth, _ = road(1.65)
    depth *= rng.normal(1, 0.01, SIZE)
    depth[30:50, 60:100] = 6.0  # a vehicle ahead, on a third of the strip
    depth[52:56, 70:90] *= 3  # a hole
    found = fit(depth)
    assert found is not None
    # The least-squares plane over the same pixels is far off.
    rays = pixel_rays(SIZE, K)
    asked = (depth > 0) & under_camera(rays)
    points = depth[asked][:, None] * rays[asked]
    everything = np.linalg.lstsq(points, np.ones(len(points)), rcond=None)[0]
    assert abs(1 / np.linalg.norm(everything) / 1.65 - 1) > 0.1
    assert found.height == pytest.approx(1.65, rel=0.01)


def test_the_same_pixels_give_the_same_plane() -> None:
    depth = road(1.65)[0] * np.random.default_rng(0).normal(1, 0.03, SIZE)
    first, second = fit(depth), fit(depth)
    assert first is not None
    assert second is not None
    assert (first.height, *first.normal) == (second.height, *second.normal)


def test_walls_noise_and_too_little_are_no_road() -> None:
    rng = np.random.default_rng(1)
    assert fit(np.full(SIZE, 5.0)) is None
    assert fit(rng.uniform(1, 80, SIZE)) is None
    few = np.zeros(SIZE)
    few[50, 70:90] = road(1.65)[0][50, 70:90]
    assert fit(few) is None


def test_height_above_the_road_is_that_of_the_point() -> None:
    depth, _ = road(1.65, pitch=0.05)
    rays = pixel_rays(SIZE, K)
    found = fit(depth)
    assert found is not None
    on_road = depth > 0
    np.testing.assert_allclose(found.height_of(depth, rays)[on_road], 0, atol=1e-9)
    # Half way along the ray a point stands at half the camera's height.
    np.testing.assert_allclose(found.height_of(depth / 2, rays)[on_road], found.height / 2, atol=1e-9)
