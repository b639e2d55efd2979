"""What a command line names as its inputs: images, folders, globs, videos; where the results of each go."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mcd.errors import McdError

RGB = NDArray[np.uint8]
"""An image [H, W, 3]."""

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif", ".ts"))


class InputError(McdError, ValueError):
    """An input that cannot be read, or an output that must not be written."""


@dataclass(frozen=True)
class Job:
    """One input file and the path, without an ending, of its outputs."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEOS

    def outputs(self, formats: Iterable[str]) -> list[Path]:
        """What will be written; for a video's npy and 16-bit frames the folder that holds them."""
        endings = {"png": "_depth.png", "npy": "_depth.npy", "16bit": "_depth16.png"}
        if self.is_video:
            endings = {"png": "_depth.mp4", "npy": "", "16bit": ""}
        endings |= {"ply": "_points.ply", "rerun": ".rrd"}
        return list(dict.fromkeys(named(self.target, endings[name]) for name in formats))


def is_stream(name: str) -> bool:
    """Whether an input is a pipe (``-``), a camera or an address rather than files."""
    return name == "-" or re.match(r"(/dev/video\d+$|[a-z]{3,5}://)", name) is not None


def find_inputs(names: Sequence[str]) -> list[Path]:
    """Files that the names mean: files, folders (their images and videos, sorted), or globs.

    Raises:
        InputError: a name matches nothing, or a file is neither image nor video.
    """
    known = IMAGES | VIDEOS
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_file():
            if path.suffix.lower() not in known:
                raise InputError(f"input {path} is neither an image nor a video (known: {' '.join(sorted(known))})")
            found.append(path)
            continue
        if not path.exists() and not glob.has_magic(name):
            raise InputError(f"input {path} does not exist")
        # Path.glob takes no absolute pattern.
        inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(name, recursive=True))  # noqa: PTH207
        files = sorted(file for file in inside if file.is_file() and file.suffix.lower() in known)
        # Results of an earlier call in the same folder are no inputs, nor hidden files of another system.
        files = [file for file in files if not file.stem.endswith(("_depth", "_depth16")) and file.name[0] != "."]
        if not files:
            raise InputError(f"{name} holds no image and no video")
        found += files
    return list(dict.fromkeys(found))


def plan(sources: Sequence[Path], out: Path, formats: Sequence[str], force: bool) -> list[Job]:
    """One job per file, all in one folder; files of one name keep the folders that they do not share.

    Raises:
        InputError: two inputs would be written to one file, or outputs exist and ``force`` is off.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"output {out} is a file; -o names a folder")
    if not sources:
        return []
    names = [Path(source.stem) for source in sources]
    if len(set(names)) < len(names):
        absolute = [source.absolute().with_suffix("") for source in sources]
        top = os.path.commonpath([path.parent for path in absolute])
        names = [path.relative_to(top) for path in absolute]
    jobs = [Job(source, out / name) for source, name in zip(sources, names, strict=True)]
    writers: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs(formats):
            if output in writers:
                raise InputError(f"{writers[output]} and {job.source} would both be written to {output}")
            writers[output] = job.source
    existing = [output for output in writers if output.exists()]
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]}{more} exists already; --force overwrites")
    return jobs


def read_image(path: Path) -> RGB:
    """An image as RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises:
        InputError: the file is no image, truncated, or holds floating-point or 32-bit pixels.
    """
    try:
        with Image.open(path) as file:
            return rgb(file)
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from None


def rgb(image: Image.Image) -> RGB:
    """A PIL image as RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises:
        ValueError: it holds floating-point or 32-bit pixels.
        OSError: it is of a file that cannot be decoded.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of kind '{image.mode}', expected 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        # PIL would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def named(target: Path, ending: str) -> Path:
    """The file of a target with this ending."""
    return target.with_name(target.name + ending)
