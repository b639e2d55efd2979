"""Consecutive frames of one camera: a folder of images, or a video, with intrinsics."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mcd.config import Data
from mcd.data.files import (
    Picture,
    check_intrinsics,
    image_size,
    pinhole,
    read_depth,
    read_image,
    read_kitti_calibration,
    read_mask,
    text,
)
from mcd.data.frames import Frames
from mcd.data.lens import Lens
from mcd.data.own_vehicle import LEAST, find_own_vehicle
from mcd.files import DataError

_IMAGES = frozenset((".png", ".jpg", ".jpeg"))


class SequenceFolder:
    """A :class:`mcd.data.Reader` of consecutive frames.

    Images are ordered by name, numbers in names by value. ``train_frames``, ``val_frames`` and ``eval_frames`` are
    first and last position in that order, from 0. Without the first two, the last tenth is for validation and the rest
    for training, if there are frames enough; otherwise a split without a range is the whole sequence. Sources lie in
    the range of their split too, so that frames outside the training range are never trained on.

    Where numbers in the names leave a gap, no frame is the neighbour of one beyond it, unless ``bridge_gaps`` is set.

    Args:
        split: "train", "val" or "eval".

    Raises:
        DataError: no frames, a range beyond them or too short for its neighbours, no or unusable intrinsics.
    """

    def __init__(self, config: Data, split: str):
        self._config = config
        self._paths = _list_images(sequence_folder(config))
        names = [path.stem for path in self._paths]
        self.names = names
        """All frames of the sequence, in order, whatever the split."""
        self._position = {name: position for position, name in enumerate(names)}
        self._first, self._last = self._range(split)
        self._runs = [(0, len(names) - 1)] if config.bridge_gaps else consecutive_runs(names)
        self._run_of = [run for run in self._runs for _ in range(run[0], run[1] + 1)]
        if len(self._runs) > 1 and split != "eval":
            self._say_gaps(names)
        self.native_size = image_size(self._paths[0])
        """Height and width of the files."""
        K = _intrinsics(config, self.native_size, self._paths[0].parent)
        self._lens = Lens(
            self.native_size, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]), config.camera, config.distortion, config.crop
        )
        self.size = self._lens.kept_size
        """Height and width of every frame, without its lens and cut to ``data.crop``."""
        if min(self.size) < 2:
            raise DataError(
                f"data.crop leaves {text(self.size)} pixels of the {text(self.native_size)} of {config.root}"
            )
        self.K: NDArray[np.float64] = self._lens.intrinsic_matrix
        self.every_frame = names[self._first : self._last + 1]
        """All frames of the range, those at its ends too."""
        self.frames = [name for name in self.every_frame if self.spacings(name)]
        if not self.frames and split != "eval":
            raise DataError(
                f"{split} frames {self._first} to {self._last} of {config.root}: none has neighbours at a distance of "
                f"{' or '.join(map(str, config.spacing))} among them"
            )

    def spacings(self, frame: str) -> tuple[int, ...]:
        position = self._position[frame]
        first, last = self._run_of[position]
        room = min(position - max(first, self._first), min(last, self._last) - position)
        return tuple(spacing for spacing in self._config.spacing if spacing <= room)

    def runs(self) -> list[list[str]]:
        """All frames of the range, in runs of neighbours."""
        limits = [(max(first, self._first), min(last, self._last)) for first, last in self._runs]
        return [self.names[first : last + 1] for first, last in limits if first <= last]

    def pictures(self, frame: str, spacing: int | None = None) -> tuple[str, ...]:
        spacing = self.spacings(frame)[0] if spacing is None else spacing
        position = self._position[frame]
        return tuple(self.names[position + step] for step in (-spacing, 0, spacing))

    def read(self, frame: str, spacing: int | None = None, *, sources: bool = True) -> Frames:
        names = self.pictures(frame, spacing) if sources else (frame,)
        return Frames(tuple(self.read_image(name) for name in names), self.K)

    def read_image(self, frame: str) -> Picture:
        """One frame [H, W, 3]."""
        return self._image(self._position[frame])

    def read_depth(self, frame: str) -> NDArray[np.float32]:
        """Measured depth [H, W] of a frame in metres, 0 where there is none.

        Raises:
            DataError: the config has no ``data.depth``, or the file is missing, broken or of another size.
        """
        if self._config.depth is None:
            raise DataError(f"{self._config.root} has no ground truth: data.depth names no folder")
        path = self._config.root / self._config.depth / f"{frame}.png"
        depth = read_depth(path)
        if depth.shape != self.native_size:
            raise DataError(f"depth {path} is {text(depth.shape)}, but its image is {text(self.native_size)}")
        return self._lens.nearest(depth)

    @property
    def own_mask(self) -> NDArray[np.bool_] | None:
        """What stays in the picture, such as the bonnet, [H, W] at :attr:`size`; None where nothing does.

        Raises:
            DataError: ``data.own_mask`` names a file that is missing, broken or of another size than the frames.
        """
        if self._config.own_mask is None:
            return None
        return _found_mask(self._config) if self._config.own_mask == "find" else self._given_mask()

    def _given_mask(self) -> NDArray[np.bool_]:
        path = self._config.root / str(self._config.own_mask)
        mask = read_mask(path)
        if mask.shape != self.native_size:
            raise DataError(f"own_mask {path} is {text(mask.shape)}, but the frames are {text(self.native_size)}")
        return self.as_seen(mask)

    def as_seen(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask of the files' size without their lens and cut to ``data.crop``, as the frames are."""
        return self._lens.nearest(mask).astype(bool)

    def _say_gaps(self, names: list[str]) -> None:
        (_, before), (after, _) = self._runs[:2]
        many, folder = len(self._runs) - 1, self._paths[0].parent
        warnings.warn(
            f"the numbers of the frames of {folder} leave {many} gap{'s' if many > 1 else ''}, the first "
            f"between {names[before]} and {names[after]}: no frame has a neighbour beyond a gap; data.bridge_gaps=true "
            "takes them for neighbours",
            stacklevel=3,
        )

    def _image(self, position: int) -> Picture:
        image = read_image(self._paths[position])
        if image.shape[:2] != self.native_size:
            raise DataError(
                f"image {self._paths[position]} is {text(image.shape)}, but {self._paths[0].name} is "
                f"{text(self.native_size)}: the frames of a sequence have one size"
            )
        return self._lens.picture(image)

    def _range(self, split: str) -> tuple[int, int]:
        end = len(self._paths) - 1
        chosen = {key: getattr(self._config, f"{key}_frames") for key in ("train", "val", "eval")}
        if split not in chosen:
            raise DataError(f"a sequence has no split '{split}'; it has train, val and eval")
        held_out = round(0.1 * (end + 1))
        # Otherwise none of them has neighbours.
        if chosen["train"] is None and chosen["val"] is None and held_out > 2 * min(self._config.spacing):
            chosen |= {"train": (0, end - held_out), "val": (end - held_out + 1, end)}
        first, last = chosen[split] or (0, end)
        if not 0 <= first <= last <= end:
            raise DataError(
                f"data.{split}_frames is {first} to {last}, but {self._paths[0].parent} has frames 0 to {end}"
            )
        return first, last


def sequence_folder(config: Data) -> Path:
    """The folder with the frames; those of a video are written beside it once, as ``NAME.frames``."""
    place = config.root / config.images
    if place.is_file():
        return _extract(place)
    if not place.is_dir():
        raise DataError(f"sequence {place} does not exist")
    return place


def sequence_frame_size(folder: Path, frame: str) -> tuple[int, int]:
    """Height and width of a frame of :func:`sequence_folder`, from its header.

    Raises:
        DataError: there is no such image, or it is broken.
    """
    return image_size(_paths_by_name(folder, folder.stat().st_mtime_ns).get(frame, folder / f"{frame}.png"))


@lru_cache(maxsize=8)
def _paths_by_name(folder: Path, changed: int) -> dict[str, Path]:
    return {path.stem: path for path in _list_images(folder)}


def _list_images(folder: Path) -> list[Path]:
    # Hidden files of an image's name are of other systems, or half written.
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGES and path.name[0] != "."]
    if not paths:
        raise DataError(f"sequence {folder} holds no .png, .jpg or .jpeg")
    paths.sort(
        key=lambda path: [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", path.stem) if t]
    )
    for path, following in itertools.pairwise(paths):
        if path.stem == following.stem:
            raise DataError(f"sequence {folder} holds frame {path.stem} twice: {path.name} and {following.name}")
    return paths


def consecutive_runs(names: Sequence[str]) -> list[tuple[int, int]]:
    """First and last positions of the runs of consecutive frames among sorted names.

    A gap is a step in a name's number of more than one and a half times the usual step. Where most names differ from
    the one before in one number alone, a name that does not (as of another drive) begins a new run too; other names
    say nothing of their order in time, and are one run.
    """
    steps = [_step(*pair) for pair in itertools.pairwise(names)]
    known = [step for step in steps if step is not None]
    if 2 * len(known) < len(steps) or not known:
        return [(0, len(names) - 1)]
    usual = median(known)
    starts = [0]
    starts += [place for place, step in enumerate(steps, start=1) if step is None or step > 1.5 * usual]
    return [(start, end - 1) for start, end in itertools.pairwise([*starts, len(names)])]


def _step(name: str, following: str) -> int | None:
    """How much larger the only number is in which two names differ; None if they differ in something else."""
    parts, others = (re.split(r"(\d+)", text) for text in (name, following))
    if len(parts) != len(others):
        return None
    different = [place for place, part in enumerate(parts) if part != others[place]]
    if len(different) != 1 or different[0] % 2 == 0:
        return None
    return int(others[different[0]]) - int(parts[different[0]])


def _intrinsics(config: Data, size: tuple[int, int], place: Path) -> NDArray[np.float64]:
    height, width = size
    if config.intrinsics is not None and config.intrinsics != "learn":
        return check_intrinsics(pinhole(*config.intrinsics), "data.intrinsics")
    if config.calibration is not None:
        path = config.root / config.calibration
        K, meant = read_kitti_calibration(path)
        if meant != size:
            raise DataError(f"calibration {path} is for {text(meant)} frames, but those of {place} are {text(size)}")
        return K
    if config.fov is not None:
        focal = width / 2 / math.tan(math.radians(config.fov) / 2)
        warnings.warn(
            f"intrinsics of {place} are guessed: a focal length of {focal:.1f} pixels, from a field of view of "
            f"{config.fov:g} degrees",
            stacklevel=2,
        )
        return pinhole(focal, focal, (width - 1) / 2, (height - 1) / 2)
    raise DataError(
        f"the intrinsics of {place} are not known: give data.intrinsics [fx, fy, cx, cy], data.calibration, or guess "
        f"with data.fov (horizontal field of view in degrees)"
    )


@lru_cache(maxsize=8)
def _found_mask(config: Data) -> NDArray[np.bool_] | None:
    """Of the whole clip, so that it is the same for every split; it is looked for once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever asks has said them already
        folder = SequenceFolder(config.model_copy(update={"own_mask": None}), "eval")
    mask = find_own_vehicle(len(folder.names), lambda number: folder.read_image(folder.names[number]))
    if mask is None:
        warnings.warn(
            f"no own vehicle is looked for in {config.root}: it wants {LEAST} frames between which the camera moves",
            stacklevel=2,
        )
    return mask if mask is not None and mask.any() else None


def _extract(video: Path) -> Path:
    """Frames of a video as JPEG files; training reads frames in random order, which a video cannot give.

    They lie beside it, or, where that folder cannot be written, in the user's cache, by the path of the video.
    """
    beside = video.with_name(f"{video.name}.frames")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcd"
    elsewhere = cache / f"{hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:12]}-{beside.name}"
    folder = beside if beside.is_dir() or os.access(video.parent, os.W_OK) else elsewhere
    if folder.is_dir():
        if folder.stat().st_mtime < video.stat().st_mtime:
            raise DataError(f"{folder} is older than {video.name}, whose frames it holds: delete it")
        return folder
    from mcd.data.video import VideoError, VideoReader

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{video.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"the frames of {video} cannot be written: {error}") from None
    try:
        reader = VideoReader(video)
        count = 0
        for count, picture in enumerate(tqdm(reader, total=reader.frames, desc=f"frames of {video.name}"), start=1):
            Image.fromarray(picture).save(partial / f"{count - 1:010d}.jpg", quality=95, subsampling=0)
        if reader.problem is not None:
            warnings.warn(f"video {video} breaks off after {count} frames: {reader.problem}", stacklevel=2)
        if count == 0:
            raise DataError(f"video {video} has no frames")
        if folder == elsewhere:
            warnings.warn(f"{video.parent} cannot be written: the frames of {video.name} are in {folder}", stacklevel=2)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster.
            if not folder.is_dir():
                raise
    except (VideoError, OSError) as error:
        raise DataError(f"video {video} cannot be used: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
