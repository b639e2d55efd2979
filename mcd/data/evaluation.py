"""Frames with ground truth, cut and masked as the evaluation protocols want it.

The Cityscapes layout keeps whole images and cuts the ego car off here:

    leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png     image
    camera/{split}/{city}/{frame}_camera.json              intrinsics
    {split}_gt_depths/{frame}.npy                          metric depth, 0 where there is none
    {split}_mask_class/{city}/{frame}/{j}.png              objects that move

KITTI has LiDAR points, or with ``evaluation.improved`` the depth of Uhrig et al. ("Sparsity Invariant CNNs", 3DV 2017),
eleven scans that agree with stereo. What moves in KITTI and in sequences stands in the folder ``evaluation.masks``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mcd.config import Config, Evaluation
from mcd.data.dataset import Key, WholeFrame, WorkItem, network_intrinsics
from mcd.data.files import Picture, read_camera, read_depth, read_depth_array, read_image, read_mask, resize_image, text
from mcd.data.kitti import KittiFolder, improved_depth
from mcd.data.labels import moving_mask, numbered_masks
from mcd.data.sequence import SequenceFolder
from mcd.files import DataError

Region = NDArray[np.bool_]

# Top, bottom, left, right as shares of the kept image. Cityscapes: rows 256 to 768 and columns 192 to 1856 of 768x2048.
# KITTI: Garg et al., ECCV 2016.
CROPS = {
    "cityscapes": (1 / 3, 1.0, 192 / 2048, 1856 / 2048),
    "kitti": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


class EvaluationSet(Dataset[dict[str, Any]]):
    """The evaluated frames of a config: all that have ground truth (triplets), ``data.eval_frames`` (a sequence), or
    the list of ``evaluation.split`` (kitti).

    Items are dicts: ``image`` [3,H,W] uint8 and ``K`` [3,3] at the networks' size, ``frame``, ``index``, and at the
    size of the ground truth ``K_gt`` [3,3], ``depth_gt`` [h,w] float32 in metres (0 = none), ``valid`` [h,w] bool
    (inside the crop, depth strictly between the limits) and ``dynamic_mask`` [h,w] bool, or None where moving objects
    are not known; ``empty`` says why no pixel counts, where none does. With the loaders of :mod:`mcd.data` the arrays
    become lists, for sizes may differ.

    Raises:
        DataError: no ground truth where it should be; on reading, a file that is missing, broken or of another size.
    """

    def __init__(self, config: Config):
        self._config = config
        kinds: dict[str, Callable[[Config], Any]] = {"triplets": _Cityscapes, "sequence": _Sequence, "kitti": _Kitti}
        if config.evaluation.improved is not None and config.data.kind != "kitti":
            raise DataError(f"evaluation.improved is for data of kind kitti, not {config.data.kind}")
        if config.evaluation.masks is not None and config.data.kind == "triplets":
            raise DataError("evaluation.masks are for data of kind kitti or sequence; triplets have their own")
        self._source = kinds[config.data.kind](config)
        self.notes: list[str] = list(getattr(self._source, "notes", ()))
        """What is to be said of frames that are left out."""
        self.items: Sequence[WorkItem] = [WholeFrame(frame) for frame in self._source.frames]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        index = key[0] if isinstance(key, tuple) else key
        frame = self.items[index].frame
        image, K = self._source.view(frame)
        gt, dynamic = self._source.truth(frame)
        if gt.shape != image.shape[:2]:
            raise DataError(f"ground truth of {frame} is {text(gt.shape)}, but its image is {text(image.shape)}")
        resized = resize_image(image, self._config.data.size)
        return {
            "image": torch.from_numpy(resized.transpose(2, 0, 1).copy()),
            "K": torch.from_numpy(network_intrinsics(K, gt.shape, self._config.data)).float(),
            "frame": frame,
            "index": torch.tensor(index),
            "K_gt": torch.from_numpy(K.copy()),
            "depth_gt": gt,
            "valid": (valid := valid_pixels(self._config, gt) & self._source.usable(gt.shape)),
            "empty": "" if valid.any() else why_nothing_counts(self._config, gt),
            "dynamic_mask": dynamic,
        }


def valid_pixels(config: Config, gt: NDArray[np.float32]) -> Region:
    """Pixels [h, w] of a ground truth that count: inside the crop, depth strictly between the limits."""
    settings = config.evaluation
    inside = np.zeros(gt.shape, bool)
    inside[crop_window(_crop(settings), gt.shape)] = True
    return inside & (gt > settings.min_depth) & (gt < settings.max_depth)


def why_nothing_counts(config: Config, gt: NDArray[np.float32]) -> str:
    """The first rule of :func:`valid_pixels` that leaves nothing of a ground truth."""
    settings = config.evaluation
    measured = gt > 0
    if not measured.any():
        return "nothing was measured, its depth is 0 everywhere"
    inside = gt[crop_window(_crop(settings), gt.shape)]
    inside = inside[inside > 0]
    if not inside.size:
        return f"nothing was measured inside the crop (evaluation.crop, evaluation.protocol: {settings.protocol})"
    nearest, farthest = float(inside.min()), float(inside.max())
    return (
        f"nothing lies between evaluation.min_depth, {settings.min_depth:g}, and evaluation.max_depth, "
        f"{settings.max_depth:g}: depths are {nearest:g} to {farthest:g}"
    )


def _crop(settings: Evaluation) -> tuple[float, float, float, float]:
    """Shares of the image; the improved ground truth of KITTI is compared in all of it, as in its own benchmark."""
    if settings.crop is not None:
        return settings.crop
    return (0.0, 1.0, 0.0, 1.0) if settings.improved is not None else CROPS[settings.protocol]


def crop_window(shares: tuple[float, float, float, float], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a crop, cut off to whole pixels as the protocols do."""
    # A share such as 1/3 times a multiple of 3 must not fall short by rounding.
    top, bottom, left, right = (
        int(share * side + 1e-6) for share, side in zip(shares, (size[0], size[0], size[1], size[1]), strict=True)
    )
    return slice(top, bottom), slice(left, right)


class _Cityscapes:
    def __init__(self, config: Config):
        self._settings, self._root, split = config.evaluation, config.data.root, config.evaluation.split
        self._images, self._cameras = self._root / "leftImg8bit" / split, self._root / "camera" / split
        self._masks, self._depths = self._root / f"{split}_mask_class", self._root / f"{split}_gt_depths"
        for folder in (self._depths, self._masks):
            if not folder.is_dir():
                raise DataError(f"folder of ground truth {folder} does not exist")
        self.frames = sorted(f"{path.stem.split('_')[0]}/{path.stem}" for path in self._depths.glob("*.npy"))
        if not self.frames:
            raise DataError(f"folder of ground truth {self._depths} holds no .npy")

    def view(self, frame: str) -> tuple[Picture, NDArray[np.float64]]:
        image = read_image(self._images / f"{frame}_leftImg8bit.png")
        return image[: self._rows(len(image))], read_camera(self._cameras / f"{frame}_camera.json")

    def truth(self, frame: str) -> tuple[NDArray[np.float32], Region]:
        gt = read_depth_array(self._depths / f"{Path(frame).name}.npy")
        dynamic = np.zeros(gt.shape, bool)
        for mask_path in numbered_masks(self._masks / frame).values():
            mask = read_mask(mask_path)
            if mask.shape != gt.shape:
                raise DataError(f"mask {mask_path} is {text(mask.shape)}, but the ground truth is {text(gt.shape)}")
            if mask.sum() >= self._settings.min_mask_area * mask.size:
                dynamic |= mask
        rows = self._rows(len(gt))
        return gt[:rows], dynamic[:rows]

    def usable(self, size: tuple[int, ...]) -> Region:
        return np.ones(size, bool)

    def _rows(self, height: int) -> int:
        return round(self._settings.keep_rows * height)


class _Kitti:
    def __init__(self, config: Config):
        self._folder = KittiFolder(config.data, config.evaluation.split)
        self.frames = self._folder.frames
        self.notes: list[str] = []
        self._masks = _MovingMasks(config)
        self._improved = config.evaluation.improved
        if self._improved is not None:
            folder = config.data.root / self._improved
            self._improved = folder
            listed, self.frames = self.frames, [f for f in self.frames if improved_depth(folder, f) is not None]
            if not self.frames:
                raise DataError(
                    f"improved ground truth {folder} has none of the {len(listed)} frames listed, such as "
                    f"{listed[0]}; expected {{train,val}}/DRIVE/proj_depth/groundtruth/image_02/INDEX.png"
                )
            if missing := len(listed) - len(self.frames):
                self.notes.append(f"{missing} of {len(listed)} listed frames have no improved ground truth")

    def view(self, frame: str) -> tuple[Picture, NDArray[np.float64]]:
        return self._folder.read_image(frame), self._folder.read_intrinsics(frame)

    def truth(self, frame: str) -> tuple[NDArray[np.float32], Region | None]:
        if self._improved is None:
            depth = self._folder.read_depth(frame)
        else:
            path = improved_depth(self._improved, frame)
            assert path is not None, "the frames are those that have it"
            depth = read_depth(path)
        return depth, self._masks(frame, depth.shape)

    def usable(self, size: tuple[int, ...]) -> Region:
        return np.ones(size, bool)


class _Sequence:
    def __init__(self, config: Config):
        self._folder = SequenceFolder(config.data, "eval")
        self._masks = _MovingMasks(config)
        self.frames = self._folder.every_frame

    def view(self, frame: str) -> tuple[Picture, NDArray[np.float64]]:
        return self._folder.read_image(frame), self._folder.K

    def truth(self, frame: str) -> tuple[NDArray[np.float32], Region | None]:
        mask = self._masks(frame, self._folder.native_size)
        return self._folder.read_depth(frame), None if mask is None else self._folder.as_seen(mask)

    def usable(self, size: tuple[int, ...]) -> Region:
        """Pixels [h, w] that do not show the own vehicle."""
        own = self._folder.own_mask
        return np.ones(size, bool) if own is None else ~own


class _MovingMasks:
    """Masks of moving objects of a folder; None for frames without one, of which nothing is known."""

    def __init__(self, config: Config):
        self._folder = None if config.evaluation.masks is None else config.data.root / config.evaluation.masks
        if self._folder is not None and not self._folder.is_dir():
            raise DataError(f"folder of masks of moving objects {self._folder} does not exist")

    def __call__(self, frame: str, size: tuple[int, ...]) -> Region | None:
        mask = None if self._folder is None else moving_mask(self._folder, frame)
        if mask is not None and mask.shape != size:
            raise DataError(f"mask of frame {frame} in {self._folder} is {text(mask.shape)}, its depth {text(size)}")
        return mask
