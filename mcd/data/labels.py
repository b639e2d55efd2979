"""Masks of a frame, as an external segmenter (or the synthetic generator) wrote them.

    {masks}/{split}/{frame}/{i}.png     one instance a file
    {road_masks}/{split}/{frame}.png    mask or probability of the ground

Both are in the Cityscapes layout; the frame of a triplet has its city before it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcd.config import Data
from mcd.data.files import read_mask, resize_nearest, text
from mcd.data.kitti import frame_size
from mcd.data.sequence import sequence_folder, sequence_frame_size
from mcd.data.triplets import triplet_frame_size, triplet_path
from mcd.files import DataError, reading

Masks = NDArray[np.bool_]


def instance_masks(config: Data, split: str, frame: str) -> tuple[Masks, list[int]]:
    """Instance masks [n, H, W] of a frame at the networks' size, and the numbers that name their files.

    Files without a number for a name are left alone. A frame without a folder has no instances.

    Raises:
        DataError: there are no masks for the whole split; a mask is broken, or shows another picture than its frame.
    """
    folder = _split_folder(config.root / config.masks, split, "instance masks") / frame
    paths = numbered_masks(folder)
    masks = np.zeros((len(paths), *config.size), bool)
    if paths:
        native = _native_size(config, frame)
        for row, path in enumerate(paths.values()):
            masks[row] = _fitted(read_mask(path), path, native, config.size)
    return masks, list(paths)


def road_mask(config: Data, split: str, frame: str) -> Masks:
    """Ground of a frame [1, H, W] at the networks' size: where the road mask is above one half.

    Raises:
        DataError: the file is missing, broken, or shows another picture than its frame.
    """
    path = _split_folder(config.root / config.road_masks, split, "road masks") / f"{frame}.png"
    return _fitted(read_mask(path), path, _native_size(config, frame), config.size)[None]


def numbered_masks(folder: Path) -> dict[int, Path]:
    """PNG files of a folder whose names are numbers, in the order of these; empty without a folder."""
    if not folder.is_dir():
        return {}
    return dict(sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdecimal()))


def moving_mask(folder: Path, frame: str) -> Masks | None:
    """What moves in a frame [H, W], at the size of its file: the pixels of ``FRAME.png`` that are not 0, or the union
    of those of ``FRAME/NUMBER.png``; None where there is neither, so that nothing is known.

    Numbers of objects, as in KITTI's ``obj_map``, are read as well as 0 and 255.

    Raises:
        DataError: a mask is broken, or those of a frame differ in size.
    """
    single = folder / f"{frame}.png"
    paths = [single] if single.is_file() else list(numbered_masks(folder / frame).values())
    found: Masks | None = None
    for path in paths:
        with reading("mask", path), Image.open(path) as file:
            levels = np.asarray(file.convert("RGB") if file.mode in ("LA", "RGBA") else file)
            mask: Masks = np.asarray(levels.reshape(*levels.shape[:2], -1).any(axis=2), bool)
        if found is not None and found.shape != mask.shape:
            raise DataError(f"mask {path} is {text(mask.shape)}, but {paths[0].name} is {text(found.shape)}")
        found = mask if found is None else found | mask
    if found is None and (folder / frame).is_dir():
        raise DataError(f"folder of masks {folder / frame} holds no NUMBER.png")
    return found


def _split_folder(folder: Path, split: str, what: str) -> Path:
    for place in (folder, folder / split):
        if not place.is_dir():
            raise DataError(f"folder of {what} {place} does not exist")
    return folder / split


def _native_size(config: Data, frame: str) -> tuple[int, int]:
    if config.kind == "triplets":
        return triplet_frame_size(triplet_path(config.root / "triplets", frame))
    if config.kind == "kitti":
        return frame_size(config.root, frame)
    return sequence_frame_size(sequence_folder(config), frame)


def _fitted(mask: Masks, path: Path, native: tuple[int, int], size: tuple[int, int]) -> Masks:
    """The mask at the networks' size. It may have this size, or any that shrinks or grows its frame evenly."""
    height, width = mask.shape
    if mask.shape != size and abs(height - width * native[0] / native[1]) > 1:
        raise DataError(
            f"mask {path} is {text(mask.shape)}, but its frame is {text(native)} (the networks see {text(size)})"
        )
    return resize_nearest(mask, size)
