"""What a camera does to a picture: exposure, colour, lens, sensor and JPEG, drawn anew for each use of a view."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcd.streets.ray_caster import NoiseTexture

Floats = NDArray[Any]  # float32, which NumPy's stubs lose in arithmetic


def photograph(rng: np.random.Generator, image: NDArray[np.uint8], texture: NoiseTexture) -> NDArray[np.uint8]:
    """A picture [H,W,3] as one of many cameras would give it."""
    x = image.astype(np.float32) / 255
    x *= np.float32(math.exp(rng.normal(0.15, 0.35)))
    x *= np.exp(rng.normal(0, 0.07, 3)).astype(np.float32)
    grey = x.mean(-1, keepdims=True)
    x = grey + (x - grey) * np.float32(max(rng.normal(0.95, 0.3), 0.0))
    # A sensor's curve: highlights are cut or rolled off, blacks lifted.
    x = x.clip(0, 1.4 if rng.random() < 0.5 else 1.0)
    x = np.power(x, np.float32(math.exp(rng.normal(-0.1, 0.25)))).clip(0, 1)
    level, contrast = rng.uniform(0.3, 0.6), rng.uniform(0.7, 1.35)
    x = np.float32(level) + (x - np.float32(level)) * np.float32(contrast) + np.float32(rng.normal(0, 0.03))
    height, width = x.shape[:2]
    if rng.random() < 0.3:
        x = x * _vignette(height, width, rng.uniform(0.1, 0.5))
    if rng.random() < 0.25:
        x = x + rng.uniform(0.02, 0.12) * _reflections(rng, height, width, texture)[..., None]
    choice = rng.random()
    if choice < 0.35:
        x = _blur(x, rng.uniform(0.3, 1.2))
    elif choice < 0.55:
        x = x + np.float32(rng.uniform(0.2, 1.2)) * (x - _blur(x, 0.8))
    if rng.random() < 0.7:
        fine = rng.standard_normal(x.shape, np.float32)
        if rng.random() < 0.5:
            fine = fine.mean(-1, keepdims=True) * np.float32(1.7)
        if rng.random() < 0.4:
            fine = _blur(fine, 0.6) * np.float32(2)
        x = x + np.float32(rng.uniform(0.0, 0.035)) * fine
    found = (x.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        data = io.BytesIO()
        Image.fromarray(found).save(data, "JPEG", quality=int(rng.integers(25, 95)))
        found = np.asarray(Image.open(data))
    return found


def _blur(x: Floats, sigma: float) -> Floats:
    """Gaussian over rows and columns, cut at two pixels."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(x, [(2, 2) if i == axis else (0, 0) for i in range(x.ndim)], mode="edge")
        length = x.shape[axis]
        x = sum(w * padded.take(range(i, i + length), axis=axis) for i, w in enumerate(weights))
    return x


def _vignette(height: int, width: int, strength: float) -> Floats:
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    return (1 - np.float32(strength / 2) * (y[:, None] ** 2 + x**2))[..., None]


def _reflections(rng: np.random.Generator, height: int, width: int, texture: NoiseTexture) -> Floats:
    """Soft light patches, as a dashboard leaves them in a windscreen."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32) * np.float32(rng.uniform(0.005, 0.03))
    shift = rng.uniform(0, 14, 2).astype(np.float32)
    footprint = np.full(height * width, 0.02, np.float32)
    noise = texture.lookup(columns.ravel() + shift[0], rows.ravel() + shift[1], footprint)
    return noise.reshape(height, width).clip(0, 2)
