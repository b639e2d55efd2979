"""Masks on disk: one ``.npz`` a frame, eight pixels a byte, and whatever arrays belong to the frame beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.files import atomic_path, reading

Masks = NDArray[np.bool_]


def save_masks(path: Path, masks: Masks, **arrays: Any) -> None:
    """Write masks [...,H,W] bool and ``arrays`` by name, whole or not at all."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, shape=masks.shape, masks=np.packbits(masks), **arrays)


def load_masks(path: Path, *names: str) -> tuple[Masks, list[NDArray[Any]]]:
    """The masks of :func:`save_masks`, and the named arrays beside them.

    Raises:
        DataError: the file is missing or broken.
    """
    with reading("masks", path), np.load(path) as file:
        shape = tuple(file["shape"])
        masks = np.unpackbits(file["masks"], count=math.prod(shape)).reshape(shape).astype(bool)
        return masks, [file[name] for name in names]


def load_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The named arrays alone: masks are nearly all of a file, and stay packed.

    Raises:
        DataError: the file is missing or broken.
    """
    with reading("masks", path), np.load(path) as file:
        return [file[name] for name in names]
