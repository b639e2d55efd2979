"""``mcd prepare``: what is made of a data set before it is trained on; ``cache`` is in :mod:`mcd.data.prepare_cache`.

``python -m mcd.data.prepare cityscapes SOURCE OUT``: make the triplet layout from what Cityscapes publishes.

    SOURCE/leftImg8bit_sequence/{split}/{city}/{city}_{sequence}_{number}_leftImg8bit.png     2048x1024, 17 a second
    SOURCE/camera/{split}/{city}/{city}_{sequence}_{number}_camera.json                       one for 30 frames

Every frame is halved (Lanczos) and loses its bottom quarter, which the ego car fills; three stand side by side in a
triplet. What is there already is kept, so a command that was stopped goes on when it is given again; OUT/prepared.json
says how it was made, and a command that would make it otherwise is refused.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mcd import cli

    sys.exit(cli.main(["prepare", *sys.argv[1:]]))

import argparse
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mcd.data import prepare_cache
from mcd.data.files import Picture, image_size, read_camera, read_image, resize_image, text
from mcd.data.processes import MOST_PER_CORE, process_count
from mcd.errors import McdError
from mcd.files import DataError, atomic_path, read_json, write_json, write_text
from mcd.geometry import scale_intrinsics

KEEP_ROWS = 0.75
MANIFEST = "prepared.json"


@dataclass(frozen=True)
class Snippet:
    """Consecutive frames of one drive."""

    prefix: str
    """City and sequence: ``ulm_000002``."""
    images: dict[int, Path]
    """Files by frame number."""
    cameras: dict[int, Path]
    """Camera files of the sequence by frame number; they are given for few frames."""

    def camera(self, number: int) -> Path:
        """The camera file nearest in time."""
        return self.cameras[min(self.cameras, key=lambda given: abs(given - number))]


@dataclass(frozen=True)
class Outcome:
    """What became of one snippet."""

    frames: list[str]
    problems: list[str]


def prepare_cityscapes(
    source: Path,
    out: Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    gap: int = 2,
    workers: int = 1,
    skip: bool = False,
) -> list[str]:
    """Write triplets, intrinsics and split lists to ``out``.

    Args:
        gap: distance of the sources from their reference, in frames.
        workers: processes, at most one a sequence and :data:`MOST_PER_CORE` a core.
        skip: leave out triplets with a broken file, instead of stopping.

    Returns:
        What was left out, a line each.

    Raises:
        DataError: a folder is missing or empty, a sequence has no camera file, a file is broken or of another size than
            the others of its sequence, or ``out`` was made in another way.
    """
    problems: list[str] = []
    for split in splits:
        snippets = list(find_snippets(source, split))
        _remember_options(out, split, source, gap)
        frames: list[str] = []
        # Ctrl-C is for the main process alone.
        count = process_count(workers, len(snippets))
        with ProcessPoolExecutor(count, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
            futures = [pool.submit(write_snippet, snippet, out / "triplets", gap, skip) for snippet in snippets]
            try:
                for future in tqdm(as_completed(futures), total=len(futures), desc=f"cityscapes {split}"):
                    frames += future.result().frames
                    problems += future.result().problems
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if not frames:
            raise DataError(f"split '{split}' of {source} has no frame with neighbours at a distance of {gap}")
        lines = (f"{frame.split('_')[0]} {frame}" for frame in sorted(frames))
        write_text(out / "splits" / f"{split}.txt", "\n".join(lines) + "\n")
    return problems


def _remember_options(out: Path, split: str, source: Path, gap: int) -> None:
    """Write down how a split is made; refuse where it, or another one of the data set, was made otherwise."""
    path = out / MANIFEST
    options: dict[str, Any] = {"kind": "cityscapes", "gap": gap, "keep_rows": KEEP_ROWS}
    origin = str(source.absolute())
    before = _read_manifest(path) if path.is_file() else {**options, "sources": {}}
    if not path.is_file() and next(out.glob("triplets/*/*.png"), None) is not None:
        raise DataError(f"{out} holds triplets, but no {MANIFEST} that says how they were made: choose another folder")
    for name, wanted in options.items():
        if before.get(name) != wanted:
            raise DataError(
                f"{out} was made with {name} {before.get(name)} ({MANIFEST}), not {wanted}: choose another folder, or "
                "delete it"
            )
    if before["sources"].get(split, origin) != origin:
        raise DataError(
            f"split '{split}' of {out} was made from {before['sources'][split]} ({MANIFEST}), not {origin}: choose "
            "another folder, or, if the source was only moved, correct that line"
        )
    write_json(path, before | {"sources": before["sources"] | {split: origin}})


def _read_manifest(path: Path) -> dict[str, Any]:
    document = read_json("manifest", path)
    if not isinstance(document.get("sources"), dict):
        raise DataError(f"manifest {path} has no mapping 'sources'")
    return document


def find_snippets(source: Path, split: str) -> Iterator[Snippet]:
    """Runs of consecutive frames of a split, in order."""
    images = _by_sequence(source / "leftImg8bit_sequence" / split, "_leftImg8bit.png")
    cameras = _by_sequence(source / "camera" / split, "_camera.json")
    for prefix, files in sorted(images.items()):
        if prefix not in cameras:
            raise DataError(f"sequence {prefix} of {source} has no camera file in camera/{split}")
        numbers = np.array(sorted(files))
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            yield Snippet(prefix, {int(number): files[int(number)] for number in run}, cameras[prefix])


def write_snippet(snippet: Snippet, folder: Path, gap: int, skip: bool) -> Outcome:
    """Write the triplets of a snippet that are not there yet; every good image is read once at most."""
    outcome, views = Outcome([], []), dict[int, Picture]()
    size = _usual_size(snippet)
    for number in snippet.images:
        around = (number - gap, number, number + gap)
        if not snippet.images.keys() >= set(around):
            continue
        frame = f"{snippet.prefix}_{number:06d}"
        path = folder / frame.split("_")[0] / f"{frame}.png"
        if not path.is_file():
            try:
                for needed in around:
                    if needed not in views:
                        views[needed] = _road_view(snippet.images[needed], size)
                K = scale_intrinsics(torch.from_numpy(read_camera(snippet.camera(number))), 0.5, 0.5)
            except DataError as error:
                if not skip:
                    raise
                outcome.problems.append(str(error))
                continue
            # The image comes last: where it is, the triplet is complete.
            write_text(path.with_name(f"{frame}_cam.txt"), ",".join(f"{x:.10g}" for x in K.flatten().tolist()))
            with atomic_path(path) as temporary:
                Image.fromarray(np.concatenate([views[needed] for needed in around], axis=1)).save(temporary)
            del views[number - gap]
        outcome.frames.append(frame)
    return Outcome(outcome.frames, list(dict.fromkeys(outcome.problems)))


def _usual_size(snippet: Snippet) -> tuple[int, int] | None:
    """The size that most images of a snippet have; None if none of them can be opened."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in snippet.images.values():
        # Whoever needs a broken one will say so.
        with suppress(DataError):
            sizes[image_size(path)] += 1
    return sizes.most_common(1)[0][0] if sizes else None


def _road_view(path: Path, size: tuple[int, int] | None) -> Picture:
    image = read_image(path)
    if image.shape[:2] != size:
        raise DataError(
            f"image {path} is {text(image.shape)}, but most of its sequence are {text(size or image.shape)}: the "
            "frames of a sequence have one size"
        )
    if min(image.shape[:2]) < 2:
        raise DataError(f"image {path} is {text(image.shape)}, too small to be halved")
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return resize_image(image, (height, width))[: round(KEEP_ROWS * height)]


def _by_sequence(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Files {city}_{sequence}_{number}{ending} below a folder of cities, by "city_sequence" and number."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in folder.glob(f"*/*{ending}"):
        prefix, _, number = path.name.removesuffix(ending).rpartition("_")
        if number.isdecimal():
            found[prefix][int(number)] = path
    if not found:
        raise DataError(f"{folder} holds no CITY/*{ending}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mcd prepare", description="Make of a data set what is read faster.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    cityscapes = kinds.add_parser("cityscapes", help="leftImg8bit_sequence and camera files to triplets")
    cityscapes.add_argument("source", type=Path, help="folder with leftImg8bit_sequence/ and camera/")
    cityscapes.add_argument("out", type=Path, help="root of the data set to write")
    cityscapes.add_argument("--splits", nargs="+", default=["train", "val"])
    cityscapes.add_argument("--gap", type=int, default=2, help="distance of the sources in frames (default: 2)")
    cityscapes.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help=f"processes (default: as many as cores), at most one a sequence and {MOST_PER_CORE} a core",
    )
    cityscapes.add_argument("--skip", action="store_true", help="leave broken files out and list them")
    prepare_cache.add_arguments(
        kinds.add_parser("cache", help="pictures at the size that the networks see, to data.cache of a config")
    )
    options = parser.parse_args(arguments)
    if min(getattr(options, "gap", 1), options.workers) < 1:
        parser.error(
            "--gap and --workers are at least 1" if options.kind == "cityscapes" else "--workers is at least 1"
        )
    try:
        if options.kind == "cache":
            problems = prepare_cache.run(options)
        else:
            problems = prepare_cityscapes(
                options.source,
                options.out,
                splits=options.splits,
                gap=options.gap,
                workers=options.workers,
                skip=options.skip,
            )
    except (McdError, OSError) as error:
        print(f"mcd.data.prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0
