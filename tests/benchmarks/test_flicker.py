"""The figures of flicker on films of known depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.flicker import figures, road_pixels


def test_a_jump_and_noise_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    plain = np.full((41, 40, 60), 10.0)
    plain[:, :, 30:] = 20.0
    road = np.zeros((40, 60), bool)
    road[30:] = True
    assert figures(plain, plain, road) == {
        "flicker": 0,
        "jump": 0,
        "rest": 0,
        "edge": pytest.approx(np.log(2)),
        "off": 0,
    }
    jumping = plain * np.where(np.arange(41) % 2, 1.02, 1.0)[:, None, None]
    found = figures(jumping, plain, road)
    assert found["flicker"] == found["jump"] == pytest.approx(100 * np.log(1.02))
    assert found["rest"] == pytest.approx(0)
    noisy = figures(plain * np.exp(0.01 * rng.normal(size=plain.shape)), plain, road)
    # The mean of |a - b| of two normal numbers is 2 / sqrt(pi) of their deviation.
    assert noisy["flicker"] == pytest.approx(200 * 0.01 / np.sqrt(np.pi), rel=0.02)
    assert noisy["jump"] < 0.1 * noisy["flicker"]
    blurred = plain.copy()
    blurred[:, :, 29:31] = (12.6, 15.9)
    assert figures(blurred, plain, road)["edge"] < 0.4 * np.log(2)


def test_road_is_below_and_beside_vehicles(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("frame,x0,y0,x1,y1\n0,100,300,140,400\n")
    road = road_pixels((96, 160), (480, 800), 0.5, tmp_path / "boxes.csv")
    assert not road[:48].any()
    assert not road[60:80, 20:28].any()
    assert road[48:, 40:].all()
