"""Reading one file: an image, a mask, a depth map, intrinsics. Whatever is wrong with it is said with its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

try:  # the extra [fast]: the same pictures, in less time
    import pyspng
    import simplejpeg
except ImportError:
    pyspng = simplejpeg = None

from mcd.files import DataError, reading
from mcd.ops.resize_lanczos import resize_lanczos, serves

Picture = NDArray[np.uint8]
"""RGB [H, W, 3]."""


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header."""
    with reading("image", path), Image.open(path) as file:
        return file.height, file.width


def read_image(path: Path) -> Picture:
    """An image of 8 bits a channel as RGB uint8 [H, W, 3]."""
    with reading("image", path):
        found = _decoded(path.read_bytes()) if pyspng is not None else None
    return found if found is not None else np.asarray(_eight_bits("image", path, "RGB"))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask or probability [H, W]: True above one half. A file of zeros and ones only counts as 0 and 255."""
    levels = np.asarray(_eight_bits("mask", path, "L"))
    return levels > (127 if levels.max(initial=0) > 1 else 0)


def read_depth(path: Path) -> NDArray[np.float32]:
    """Depth [H, W] in metres of a 16-bit PNG that holds metres · 256; 0 where nothing was measured."""
    with reading("depth", path), Image.open(path) as file:
        if not file.mode.startswith("I"):
            raise DataError(f"depth {path} has pixels of kind '{file.mode}'; expected 16-bit grey (metres * 256)")
        return np.asarray(file, dtype=np.float32) / np.float32(256)


def read_depth_array(path: Path) -> NDArray[np.float32]:
    """Depth [H, W] of an .npy file; what is not finite becomes 0 (none)."""
    with reading("depth", path):
        depth = np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
        if depth.ndim != 2:
            raise DataError(f"depth {path} has shape {depth.shape}; expected two dimensions")
    return np.nan_to_num(depth, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def read_lines(what: str, path: Path) -> list[str]:
    """The lines of a text file that hold anything, stripped."""
    with reading(what, path):
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """K [3, 3] of a file of nine comma-separated numbers, row by row."""
    with reading("intrinsics", path):
        numbers = [float(number) for number in path.read_text().replace("\n", ",").split(",") if number.strip()]
        if len(numbers) != 9:
            raise DataError(f"intrinsics {path} hold {len(numbers)} numbers; expected the 9 of a 3x3 matrix")
    return check_intrinsics(np.array(numbers).reshape(3, 3), str(path))


def read_camera(path: Path) -> NDArray[np.float64]:
    """K [3, 3] of a Cityscapes camera file."""
    with reading("camera", path):
        document: Any = json.loads(path.read_text())
        try:
            fx, fy, cx, cy = (float(document["intrinsic"][key]) for key in ("fx", "fy", "u0", "v0"))
        except (KeyError, TypeError) as error:
            raise DataError(f"camera {path} lacks intrinsic.fx, fy, u0 or v0 ({error})") from None
    return check_intrinsics(pinhole(fx, fy, cx, cy), str(path))


def read_kitti_calibration(path: Path, camera: str = "02") -> tuple[NDArray[np.float64], tuple[int, int]]:
    """K [3, 3] of a colour camera ("02" left, "03" right) after rectification, and the height and width of its images.

    The file is ``calib_cam_to_cam.txt`` of a KITTI raw recording.
    """
    numbers = read_kitti_numbers(path, {f"P_rect_{camera}": (3, 4), f"S_rect_{camera}": (2,)})
    with reading("calibration", path):
        width, height = (round(float(number)) for number in numbers[f"S_rect_{camera}"])
    return check_intrinsics(numbers[f"P_rect_{camera}"][:, :3].copy(), str(path)), (height, width)


def read_kitti_numbers(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    """Arrays of the given shapes by name, from a calibration file of KITTI with lines "name: number number …"."""
    entries = dict(line.partition(":")[::2] for line in read_lines("calibration", path))
    found: dict[str, NDArray[np.float64]] = {}
    with reading("calibration", path):
        for key, shape in wanted.items():
            if key not in entries:
                raise DataError(f"calibration {path} has no line {key}; expected KITTI's {path.name}")
            found[key] = np.array([float(number) for number in entries[key].split()]).reshape(shape)
    return found


def pinhole(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    """K [3, 3]."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)


def check_intrinsics(K: NDArray[np.float64], source: str) -> NDArray[np.float64]:
    """K itself, if it is the finite, invertible matrix of a pinhole camera; ``source`` says where it is from."""
    if not np.isfinite(K).all():
        raise DataError(f"intrinsics of {source} are not finite: {K.tolist()}")
    if abs(np.linalg.det(K)) < 1e-9:
        raise DataError(f"intrinsics of {source} are singular: {K.tolist()}")
    if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.array_equal(K[2], (0, 0, 1)):
        raise DataError(
            f"intrinsics of {source} are no pinhole matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]: {K.tolist()}"
        )
    return K


def resize_image(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The one way in which images change their size: Lanczos, straight from the native size.

    Images [H, W, 3] are uint8, or float32 in [0, 1].

    Networks are trained and applied on the same pixels; the published code trained on Lanczos-resized images and
    applied some nets to bilinear ones.
    """
    if image.shape[:2] == size:
        return image
    if image.dtype == np.uint8:
        return _lanczos(image, size)
    channels = [_lanczos(channel, size) for channel in np.moveaxis(image, -1, 0)]
    # Lanczos overshoots at edges; what is stored as bytes is cut off there.
    return np.stack(channels, axis=-1).clip(0, 1)


def _lanczos(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Columns first. Since Pillow 13 its order depends on the sizes, and bytes in between are rounded and cut off."""
    height, width = size
    columns = Image.fromarray(image).resize((width, len(image)), Image.Resampling.LANCZOS)
    return np.asarray(columns.resize((width, height), Image.Resampling.LANCZOS))


def resize_planes(image: Picture, size: tuple[int, int]) -> NDArray[np.uint8]:
    """:func:`resize_image` of bytes, as planes [3, h, w]; compiled it is the same to the bit, and faster."""
    if image.shape[:2] == size or not serves():
        return np.ascontiguousarray(resize_image(image, size).transpose(2, 0, 1))
    # Pictures that a decoder has made may be read-only, of which torch warns.
    whole = image if image.flags.writeable and image.flags.c_contiguous else image.copy()
    return resize_lanczos(torch.from_numpy(whole), size).numpy()


def resize_nearest(array: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """An array [..., H, W] at another size: each pixel is the one under its centre. Masks and labels never blend."""
    if array.shape[-2:] == tuple(size):
        return array
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, array.shape[-2:], strict=True)
    )
    return array[..., rows[:, None], columns]


def text(shape: Sequence[int]) -> str:
    """Height and width as "HxW"."""
    return f"{shape[0]}x{shape[1]}"


_PNG, _RGB_HEADER, _JPEG = b"\x89PNG\r\n\x1a\n", bytes((8, 2, 0, 0, 0)), b"\xff\xd8"


def _decoded(data: bytes) -> Picture | None:
    """A plain RGB PNG, or JPEG of YCbCr, of a sane size; None for all else, and what is broken: Pillow has the word."""
    try:
        if data.startswith(_PNG) and data[24:29] == _RGB_HEADER:
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
            if width * height <= (Image.MAX_IMAGE_PIXELS or 0):
                return pyspng.load(data, format="RGB")
        elif data.startswith(_JPEG):
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space == "YCbCr" and width * height <= (Image.MAX_IMAGE_PIXELS or 0):
                return simplejpeg.decode_jpeg(data)
    except (ValueError, RuntimeError, MemoryError):
        pass
    return None


def _eight_bits(what: str, path: Path, mode: str) -> Image.Image:
    with reading(what, path), Image.open(path) as file:
        if file.mode.startswith(("I", "F")):
            raise DataError(f"{what} {path} has pixels of kind '{file.mode}'; expected 8 bits a channel")
        return file.convert(mode)
