"""Metres from the road and from motion, where the right answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mcd.files import DataError
from mcd.scene.metres import RunningScale, read_positions, scale_of_motion, scale_of_road

SIZE = (60, 160)
K = np.array([[90.0, 0, 80], [0, 95, 24], [0, 0, 1]])


def road(height: float) -> np.ndarray:
    v = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    return height * K[1, 1] / np.maximum(v - K[1, 2], 0.5)


@pytest.mark.parametrize("unit", [0.03, 1.0, 40.0])
def test_a_road_says_how_many_metres_a_unit_has(unit: float) -> None:
    depth = road(1.65) / unit
    depth[30:44, 70:90] = 7 / unit  # a vehicle ahead
    assert scale_of_road(depth, K, 1.65) == pytest.approx(unit, rel=1e-3)


def test_the_own_vehicle_is_no_road() -> None:
    depth, usable = road(1.65), np.ones(SIZE, bool)
    depth[36:] = road(0.4)[36:]  # a bonnet, flat and far above the road
    usable[36:] = False
    wrong = scale_of_road(depth, K, 1.65)
    assert wrong is None or wrong > 2
    assert scale_of_road(depth, K, 1.65, usable) == pytest.approx(1, rel=1e-3)


def test_a_picture_without_a_road_says_nothing() -> None:
    assert scale_of_road(np.full(SIZE, 4.0), K, 1.65) is None


def test_single_wrong_measurements_and_missing_ones_do_not_move_the_running_scale() -> None:
    running = RunningScale()
    assert running.update(None) is None
    values = [2.0, 2.02, 1.98, 14.0, None, 2.01, 0.1, 2.0, math.inf, 1.99]
    found = [running.update(value) for value in values]
    assert all(value == pytest.approx(2.0, rel=0.02) for value in found)


def test_the_running_scale_follows_a_lasting_change() -> None:
    running = RunningScale(memory=5)
    for _ in range(10):
        running.update(2.0)
    for _ in range(5):
        last = running.update(3.0)
    assert last == pytest.approx(3.0)


def test_degrees_become_metres(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    # A thousandth of a degree north is 111.3 m; east, at 60 degrees north, half of it.
    path.write_text("latitude,longitude,altitude\n60,10,5\n60.001,10,5\n60,10.001,7\n")
    found = read_positions(path, ["a", "b", "c"])
    np.testing.assert_allclose(found["a"], 0)
    np.testing.assert_allclose(found["b"], (0, 111.32, 0), atol=0.01)
    np.testing.assert_allclose(found["c"], (55.66, 0, 2), atol=0.01)


def test_motion_says_how_many_metres_a_unit_has(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    path.write_text("frame,x,y,z\n0,0,0,0\n1,3,0,4\n2,3,0,8\n")
    positions = read_positions(path, ["a", "b", "c"])
    steps = [np.array([0.3, 0, 0.4]), np.array([0.0, 0, 0.4])]
    assert scale_of_motion(positions, ["a", "b", "c"], steps) == pytest.approx(10)
    standing = dict.fromkeys("abc", np.zeros(3))
    assert scale_of_motion(standing, ["a", "b", "c"], steps) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "neither"), ("x,y,z\n1,2,3\n", "1 lines"), ("x,y,z\n1,2,3\n1,2,far\n", "no number")],
)
def test_poses_that_cannot_be_meant_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "poses.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_positions(tmp_path / "poses.csv", ["a", "b"])
