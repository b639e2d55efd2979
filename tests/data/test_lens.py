"""Lens distortion taken out, against an inverse found by iteration, and frames cut and undistorted at reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcd.config import Config, ConfigError, parse_config
from mcd.data import EvaluationSet, SequenceFolder
from mcd.data.lens import Lens, distort

PINHOLE = (-0.28, 0.09, 0.001, -0.002, -0.01)
FISHEYE = (-0.03, 0.01, -0.004, 0.0006)
SIZE = (90, 140)
INTRINSICS = (80.0, 82.0, 70.0, 43.0)


def undistort(x: float, y: float, camera: str, coefficients: tuple[float, ...]) -> tuple[float, float]:
    """The ray that a lens shows at (x, y), by bisection along r for a fisheye and fixed-point steps for a pinhole."""
    if camera == "fisheye":
        radius, (low, high) = np.hypot(x, y), (0.0, np.pi / 2 - 1e-6)
        for _ in range(80):
            theta = (low + high) / 2
            bent = theta + sum(k * theta ** (2 * n + 3) for n, k in enumerate(coefficients))
            low, high = (theta, high) if bent < radius else (low, theta)
        factor = np.tan(theta) / radius if radius > 0 else 1.0
        return x * factor, y * factor
    k1, k2, p1, p2, k3 = coefficients
    a, b = x, y
    for _ in range(200):
        r2 = a * a + b * b
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        a = (x - 2 * p1 * a * b - p2 * (r2 + 2 * a * a)) / radial
        b = (y - p1 * (r2 + 2 * b * b) - 2 * p2 * a * b) / radial
    return a, b


@pytest.mark.parametrize(("camera", "coefficients"), [("pinhole", PINHOLE), ("fisheye", FISHEYE)])
def test_the_formulas_undo_a_known_inverse(camera: str, coefficients: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    shown = rng.uniform(-0.6, 0.6, (40, 2))
    rays = np.array([undistort(x, y, camera, coefficients) for x, y in shown])
    back = np.stack(distort(rays[:, 0], rays[:, 1], camera, coefficients), axis=-1)
    np.testing.assert_allclose(back, shown, atol=1e-10)
    assert np.abs(rays - shown).max() > 0.02  # the lens does something


def test_a_fisheye_without_numbers_is_equidistant() -> None:
    x, y = distort(np.array([1.0, 0.0]), np.array([0.0, 0.0]), "fisheye", (0, 0, 0, 0))
    np.testing.assert_allclose(x, (np.pi / 4, 0))
    np.testing.assert_allclose(y, 0)


def scene(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A smooth picture of rays."""
    return np.stack([127 + 100 * np.sin(9 * x) * np.cos(7 * y), 127 + 90 * np.cos(5 * x + y), 100 + 80 * y], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize(("camera", "coefficients"), [("pinhole", PINHOLE), ("fisheye", FISHEYE)])
def test_a_distorted_picture_becomes_that_of_a_pinhole(camera: str, coefficients: tuple[float, ...]) -> None:
    fx, fy, cx, cy = INTRINSICS
    v, u = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    shown = np.stack(((u - cx) / fx, (v - cy) / fy), -1).reshape(-1, 2)
    rays = np.array([undistort(x, y, camera, coefficients) for x, y in shown]).reshape(*SIZE, 2)
    lens = Lens(SIZE, INTRINSICS, camera, coefficients)
    found = lens.picture(scene(rays[..., 0], rays[..., 1])).astype(int)
    wanted = scene((u - cx) / fx, (v - cy) / fy).astype(int)
    inside = found.any(-1)
    assert inside.mean() > 0.8
    # Bilinear between pixels of a curved scene, and eight bits.
    assert np.abs(found - wanted)[inside].mean() < 1.0
    assert np.abs(lens.picture(wanted.astype(np.uint8)).astype(int) - wanted)[inside].mean() > 5


def test_a_crop_moves_the_centre_and_nothing_else() -> None:
    lens = Lens(SIZE, INTRINSICS, crop=(0.1, 0.8, 0.25, 1.0))
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(lens.picture(image), image[9:72, 35:])
    np.testing.assert_array_equal(lens.nearest(image[..., 0]), image[9:72, 35:, 0])
    assert lens.kept_size == (63, 105)
    np.testing.assert_allclose(lens.intrinsic_matrix, [[80, 0, 35], [0, 82, 34], [0, 0, 1]])


def clip_config(root: Path, **data: object) -> Config:
    document = {"kind": "sequence", "root": str(root), "images": "images", "depth": "depth", "size": [64, 64]}
    return parse_config({"data": document | {"intrinsics": list(INTRINSICS)} | data})


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "depth"):
        (tmp_path / name).mkdir()
    for number in range(4):
        picture = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray((256 * rng.uniform(2, 60, SIZE)).astype(np.uint16)).save(tmp_path / "depth" / f"{number}.png")
    return tmp_path


def test_frames_and_depth_are_cut_alike(clip: Path) -> None:
    config = clip_config(clip, crop=[0, 0.8, 0.1, 0.9])
    whole, cut = SequenceFolder(clip_config(clip).data, "eval"), SequenceFolder(config.data, "eval")
    np.testing.assert_array_equal(cut.read_image("2"), whole.read_image("2")[:72, 14:126])
    np.testing.assert_array_equal(cut.read_depth("2"), whole.read_depth("2")[:72, 14:126])
    assert cut.K[0, 2] == whole.K[0, 2] - 14
    item = EvaluationSet(config)[0]
    assert item["depth_gt"].shape == (72, 112)


def test_frames_and_depth_are_undistorted_alike(clip: Path) -> None:
    lens = Lens(SIZE, INTRINSICS, "pinhole", PINHOLE)
    folder = SequenceFolder(clip_config(clip, distortion=list(PINHOLE)).data, "eval")
    plain = SequenceFolder(clip_config(clip).data, "eval")
    np.testing.assert_array_equal(folder.read_image("1"), lens.picture(plain.read_image("1")))
    np.testing.assert_array_equal(folder.read_depth("1"), lens.nearest(plain.read_depth("1")))
    assert not np.array_equal(folder.read_image("1"), plain.read_image("1"))


def test_an_own_mask_that_is_given_leaves_pixels_out_of_the_evaluation(clip: Path) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[60:] = 255
    Image.fromarray(mask).save(clip / "own.png")
    plain = EvaluationSet(clip_config(clip))[0]["valid"]
    found = EvaluationSet(clip_config(clip, own_mask="own.png"))[0]["valid"]
    np.testing.assert_array_equal(found[:60], plain[:60])
    assert plain[60:].any()
    assert not found[60:].any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"distortion": [0.1, 0.2]}, "5 numbers, not 2"),
        ({"camera": "fisheye", "distortion": [0, 0, 0, 0, 0]}, "4 numbers, not 5"),
        ({"camera": "fisheye"}, "four"),
        ({"crop": [0.5, 0.4, 0, 1]}, "crop"),
        ({"intrinsics": "learn"}, "fov"),
        ({"intrinsics": None, "fov": 70, "distortion": [0, 0, 0, 0, 0]}, "give both"),
        ({"kind": "kitti"}, "for data of kind sequence"),
    ],
)
def test_cameras_that_cannot_be_meant_are_named(tmp_path: Path, data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clip_config(tmp_path, **data)
