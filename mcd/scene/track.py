"""The camera's motion along a sequence: found by :mod:`mcd.scene.odometry`, kept in a file, looked up by frame.

The unit of a net's depth changes along a street; the height of a camera above its road does not. So the depth of every
frame is brought to one height before the motion is found, and so is what depth is compared with in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcd.config import Data
from mcd.data.files import resize_image, resize_nearest
from mcd.data.sequence import SequenceFolder
from mcd.files import DataError, atomic_path, reading
from mcd.geometry import pose_matrix
from mcd.run.progress import progress
from mcd.scene.odometry import direct_motion
from mcd.scene.plane import fit_road, pixel_rays, under_camera
from mcd.scene.poses import hide_own_vehicle

_TOGETHER = 256
"""Motions that are solved together; of long sequences, piece after piece."""
_BATCH = 8
_NOT_RIGID = 1e-2
"""By which R·Rᵀ of a rotation in float32 never differs from 1."""
_AROUND = 2
"""Frames before and after one, the median of whose heights counts: on kitti_0001, none and four are no better."""


class CameraTrack:
    """Motions between consecutive frames.

    Args:
        motions: [4,4] by the names of a frame and the next: the transform that takes points of the first to the second.
        units: by the name of a frame, what the depth of the net that training started from is multiplied by there, so
            that all frames have the unit of the motion.
        height: of the camera above the road in that unit; None: no road was seen.
    """

    def __init__(
        self,
        motions: dict[tuple[str, str], NDArray[np.float64]],
        units: dict[str, float],
        height: float | None = None,
    ):
        self.motions, self.units, self.height = motions, units, height
        self._previous = {after: before for before, after in motions}
        self._following = dict(motions.keys())

    def __call__(self, frame: str, spacing: int) -> NDArray[np.float32]:
        """T_src_ref [2,4,4] of a frame towards those before and after it at a distance.

        Raises:
            DataError: there is no motion of a frame between, because it could not be read.
        """
        backward = forward = np.eye(4)
        first = last = frame
        for _ in range(spacing):
            if first not in self._previous or last not in self._following:
                raise DataError(f"frame {frame}: the motion of the camera around it is not known")
            earlier, later = self._previous[first], self._following[last]
            backward = np.linalg.inv(self.motions[earlier, first]) @ backward
            forward = self.motions[last, later] @ forward
            first, last = earlier, later
        return np.stack((backward, forward)).astype(np.float32)

    def unit(self, frame: str) -> dict[str, Tensor]:
        """``unit`` of a frame, a label of :class:`mcd.data.FrameDataset`.

        Raises:
            DataError: it is not known.
        """
        if frame not in self.units:
            raise DataError(f"frame {frame}: the unit of its depth is not known; delete the stage's odometry files")
        return {"unit": torch.tensor(self.units[frame], dtype=torch.float32)}

    def save(self, path: Path) -> None:
        names = np.array(list(self.motions), dtype=str).reshape(-1, 2)
        values = np.array(list(self.motions.values()), dtype=np.float64).reshape(-1, 4, 4)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial, partial.open("wb") as file:
            units = np.array(list(self.units), dtype=str), np.array(list(self.units.values()), dtype=np.float64)
            height = np.array([] if self.height is None else [self.height])
            np.savez(file, frames=names, motions=values, unit_frames=units[0], units=units[1], height=height)

    @classmethod
    def load(cls, path: Path) -> CameraTrack:
        """Raises: DataError, if the file is broken."""
        try:
            with reading("motion of the camera", path), np.load(path) as file:
                names, values, height = file["frames"], file["motions"].astype(np.float64), file["height"].tolist()
                units = dict(zip(file["unit_frames"].tolist(), file["units"].tolist(), strict=True))
                if names.shape != (len(values), 2) or values.shape[1:] != (4, 4):
                    raise ValueError(f"{list(names.shape)} names and {list(values.shape)} motions")
                turns = np.abs(values[:, :3, :3] @ values[:, :3, :3].transpose(0, 2, 1) - np.eye(3))
                if not np.isfinite(values).all() or (turns > _NOT_RIGID).any():
                    raise ValueError("a motion is none of a camera")
                if not all(np.isfinite(scale) and scale > 0 for scale in [*units.values(), *height]):
                    raise ValueError("a unit or height is no positive number")
        except DataError as error:
            raise DataError(f"{error}; delete it to find it anew") from None
        motions = {(str(a), str(b)): motion for (a, b), motion in zip(names, values, strict=True)}
        return cls(motions, units, height[0] if height else None)


@torch.no_grad()
def find_track(
    reader: SequenceFolder,
    data: Data,
    K: Tensor,
    depth: Callable[[Tensor], Tensor],
    pose: nn.Module | None,
    start: Callable[[Tensor], Tensor] | None = None,
    height: float | None = None,
) -> CameraTrack:
    """The motion between all consecutive frames of a reader.

    Args:
        K: [3,3] at the networks' size, where they are.
        depth: of images [B,3,H,W] at the networks' size, [B,1,H,W].
        pose: net that says where the search begins; None: at rest.
        start: the depth whose units are wanted; None: ``depth``.
        height: of the camera above the road, which gives the unit, as of the first track of a run; None: its median
            in ``depth``.

    Raises:
        DataError: an image is missing or broken and is not to be skipped.
    """
    device = K.device
    own_mask = reader.own_mask
    own = None if own_mask is None else torch.from_numpy(resize_nearest(own_mask, data.size).copy()).to(device)
    motions: dict[tuple[str, str], NDArray[np.float64]] = {}
    units: dict[str, float] = {}
    with progress(len(reader.every_frame), "camera", "image") as bar:
        for names, pictures in _pieces(reader, data):
            images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().to(device) / 255
            depths = torch.cat([depth(batch).float() for batch in images.split(_BATCH)])
            factors, height = even_units(depths, K, height, own)
            depths = depths * torch.from_numpy(factors).to(depths)[:, None, None, None]
            if start is not None:
                known = torch.cat([start(batch).float() for batch in images.split(_BATCH)])
                factors, _ = even_units(known, K, height, own)
            begin = torch.eye(4, device=device).repeat(len(images) - 1, 1, 1)
            if pose is not None:
                seen = images if own is None else hide_own_vehicle(images, own)
                pairs = zip(seen[:-1].split(_BATCH), seen[1:].split(_BATCH), strict=True)
                begin = torch.cat([pose_matrix(*pose(*pair)) for pair in pairs])
            found = direct_motion(images, depths, K, begin, own).double().cpu().numpy()
            motions |= dict(zip(itertools.pairwise(names), found, strict=True))
            units |= dict(zip(names, factors.tolist(), strict=True))
            bar.update(len(names) - 1)
    return CameraTrack(motions, units, height)


def even_units(
    depth: Tensor, K: Tensor, height: float | None, own: Tensor | None = None
) -> tuple[NDArray[np.float64], float | None]:
    """Factors [N] that bring the depth [N,1,H,W] of consecutive frames to one height of the camera, and the height.

    Args:
        K: [3,3].
        height: to be brought to; None: the median of the frames.
        own: [H,W] bool, what shows the own vehicle; None: nothing.

    Returns:
        Factors of 1, and the height as it was given, where fewer than half of the frames show a road.
    """
    rays = pixel_rays((depth.shape[-2], depth.shape[-1]), K.double().cpu().numpy())
    under = under_camera(rays)
    if own is not None:
        under &= ~own.cpu().numpy()
    planes = [fit_road(values[under], rays[under]) for values in depth[:, 0].double().cpu().numpy()]
    heights = np.array([np.nan if plane is None else plane.height for plane in planes])
    seen = np.isfinite(heights)
    if 2 * seen.sum() < len(heights):
        return np.ones(len(heights)), height
    usual = float(np.median(heights[seen]))
    heights[~seen] = usual
    padded = np.pad(heights, _AROUND, mode="edge")
    steady = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1), axis=1)
    height = usual if height is None else height
    return height / steady, height


def _pieces(reader: SequenceFolder, data: Data) -> Iterator[tuple[list[str], list[Any]]]:
    """Consecutive frames, at least two, and their images; the last frame of a piece is the first of the next."""
    for run in reader.runs():
        names: list[str] = []
        pictures: list[Any] = []
        for name in run:
            try:
                picture = resize_image(reader.read_image(name), data.size)
            except DataError:
                if data.on_error == "stop":
                    raise
                if len(names) > 1:
                    yield names, pictures
                names, pictures = [], []
                continue
            names, pictures = [*names, name], [*pictures, picture]
            if len(names) > _TOGETHER:
                yield names, pictures
                names, pictures = names[-1:], pictures[-1:]
        if len(names) > 1:
            yield names, pictures
