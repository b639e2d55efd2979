"""Image triplets in the published layout of Cityscapes. Below the root of the data set:

    splits/{split}.txt                  lines "city frame"
    triplets/{city}/{frame}.png         previous, reference and next frame side by side
    triplets/{city}/{frame}_cam.txt     K of one of the three

Frames are called "city/frame", and a frame's own name begins with its city: "ulm/ulm_000002_000025".
"""

from __future__ import annotations

from pathlib import Path

from mcd.config import Data
from mcd.data.files import Picture, image_size, read_image, read_intrinsics, read_lines
from mcd.data.frames import Frames
from mcd.files import DataError


class TripletFolder:
    """A :class:`mcd.data.Reader` of a split list and its triplet files.

    Raises:
        DataError: the root or the list is missing, the list is empty or has a line that is not "city frame".
    """

    def __init__(self, config: Data, split: str):
        if not config.root.is_dir():
            raise DataError(f"data root {config.root} does not exist")
        self._folder = config.root / "triplets"
        self.frames = _read_split(config.root / "splits" / f"{split}.txt")

    def spacings(self, frame: str) -> tuple[int, ...]:
        return (1,)

    def pictures(self, frame: str, spacing: int | None = None) -> tuple[str, ...]:
        return tuple(f"{frame}:{place}" for place in range(3))

    def read(self, frame: str, spacing: int | None = None, *, sources: bool = True) -> Frames:
        path = triplet_path(self._folder, frame)
        images = split_triplet(read_image(path), path)
        K = read_intrinsics(path.with_name(f"{path.stem}_cam.txt"))
        return Frames(images if sources else images[1:2], K)


def triplet_path(folder: Path, frame: str) -> Path:
    """Frame names may hold dots, so the ending is appended."""
    return folder / f"{frame}.png"


def triplet_frame_size(path: Path) -> tuple[int, int]:
    """Height and width of one frame of a triplet file, from its header."""
    height, width = image_size(path)
    return height, _third(width, path)


def split_triplet(image: Picture, path: Path) -> tuple[Picture, Picture, Picture]:
    """The three frames of a triplet; they are cut apart before anything is resized, so they cannot bleed."""
    width = _third(image.shape[1], path)
    return image[:, :width], image[:, width : 2 * width], image[:, 2 * width :]


def _third(width: int, path: Path) -> int:
    if width % 3:
        raise DataError(f"triplet {path} is {width} pixels wide; expected three frames of the same width")
    return width // 3


def _read_split(path: Path) -> list[str]:
    frames = set()
    for number, line in enumerate(read_lines("split list", path), start=1):
        words = line.split()
        if len(words) != 2:
            raise DataError(f"split list {path}, entry {number}: '{line}' is not 'city frame'")
        frames.add("/".join(words))
    if not frames:
        raise DataError(f"split list {path} is empty")
    return sorted(frames)
