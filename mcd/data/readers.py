"""The kinds of data sets, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable

from mcd.config import Data
from mcd.data.frames import Reader
from mcd.data.kitti import KittiFolder
from mcd.data.sequence import SequenceFolder
from mcd.data.triplets import TripletFolder

READERS: dict[str, Callable[[Data, str], Reader]] = {
    "triplets": TripletFolder,
    "sequence": SequenceFolder,
    "kitti": KittiFolder,
}


def open_reader(config: Data, split: str) -> Reader:
    """The reader of a split ("train" or "val") for the kind of data set that the config names."""
    return READERS[config.kind](config, split)
