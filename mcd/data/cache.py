"""Pictures of a data set at the networks' size, as bytes, in NumPy's files.

    manifest.json          what the pictures were made of and how
    names.txt              the name of every picture, sorted: its line is its place
    index.npy              [N, 12] float64: K row by row, native height and width, 1 + CRC-32 of these and the picture;
                           0: missing
    pictures-00000.npy …   [n, 3, H, W] uint8, 4096 pictures a file

Any program that reads .npy can map these files. Here single pictures are read by position instead: pages of a map count
as memory of every process that touches them, and a file that is cut off would end the process. A row of the index is
written after its picture, so that what a killed process leaves is missing, not wrong. Any number of processes may read
and write: two that write one picture write the same bytes.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.config import Data
from mcd.files import DataError, naming, read_json, reading, write_json, write_text

MANIFEST, NAMES, INDEX = "manifest.json", "names.txt", "index.npy"
PICTURES_A_FILE = 4096
_FORMAT = 1
_ROW = 12

# What decides which pixels and which camera a picture has; a name is enough for the rest. Some decide the camera alone,
# where there is no lens to be taken out.
_OPTIONS = (
    "kind", "root", "size", "images", "calibration", "intrinsics", "fov", "camera", "distortion", "crop"
)  # fmt: skip
_OF_CAMERA = frozenset(("calibration", "intrinsics", "fov"))


@dataclass(frozen=True)
class Pictures:
    """Pictures of one camera at the networks' size."""

    planes: NDArray[np.uint8]
    """[n, 3, H, W]."""
    K: NDArray[np.float64]
    """[3, 3] in pixels of the native size; of a sequence, the camera with which its cache was filled."""
    native: tuple[int, int]
    """Height and width of the files that they were made of."""


class PictureCache:
    """Pictures by name.

    Args:
        folder: as :func:`make_cache` has made it.
        config: the data set, whose options the manifest must have.

    Raises:
        DataError: the folder is no cache, one of other options, or damaged.
    """

    def __init__(self, folder: Path, config: Data):
        self.folder, self._config = folder, config
        manifest = _checked_manifest(folder, config)
        with reading("manifest", folder / MANIFEST):
            self.count = int(manifest["pictures"])
        self._size = config.size
        self._bytes = 3 * config.size[0] * config.size[1]
        self._index_start = _data_start(folder / INDEX, (self.count, _ROW), np.dtype(np.float64))
        shards = range(0, self.count, PICTURES_A_FILE)
        self._starts = [
            _data_start(
                _shard(folder, number), (min(PICTURES_A_FILE, self.count - first), 3, *self._size), np.dtype("u1")
            )
            for number, first in enumerate(shards)
        ]
        self._files: dict[int, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureCache, (self.folder, self._config)

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    @cached_property
    def names(self) -> list[str]:
        """Of all pictures, there or not, in the order of their places."""
        with reading("names", self.folder / NAMES):
            names = (self.folder / NAMES).read_text().splitlines()
        if len(names) != self.count:
            raise DataError(f"{self.folder / NAMES} has {len(names)} names; expected {self.count}")
        return names

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def read(self, names: Sequence[str]) -> Pictures | None:
        """Pictures in the order asked for, or None where one of them is missing.

        Raises:
            DataError: a file cannot be read.
        """
        places = [self._places.get(name) for name in names]
        if None in places:
            return None
        rows = self._rows([place for place in places if place is not None])
        if not rows[:, -1].all():
            return None
        planes = np.empty((len(names), 3, *self._size), np.uint8)
        with reading("picture cache", self.folder):
            position = 0
            for first, count in _runs([place for place in places if place is not None]):
                file, at = self._file_of(first)
                _read_fully(file, planes[position : position + count], at)
                position += count
        middle = rows[len(rows) // 2]
        K, native = middle[:9].reshape(3, 3).copy(), middle[9:11]
        if not ((K.diagonal() > 0).all() and (native >= 1).all()):
            raise DataError(
                f"index {self.folder / INDEX} has no camera of picture {names[len(rows) // 2]}: 'mcd prepare cache "
                "CONFIG --verify' makes it again"
            )
        return Pictures(planes, K, (int(native[0]), int(native[1])))

    def write(self, names: Sequence[str], pictures: Pictures) -> None:
        """Add pictures; names that the cache has no place for are left out.

        Raises:
            OSError: the disk is full, or the folder read-only.
        """
        with naming(self.folder):
            for name, planes in zip(names, pictures.planes, strict=True):
                place = self._places.get(name)
                if place is None:
                    continue
                data = np.ascontiguousarray(planes).tobytes()
                file, at = self._file_of(place, write=True)
                _write_fully(file, data, at)
                camera = np.array([*pictures.K.flatten(), *pictures.native], np.float64)
                row = np.array([*camera, _checksum(data, camera)])
                _write_fully(self._open(-1, write=True), row.tobytes(), self._index_start + place * row.nbytes)

    def present(self) -> NDArray[np.bool_]:
        """Which pictures are there, [N]."""
        return self._whole_index()[:, -1] > 0

    def damaged(self) -> list[str]:
        """Names of the pictures whose bytes or camera are not those that were written; each is marked as missing."""
        found, index = [], self._whole_index()
        for place in np.flatnonzero(index[:, -1]):
            planes = np.empty((3, *self._size), np.uint8)
            with reading("picture cache", self.folder):
                file, at = self._file_of(int(place))
                _read_fully(file, planes, at)
            if _checksum(planes.tobytes(), index[place, :-1]) != index[place, -1]:
                found.append(self.names[place])
                with naming(self.folder):
                    _write_fully(self._open(-1, write=True), bytes(8 * _ROW), self._index_start + int(place) * 8 * _ROW)
        return found

    def sync(self) -> None:
        """Wait until the disk has all that any process has written."""
        for number in range(-1, len(self._starts)):
            os.fsync(self._open(number, write=True))

    def _whole_index(self) -> NDArray[np.float64]:
        return self._read_index(0, self.count)

    def _read_index(self, first: int, count: int) -> NDArray[np.float64]:
        rows = np.empty((count, _ROW), np.float64)
        with reading("index", self.folder / INDEX):
            _read_fully(self._open(-1), rows, self._index_start + first * rows.itemsize * _ROW)
            if not np.isfinite(rows).all():
                raise ValueError("a number is not finite")
        return rows

    def _rows(self, places: list[int]) -> NDArray[np.float64]:
        return np.concatenate([self._read_index(first, count) for first, count in _runs(places)])

    def _file_of(self, place: int, write: bool = False) -> tuple[int, int]:
        """The open file that holds a picture, and where in it."""
        number, within = divmod(place, PICTURES_A_FILE)
        return self._open(number, write), self._starts[number] + within * self._bytes

    def _open(self, number: int, write: bool = False) -> int:
        # Of a fork these may be used as well: nothing here moves a file's position.
        key = 2 * number + write
        if key not in self._files:
            path = self.folder / INDEX if number < 0 else _shard(self.folder, number)
            self._files[key] = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        return self._files[key]


def open_cache(config: Data) -> PictureCache | None:
    """The cache that a config names, or None.

    Raises:
        DataError: there is none, or it is not of this data set.
    """
    return None if config.cache is None else PictureCache(config.cache, config)


def make_cache(folder: Path, config: Data, names: Sequence[str]) -> PictureCache:
    """The cache of a folder, made empty if there is none; what an earlier command has put there is kept.

    Args:
        names: of all pictures that it is to have.

    Raises:
        DataError: the folder holds something else, or a cache of other options or names.
        OSError: it cannot be written.
    """
    wanted = sorted(set(names))
    if not (folder / MANIFEST).is_file():
        with _held(folder):
            # Another process may have made it meanwhile, and filled it.
            if not (folder / MANIFEST).is_file():
                _make_empty(folder, config, wanted)
    cache = PictureCache(folder, config)
    if cache.names != wanted:
        lacking = sorted(set(wanted) - set(cache.names))
        what = (
            f"lacks {len(lacking)} pictures of this data set, first {lacking[0]}"
            if lacking
            else "has other pictures too"
        )
        raise DataError(f"picture cache {folder} was made for another list of frames: it {what}; delete it")
    return cache


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, which is made if it is not there, while no other process of this machine holds it so."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_empty(folder: Path, config: Data, names: list[str]) -> None:
    # Hidden files are what a killed process had half written.
    others = [path for path in folder.iterdir() if path.suffix != ".npy" and path.name != NAMES]
    if any(path.name[0] != "." for path in others):
        raise DataError(f"{folder} holds other files, and no {MANIFEST} of a picture cache: choose another folder")
    write_text(folder / NAMES, "".join(f"{name}\n" for name in names))
    _make_array(folder / INDEX, (len(names), _ROW), np.dtype(np.float64))
    for number, first in enumerate(range(0, len(names), PICTURES_A_FILE)):
        shape = (min(PICTURES_A_FILE, len(names) - first), 3, *config.size)
        _make_array(_shard(folder, number), shape, np.dtype(np.uint8))
    # The manifest comes last: where it is, all files are.
    write_json(folder / MANIFEST, {"format": _FORMAT, "pictures": len(names), "options": _options(config)})


def _options(config: Data) -> dict[str, Any]:
    # A sequence has one camera, which its reader knows, and which may be another than when the cache was made: learned.
    of_camera = _OF_CAMERA if config.kind == "sequence" and config.distortion is None else frozenset()
    document = config.model_dump(mode="json", include=set(_OPTIONS) - of_camera)
    return document | {"root": str(config.root.absolute())}


def _checked_manifest(folder: Path, config: Data) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"data.cache {folder} is no picture cache: 'mcd prepare cache CONFIG' makes it, or data.fill_cache"
        )
    document = read_json("manifest", folder / MANIFEST)
    if document.get("format") != _FORMAT or not isinstance(document.get("options"), dict):
        raise DataError(f"manifest {folder / MANIFEST} is of another format ({document.get('format')}, not {_FORMAT})")
    for name, wanted in _options(config).items():
        made = document["options"].get(name)
        if made != wanted:
            raise DataError(
                f"picture cache {folder} was made with data.{name} {made}, not {wanted}: choose another folder, or "
                "delete it"
            )
    return document


def _checksum(picture: bytes, camera: NDArray[np.float64]) -> float:
    return 1 + zlib.crc32(picture, zlib.crc32(camera.tobytes()))


def _shard(folder: Path, number: int) -> Path:
    return folder / f"pictures-{number:05d}.npy"


def _make_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A .npy file of zeros, which take no place on the disk before they are written."""
    with naming(path), path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)


def _data_start(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Where the numbers of a .npy file begin; DataError if it does not hold what it should."""
    with reading("picture cache", path), path.open("rb") as file:
        np.lib.format.read_magic(file)
        found = np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), path.stat().st_size
    if found != (shape, False, dtype):
        raise DataError(f"picture cache {path} holds {found[2]} of shape {list(found[0])}; expected {list(shape)}")
    if size != start + int(np.prod(shape)) * dtype.itemsize:
        raise DataError(f"picture cache {path} is cut off: {size} bytes")
    return start


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """First and length of the stretches of neighbouring places in one file, in the order given."""
    breaks = [0]
    for at, (before, here) in enumerate(itertools.pairwise(places), start=1):
        if here != before + 1 or here % PICTURES_A_FILE == 0:
            breaks.append(at)
    return [(places[first], last - first) for first, last in itertools.pairwise([*breaks, len(places)])]


def _read_fully(file: int, into: NDArray[Any], at: int) -> None:
    view = into.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], at + done)
        if count == 0:
            raise EOFError("a file is cut off")
        done += count


def _write_fully(file: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], at + done)
