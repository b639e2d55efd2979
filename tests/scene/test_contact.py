"""The ground at an object's foot, on a plane that is known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from mcd.scene.contact import contact_ratio, foot_depth

SIZE, HORIZON, FOCAL = (96, 160), 40.0, 100.0
BOX = (slice(40, 58), slice(60, 80))


def plane() -> np.ndarray:
    """Depth of the ground one unit under the camera, far away above the horizon."""
    rows = np.arange(SIZE[0])[:, None] - HORIZON
    return np.where(rows > 0, FOCAL / np.maximum(rows, 0.1), 1000.0).repeat(SIZE[1], axis=1)


def mask(rows: slice = BOX[0], columns: slice = BOX[1]) -> np.ndarray:
    found = np.zeros(SIZE, dtype=bool)
    found[rows, columns] = True
    return found


def ground() -> np.ndarray:
    return plane() < 500


def test_the_ground_is_carried_on_to_the_foot() -> None:
    # The lower edge of the last row of the object, half a row below its centre; the first row of ground is nearer.
    assert foot_depth(plane(), ground(), mask()) == pytest.approx(FOCAL / (57.5 - HORIZON), rel=1e-6)
    assert plane()[58, 70] < 0.98 * FOCAL / (57.5 - HORIZON)


def test_an_upright_object_at_its_foot_touches_and_a_hole_lies_beyond() -> None:
    foot = FOCAL / (57.5 - HORIZON)
    for share in (0.9, 1.0, 1.6):
        assert contact_ratio(np.full(SIZE, share * foot), plane(), ground(), mask()) == pytest.approx(share, rel=1e-6)
    # The upper part says nothing of contact.
    leaning = np.full(SIZE, foot)
    leaning[:50] *= 3
    assert contact_ratio(leaning, plane(), ground(), mask()) == pytest.approx(1, rel=1e-6)


def test_noise_of_single_pixels_does_not_matter() -> None:
    depth = plane()
    depth[60:64, 62:66] = 500
    assert foot_depth(depth, ground(), mask()) == pytest.approx(FOCAL / (57.5 - HORIZON), rel=1e-6)


@pytest.mark.parametrize("rows", [slice(80, 95), slice(80, 96)])
def test_a_foot_at_the_border_of_the_image_is_not_seen(rows: slice) -> None:
    assert foot_depth(plane(), ground(), mask(rows)) is None


def test_without_ground_below_it_an_object_has_no_foot() -> None:
    hidden = ground()
    hidden[56:70, 50:90] = False
    assert foot_depth(plane(), hidden, mask()) is None
    assert contact_ratio(plane(), plane(), hidden, mask()) is None
    assert foot_depth(plane(), ground(), np.zeros(SIZE, dtype=bool)) is None


def test_ground_that_comes_nearer_upwards_is_none() -> None:
    ceiling = np.arange(1.0, SIZE[0] + 1)[:, None].repeat(SIZE[1], axis=1)
    assert foot_depth(ceiling, np.ones(SIZE, dtype=bool), mask()) is None
