"""A torch data set whose items depend on nothing but (seed, draw, index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mcd.config import Augment, Data
from mcd.data.augment import draw_jitter, no_jitter
from mcd.data.cache import PictureCache, Pictures, open_cache
from mcd.data.files import resize_nearest, resize_planes
from mcd.data.frames import Reader
from mcd.files import DataError
from mcd.geometry import flip_intrinsics, flip_rigid, scale_intrinsics

# A data set whose resized frames fit into this stays decoded in every process that reads it.
CACHE_BYTES = 256 * 2**20

Key = int | tuple[int, int]
Item = dict[str, Any]


class WorkItem(Protocol):
    """What one item of a data set is about; a stage may add to it, such as which object of the frame."""

    @property
    def frame(self) -> str: ...


@dataclass(frozen=True)
class WholeFrame:
    """A frame as a whole."""

    frame: str


@dataclass(frozen=True)
class Map:
    """A label that has a value for every pixel of its frame: it is resized (nearest) and flipped as the frame is."""

    values: NDArray[Any]
    """[...,H,W] bool or floating, of any size."""


class FrameDataset(Dataset[Item]):
    """Frame triplets at the networks' size, with any labels that a stage adds.

    Items are asked for by ``(index, draw)``: the draw (the epoch, usually) picks the random numbers. The item is a pure
    function of the two and the seed, so a run that goes on in the middle of an epoch sees what it would have seen, with
    any number of workers.

    Args:
        augment: flips, jitter and random spacing of sequences; None for none of them.
        items: what to iterate over; default: every frame of the reader.
        images: "reference" leaves the neighbouring frames out, for what looks at the reference alone; "none" leaves
            all images out, and K.
        labels: of an item by name. A :class:`Map` becomes a tensor at the networks' size; other values pass as they
            are, but for bare arrays, which might be either and are refused.
        motion: T_src_ref [2,4,4] towards the two sources of a frame at a distance; it follows flips.

    Items are dicts: ``reference`` [3,H,W] and ``sources`` [2,3,H,W] uint8, ``K`` [3,3] float32, ``frame``, ``index``,
    with ``augment`` the ``jitter`` [8] that is yet to be done (:mod:`mcd.ops.colour_jitter`), where the reader has an
    ``own_mask`` ``own`` [1,H,W] bool, where ``data.intrinsics`` is ``learn`` ``flipped``, with ``motion`` ``T_src_ref``
    [2,4,4] float32, ``draw`` (a random number in [0, 1) for the stage), ``skipped`` (what could not be read), and the
    labels. :func:`mcd.data.to_device` jitters the batch and makes images float32 in [0, 1]; bytes travel four times
    lighter.
    """

    def __init__(
        self,
        reader: Reader,
        config: Data,
        augment: Augment | None = None,
        seed: int = 0,
        items: Sequence[WorkItem] | None = None,
        images: Literal["triplet", "reference", "none"] = "triplet",
        labels: Callable[[Any], Mapping[str, Any]] | None = None,
        motion: Callable[[str, int], NDArray[np.float32]] | None = None,
    ):
        self.items: Sequence[WorkItem] = [WholeFrame(frame) for frame in reader.frames] if items is None else items
        self._reader, self._config, self._augment, self._labels = reader, config, augment, labels
        self._motion = motion
        own = getattr(reader, "own_mask", None)
        self._own = None if own is None else torch.from_numpy(resize_nearest(own, config.size)[None].copy())
        self._images, self._seed = images, seed % 2**64
        self._pictures: PictureCache | None = open_cache(config)
        frames = {item.frame for item in self.items}
        spacings = len(config.spacing) if config.kind == "sequence" else 1
        planes = 9 if images == "triplet" else 3
        fits = len(frames) * spacings * planes * config.size[0] * config.size[1] <= CACHE_BYTES
        self._cache: dict[tuple[str, int], tuple[NDArray[np.uint8], NDArray[np.float64]]] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Item:
        """One item.

        Raises:
            DataError: a file is missing or broken; with ``data.on_error: skip`` the next item that can be read
                takes the place of this one, and it is an error only if there is none.
        """
        index, draw = key if isinstance(key, tuple) else (key, 0)
        skipped: list[str] = []
        for step in range(len(self)):
            try:
                return self._make((index + step) % len(self), draw) | {"skipped": skipped}
            except DataError as error:
                if self._config.on_error == "stop":
                    raise
                skipped.append(str(error))
        raise DataError(f"none of the {len(self)} items can be read; the first: {skipped[0]}")

    def _make(self, index: int, draw: int) -> Item:
        rng = np.random.default_rng((self._seed, draw, index))
        item, augment = self.items[index], self._augment
        # Every number is drawn whether or not it is used, so that options do not change each other's effect.
        number, flip, jittered, distance = rng.random(4)
        spacings = self._reader.spacings(item.frame)
        flipped = augment is not None and flip < augment.flip
        found = self._labels(item) if self._labels is not None else {}
        maps = {name for name, value in found.items() if isinstance(value, Map)}
        labels = {name: self._label(name, value, item) for name, value in found.items()}
        if flipped:
            labels = {name: value.flip(-1) if name in maps else value for name, value in labels.items()}
        made: Item = {"frame": item.frame, "index": torch.tensor(index)}
        made |= {"draw": torch.tensor(number, dtype=torch.float32), **labels}
        if self._images == "none":
            return made
        if self._own is not None:
            made["own"] = self._own.flip(-1) if flipped else self._own
        if self._config.intrinsics == "learn":
            made["flipped"] = torch.tensor(flipped)
        spacing = spacings[int(distance * len(spacings)) if augment else 0]
        if self._motion is not None:
            T = torch.from_numpy(self._motion(item.frame, spacing))
            made["T_src_ref"] = flip_rigid(T) if flipped else T
        images, K = self._load(item.frame, spacing)
        planes, camera = torch.from_numpy(images), torch.from_numpy(K)
        if flipped:
            planes, camera = planes.flip(-1), flip_intrinsics(camera, planes.shape[-1])
        if augment is not None:
            made["jitter"] = draw_jitter(augment, rng) if jittered < augment.jitter else no_jitter()
        if self._images == "triplet":
            made["sources"] = planes[::2]
        return made | {"reference": planes[len(planes) // 2], "K": camera.float()}

    def _load(self, frame: str, spacing: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Images [3,3,H,W] or [1,3,H,W] (frame, channel) and K at the networks' size."""
        if self._cache is not None and (frame, spacing) in self._cache:
            return self._cache[frame, spacing]
        triplet = self._images == "triplet"
        found = None
        if self._pictures is not None:
            names = self._reader.pictures(frame, spacing)
            found = self._pictures.read(names if triplet else names[1:2])
        if found is None:
            found = load_planes(self._reader, frame, spacing, self._config.size, sources=triplet)
            if self._pictures is not None and self._config.fill_cache:
                self._pictures.write(names if triplet else names[1:2], found)
        K = getattr(self._reader, "K", found.K)  # a sequence has one camera, whatever a cache was filled with
        loaded = found.planes, network_intrinsics(K, found.native, self._config)
        if self._cache is not None:
            self._cache[frame, spacing] = loaded
        return loaded

    def _label(self, name: str, value: Any, item: WorkItem) -> Any:
        if isinstance(value, np.ndarray):
            raise TypeError(f"label '{name}' is an array {list(value.shape)}: Map(array) if it has the frame's pixels")
        if not isinstance(value, Map):
            return value
        values = value.values
        if values.dtype != np.bool_ and not np.issubdtype(values.dtype, np.floating):
            raise TypeError(f"label '{name}' is {values.dtype}; expected bool or floating")
        if values.dtype != np.bool_ and not np.isfinite(values).all():
            raise DataError(f"label '{name}' of frame {item.frame} is not finite")
        values = resize_nearest(values, self._config.size)
        return torch.from_numpy(np.array(values, dtype=np.bool_ if values.dtype == np.bool_ else np.float32))


def load_planes(reader: Reader, frame: str, spacing: int | None, size: tuple[int, int], *, sources: bool) -> Pictures:
    """The pictures of a frame at the networks' size, from the files of the data set.

    Raises:
        DataError: a file is missing or broken, or the pictures differ in size.
    """
    frames = reader.read(frame, spacing, sources=sources)
    shapes = {image.shape[:2] for image in frames.images}
    if len(shapes) > 1:
        raise DataError(f"the three images of frame {frame} differ in size: {sorted(shapes)}")
    return Pictures(np.stack([resize_planes(image, size) for image in frames.images]), frames.K, shapes.pop())


def network_intrinsics(K: NDArray[np.float64], native: tuple[int, int], config: Data) -> NDArray[np.float64]:
    """K [3,3] of an image of ``native`` height and width, after it was resized to the networks' size."""
    (height, width), (h, w) = native, config.size
    return scale_intrinsics(torch.from_numpy(K), w / width, h / height, half_pixel=config.half_pixel).numpy()
