"""``mcd prepare cache CONFIG``: the pictures of a data set at the networks' size, for ``data.cache``.

The same command goes on where it was stopped; what is there already is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from mcd.config import Data, load_config
from mcd.data.cache import PictureCache, make_cache, open_cache
from mcd.data.dataset import load_planes
from mcd.data.frames import Reader
from mcd.data.loader import build_loader
from mcd.data.processes import MOST_PER_CORE
from mcd.data.readers import open_reader
from mcd.files import DataError

SPLITS = ("train", "val")
_LOOKS, _OTHER = 4, 4.0
"""Pictures of a split that are compared with their files, and by how many levels of 255 two are different ones, on
average: another decoder's are not."""


def empty_cache(config: Data) -> PictureCache:
    """The cache that a config names, with places for all pictures of its splits; made if it is not there.

    Raises:
        DataError: the config names none, or one that is of something else.
    """
    if config.cache is None:
        raise DataError("the config names no folder: give data.cache")
    readers = [open_reader(config, split) for split in SPLITS]
    names = {
        name for reader in readers for frame, spacing in _reads(reader) for name in reader.pictures(frame, spacing)
    }
    return make_cache(config.cache, config, list(names))


def ready_cache(config: Data) -> None:
    """Before a run: the cache that it reads has to be there and to show what the files do; one that it fills is made.

    Raises:
        DataError: it is not there, or of something else.
    """
    if config.cache is not None:
        if not config.fill_cache:
            open_cache(config)
        _compare_some(empty_cache(config), config)


def _compare_some(cache: PictureCache, config: Data) -> None:
    """Look whether the files of a few pictures still show what the cache has; those that cannot be read are let be."""
    for split in SPLITS:
        reader = open_reader(config, split)
        for frame in reader.frames[:: max(len(reader.frames) // _LOOKS, 1)]:
            name = reader.pictures(frame, reader.spacings(frame)[0])[1]
            kept = cache.read([name])
            if kept is None:
                continue
            try:
                now = load_planes(reader, frame, None, config.size, sources=False)
            except DataError:
                continue
            if np.abs(now.planes.astype(np.int16) - kept.planes).mean() > _OTHER:
                raise DataError(
                    f"picture cache {cache.folder} is of other files: its picture {name} is not the one in "
                    f"{config.root} any more; delete the cache"
                )


def fill_cache(config: Data, *, workers: int = 1, skip: bool = False, verify: bool = False) -> list[str]:
    """Make the cache of a config, and add all pictures that are missing.

    Args:
        workers: processes, at most :data:`MOST_PER_CORE` a core.
        skip: leave out what cannot be read, instead of stopping.
        verify: first look at every picture that is there, and make those again whose bytes have changed.

    Returns:
        What was left out, a line each.

    Raises:
        DataError: a file is missing or broken, or the cache is of something else.
        OSError: the disk is full.
    """
    cache = empty_cache(config)
    if verify:
        for name in cache.damaged():
            print(f"made again: {name}", file=sys.stderr)
    problems: list[str] = []
    for split in SPLITS:
        reader = open_reader(config, split)
        missing = _Missing(reader, config, cache, skip)
        batches = [[number] for number in range(len(missing))]
        loader = build_loader(missing, batches, workers)
        try:
            for batch in tqdm(loader, desc=f"pictures {split}", unit="frame"):
                problems += batch["skipped"]
        except DataError as error:
            raise DataError(str(error).rsplit(f"{DataError.__name__}: ", 1)[-1].strip()) from None
    cache.sync()
    return list(dict.fromkeys(problems))


class _Missing(Dataset[dict[str, list[str]]]):
    """The reads that bring all missing pictures, each of them as seldom as can be; an item adds them to the cache."""

    def __init__(self, reader: Reader, config: Data, cache: PictureCache, skip: bool):
        self._reader, self._config, self._cache, self._skip = reader, config, cache, skip
        there = {name for name, found in zip(cache.names, cache.present().tolist(), strict=True) if found}
        self._left: list[tuple[str, int]] = []
        # First the reads of which nothing is there, then, from the end, those that bring what is left between them.
        reads = list(_reads(reader))
        for whole in (True, False):
            for frame, spacing in reads if whole else reversed(reads):
                names = reader.pictures(frame, spacing)
                if not there.intersection(names) if whole else not there.issuperset(names):
                    there.update(names)
                    self._left.append((frame, spacing))

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, number: int) -> dict[str, list[str]]:
        frame, spacing = self._left[number]
        try:
            pictures = load_planes(self._reader, frame, spacing, self._config.size, sources=True)
        except DataError as error:
            if not self._skip:
                raise
            return {"skipped": [str(error)]}
        self._cache.write(self._reader.pictures(frame, spacing), pictures)
        return {"skipped": []}


def _reads(reader: Reader) -> Iterator[tuple[str, int]]:
    return ((frame, spacing) for frame in reader.frames for spacing in reader.spacings(frame))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=str, help="YAML file, or the name of a config that comes with the program")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as data.cache=FOLDER")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help=f"processes (default: as many as cores), at most {MOST_PER_CORE} a core",
    )
    parser.add_argument("--skip", action="store_true", help="leave broken files out and list them")
    parser.add_argument(
        "--verify", action="store_true", help="look at every picture, make those again that have changed"
    )


def run(options: argparse.Namespace) -> list[str]:
    """Do what the command says; returns what was left out, a line each."""
    config = load_config(options.config, options.set)
    problems = fill_cache(config.data, workers=options.workers, skip=options.skip, verify=options.verify)
    cache = PictureCache(Path(config.data.cache or ""), config.data)
    found = int(np.count_nonzero(cache.present()))
    print(f"{found} of {cache.count} pictures of {config.data.size[0]}x{config.data.size[1]} are in {cache.folder}")
    return problems
