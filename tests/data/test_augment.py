from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as published

from mcd.config import Augment
from mcd.data import augment

STRONG = Augment(brightness=(0.3, 1.7), contrast=(0.3, 1.7), saturation=(0.3, 1.7), hue=(-0.4, 0.4))


def picture(seed: int = 0) -> np.ndarray:
    """Noise, with the corners of the colour cube and a grey ramp, where hue and chroma change their branch."""
    image = np.random.default_rng(seed).integers(0, 256, (3, 12, 16), dtype=np.uint8)
    for corner in range(8):
        image[:, 0, corner] = [255 * (corner >> bit & 1) for bit in range(3)]
    image[:, 1] = np.arange(0, 256, 16)
    return image


@pytest.mark.parametrize(
    ("change", "truth", "amounts"),
    [
        (augment.brightness, published.adjust_brightness, (0.8, 1.2, 1.7)),
        (augment.contrast, published.adjust_contrast, (0.8, 1.2, 0.1)),
        (augment.saturation, published.adjust_saturation, (0.8, 1.2, 0.0)),
        (augment.hue, published.adjust_hue, (-0.1, 0.1, 0.37, -0.5)),
    ],
)
def test_each_change_is_what_torchvision_does(change: Callable, truth: Callable, amounts: tuple[float, ...]) -> None:
    # The second image is darker: contrast goes towards the mean of each.
    planes = np.stack([picture(0), picture(1) // 2]).astype(np.float32) / 255
    for amount in amounts:
        expected = truth(torch.from_numpy(planes), amount).numpy()
        # torchvision's luminance has the weight 0.2989 where ours is 0.299: 1e-4 of a value of at most 1.
        assert np.allclose(change(planes, np.float32(amount)), expected, atol=3e-4), amount


def test_no_change_changes_nothing() -> None:
    none = Augment(brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0))
    images = np.stack([picture(0), picture(1), picture(2)])
    assert np.array_equal(augment.jitter(images, none, np.random.default_rng(0)), images)


def test_all_frames_of_an_item_change_alike() -> None:
    images = np.stack([picture()] * 3)
    for seed in range(4):
        jittered = augment.jitter(images, STRONG, np.random.default_rng(seed))
        assert np.array_equal(jittered[0], jittered[1])
        assert np.array_equal(jittered[0], jittered[2])
        assert not np.array_equal(jittered, images)


def test_black_stays_black() -> None:
    """Masked-out frames are black, and the photometric loss relies on it."""
    black = np.zeros((3, 3, 4, 5), np.uint8)
    for seed in range(4):
        assert not augment.jitter(black, STRONG, np.random.default_rng(seed)).any()


def test_the_order_of_the_changes_is_drawn() -> None:
    """Clipping does not commute: with fixed amounts, draws differ only by their order."""
    fixed = Augment(brightness=(1.7, 1.7), contrast=(0.4, 0.4), saturation=(1.6, 1.6), hue=(0.2, 0.2))
    images = picture()[None]
    results = {augment.jitter(images, fixed, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(results) > 2
