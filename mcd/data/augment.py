"""Colour jitter, the same for all frames of an item, as the published system draws it.

Works on planes [..., 3, H, W] in NumPy, which uses one thread: the result does not depend on where it runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcd.config import Augment

Planes = NDArray[np.float32]

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def jitter(images: NDArray[np.uint8], augment: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation and hue in random order, drawn once for images [N, 3, H, W]."""
    factors = {
        brightness: rng.uniform(*augment.brightness),
        contrast: rng.uniform(*augment.contrast),
        saturation: rng.uniform(*augment.saturation),
        hue: rng.uniform(*augment.hue),
    }
    changes = list(factors)
    planes = images.astype(np.float32) / 255
    for position in rng.permutation(len(changes)):
        planes = changes[position](planes, np.float32(factors[changes[position]]))
    return (planes * 255 + 0.5).astype(np.uint8)


def brightness(images: Planes, factor: np.float32) -> Planes:
    """Towards black below 1."""
    return np.clip(images * factor, 0, 1)


def contrast(images: Planes, factor: np.float32) -> Planes:
    """Towards the mean grey of each image below 1."""
    mean = _grey(images).mean(axis=(-1, -2), keepdims=True)
    return np.clip(images * factor + (1 - factor) * mean, 0, 1)


def saturation(images: Planes, factor: np.float32) -> Planes:
    """Towards grey below 1."""
    return np.clip(images * factor + (1 - factor) * _grey(images), 0, 1)


def hue(images: Planes, shift: np.float32) -> Planes:
    """Turned by a share of the colour circle, in (-0.5, 0.5); value and saturation (HSV) stay."""
    red, green, blue = np.moveaxis(images, -3, 0)
    value = images.max(axis=-3)
    chroma = value - images.min(axis=-3)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    # Position on the circle in sixths, red at 0.
    sixths = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths += 6 * shift
    turned = np.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        position = sixths + np.float32(offset)
        position -= 6 * np.floor(position / 6)
        turned[..., channel, :, :] = value - chroma * np.clip(np.minimum(position, 4 - position), 0, 1)
    return turned


def _grey(images: Planes) -> Planes:
    """Luminance [..., 1, H, W]."""
    red, green, blue = np.moveaxis(images, -3, 0)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[..., None, :, :]
