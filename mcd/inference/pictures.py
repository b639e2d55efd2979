"""What people call an image (a path, a PIL image, an array, a tensor) as the array that a net's pixels are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcd.errors import McdError
from mcd.inference.inputs import read_image, rgb

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""RGB [H, W, 3]: uint8, or float32 in [0, 1]."""
Picture: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
"""One image, or an array or tensor that holds a batch of one size."""


class PictureError(McdError, ValueError):
    """Something that is no image, or one that no net can take; the message says what it is and what it should be."""


def pixels_of(picture: Picture) -> tuple[list[Pixels], bool]:
    """The images of a picture, and whether it is a batch.

    Args:
        picture: a path; a PIL image; an array [H, W], [H, W, C] or [B, H, W, C]; or a tensor [C, H, W] or
            [B, C, H, W], of C = 1 (grey), 3 (RGB) or 4 (RGB and transparency, which is dropped) channels. Numbers are
            uint8, uint16, or floating-point in [0, 1].

    Raises:
        PictureError: it is something else, empty, or holds numbers that are not finite or outside their range.
        InputError: a file is no image.
    """
    if isinstance(picture, str | Path):
        return [read_image(Path(picture))], False
    if isinstance(picture, Image.Image):
        try:
            return [rgb(picture)], False
        except (OSError, ValueError) as error:
            raise PictureError(f"PIL image of {picture.width}x{picture.height} cannot be used: {error}") from None
    if isinstance(picture, Tensor):
        return _of_array(_from_tensor(picture), f"tensor {list(picture.shape)} of {picture.dtype}")
    if isinstance(picture, np.ndarray):
        return _of_array(picture, f"array {list(picture.shape)} of {picture.dtype}")
    raise PictureError(f"{type(picture).__name__} is no image: give a path, a PIL image, an array or a tensor")


def _from_tensor(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array with its channels last."""
    if tensor.ndim not in (3, 4) or tensor.shape[-3] not in (1, 3, 4):
        hint = "; channels come first in a tensor" if tensor.ndim > 2 and tensor.shape[-1] in (1, 3, 4) else ""
        raise PictureError(
            f"tensor {list(tensor.shape)} is no image: it should be [C, H, W] or [B, C, H, W] with 1, 3 or 4 "
            f"channels{hint}"
        )
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().movedim(-3, -1).numpy()


def _of_array(array: NDArray[Any], name: str) -> tuple[list[Pixels], bool]:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
        hint = "; channels come last in an array" if array.ndim > 2 and array.shape[-3] in (1, 3, 4) else ""
        raise PictureError(
            f"{name} is no image: it should be [H, W], [H, W, C] or [B, H, W, C] with 1, 3 or 4 channels{hint}"
        )
    if 0 in array.shape:
        raise PictureError(f"{name} is empty")
    array = _levels(array[..., :3], name)
    if array.shape[-1] == 1:
        array = np.broadcast_to(array, (*array.shape[:-1], 3))
    array = np.ascontiguousarray(array)
    return (list(array), True) if array.ndim == 4 else ([array], False)


def _levels(array: NDArray[Any], name: str) -> Pixels:
    """The numbers of an image as uint8, or as float32 in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise PictureError(f"{name}: the numbers of an image are uint8, uint16, or floating-point in [0, 1]")
    least, most = float(array.min()), float(array.max())  # not finite where any number is NaN
    if not (least >= 0 and most <= 1):
        if not np.isfinite(array).all():
            raise PictureError(f"{name} holds NaN or infinity")
        hint = "; divide it by 255" if 1 < most <= 255 and least >= 0 else ""
        raise PictureError(f"{name} has numbers from {least:g} to {most:g}, which should lie in [0, 1]{hint}")
    return array.astype(np.float32, copy=False)
