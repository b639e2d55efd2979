"""KITTI raw with split lists, such as those of Eigen et al. (NeurIPS 2014). Below the root of the data set:

    {date}/calib_cam_to_cam.txt, {date}/calib_velo_to_cam.txt
    {date}/{drive}/image_02/data/{index}.png               left colour camera; image_03: the right one; or .jpg
    {date}/{drive}/velodyne_points/data/{index}.bin        x, y, z, reflectance of every point

and in ``data.split_files`` the lists {train,val,test}_files.txt, whose lines are "{date}/{drive} {index} {l or r}".
A frame is called as its image is: "2011_09_26/2011_09_26_drive_0022_sync/image_02/data/0000000473".
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcd.config import Data
from mcd.data.files import Picture, image_size, read_image, read_kitti_calibration, read_kitti_numbers, read_lines, text
from mcd.data.frames import Frames
from mcd.files import DataError, reading

_CAMERAS = {"l": "02", "r": "03"}


class KittiFolder:
    """A :class:`mcd.data.Reader` of a split list and the recordings it names.

    Args:
        split: "train", "val" or "test".

    Raises:
        DataError: the root or the list is missing, the list is empty or has a line of another form.
    """

    def __init__(self, config: Data, split: str):
        if not config.root.is_dir():
            raise DataError(f"data root {config.root} does not exist")
        self._root = config.root
        self.frames = _read_split(split_list(config, split))

    def spacings(self, frame: str) -> tuple[int, ...]:
        return (1,)

    def pictures(self, frame: str, spacing: int | None = None) -> tuple[str, ...]:
        folder, _, index = frame.rpartition("/")
        return tuple(f"{folder}/{int(index) + step:010d}" for step in (-1, 0, 1))

    def read(self, frame: str, spacing: int | None = None, *, sources: bool = True) -> Frames:
        names = self.pictures(frame)
        images = tuple(self.read_image(name) for name in (names if sources else names[1:2]))
        return Frames(images, self.read_intrinsics(frame))

    def read_image(self, frame: str) -> Picture:
        """One frame [H, W, 3].

        Raises:
            DataError: the file is missing, broken or of another size than its calibration says.
        """
        path = image_path(self._root, frame)
        image, (_, meant) = read_image(path), self._calibration(frame)
        if image.shape[:2] != meant:
            raise DataError(f"image {path} is {text(image.shape)}, but its calibration is for {text(meant)}")
        return image

    def read_intrinsics(self, frame: str) -> NDArray[np.float64]:
        """K [3, 3] of the camera that took a frame."""
        return self._calibration(frame)[0]

    def read_depth(self, frame: str) -> NDArray[np.float32]:
        """Depth [H, W] in metres along the camera's axis, of the LiDAR points that the frame sees; 0 elsewhere.

        Raises:
            DataError: the points or a calibration are missing or broken.
        """
        date, drive, _, _, index = frame.split("/")
        points = self._root / date / drive / "velodyne_points" / "data" / f"{index}.bin"
        with reading("LiDAR points", points):
            values = np.fromfile(points, "<f4")
            if values.size % 4:
                raise DataError(f"LiDAR points {points} hold {values.size} numbers; expected four a point")
        size = self._calibration(frame)[1]
        return project_points(values.reshape(-1, 4)[:, :3], _lidar_to_image(self._root / date, _camera(frame)), size)

    def _calibration(self, frame: str) -> tuple[NDArray[np.float64], tuple[int, int]]:
        return _calibration(self._root / frame.split("/", 1)[0], _camera(frame))


def split_list(config: Data, split: str) -> Path:
    """The file of a split."""
    return config.root / config.split_files / f"{split}_files.txt"


def improved_depth(folder: Path, frame: str) -> Path | None:
    """The depth of a frame in ``data_depth_annotated``, or in its folder ``train`` or ``val``; None where it has none.

    It has none of the first and last frames of a drive (Uhrig et al., "Sparsity Invariant CNNs", 3DV 2017).
    """
    _, drive, _, _, index = frame.split("/")
    inside = Path(drive, "proj_depth", "groundtruth", f"image_{_camera(frame)}", f"{index}.png")
    places = (folder / part / inside for part in ("train", "val", ""))
    return next((place for place in places if place.is_file()), None)


def image_path(root: Path, frame: str) -> Path:
    """The image of a frame; where it is neither PNG nor JPEG, the place of the PNG."""
    places = [root / f"{frame}{ending}" for ending in (".png", ".jpg")]
    return next((place for place in places if place.is_file()), places[0])


def frame_size(root: Path, frame: str) -> tuple[int, int]:
    """Height and width of a frame, from its header."""
    return image_size(image_path(root, frame))


def project_points(
    points: NDArray[np.float32], projection: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Depth map [H, W] of points [N, 3]: the nearest of a pixel counts, 0 where there is none.

    Args:
        projection: [3, 4], to homogeneous pixels. KITTI counts them from 1.
        size: (H, W).
    """
    q = points.astype(np.float64) @ projection[:, :3].T + projection[:, 3]
    q = q[q[:, 2] > 0]
    column, row = (np.rint(q[:, axis] / q[:, 2]).astype(np.int64) - 1 for axis in (0, 1))
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    depth = np.full(size, np.inf, np.float32)
    np.minimum.at(depth, (row[inside], column[inside]), q[inside, 2].astype(np.float32))
    return np.where(np.isinf(depth), np.float32(0), depth)


def _camera(frame: str) -> str:
    return frame.split("/")[2].removeprefix("image_")


@cache
def _calibration(folder: Path, camera: str) -> tuple[NDArray[np.float64], tuple[int, int]]:
    return read_kitti_calibration(folder / "calib_cam_to_cam.txt", camera)


@cache
def _lidar_to_image(folder: Path, camera: str) -> NDArray[np.float64]:
    """[3, 4] from LiDAR coordinates to homogeneous pixels of a rectified camera."""
    numbers = read_kitti_numbers(folder / "calib_cam_to_cam.txt", {f"P_rect_{camera}": (3, 4), "R_rect_00": (3, 3)})
    motion = read_kitti_numbers(folder / "calib_velo_to_cam.txt", {"R": (3, 3), "T": (3, 1)})
    T_camera_lidar = np.vstack((np.hstack((motion["R"], motion["T"])), [0, 0, 0, 1]))
    rectify = np.eye(4)
    rectify[:3, :3] = numbers["R_rect_00"]
    return numbers[f"P_rect_{camera}"] @ rectify @ T_camera_lidar


def _read_split(path: Path) -> list[str]:
    frames = set()
    for number, line in enumerate(read_lines("split list", path), start=1):
        words = line.split()
        if len(words) != 3 or words[0].count("/") != 1 or not words[1].isdecimal() or words[2] not in _CAMERAS:
            raise DataError(f"split list {path}, entry {number}: '{line}' is not 'date/drive index l-or-r'")
        frames.add(f"{words[0]}/image_{_CAMERAS[words[2]]}/data/{int(words[1]):010d}")
    if not frames:
        raise DataError(f"split list {path} is empty")
    return sorted(frames)
