"""``python -m mcd.data.prepare cityscapes SOURCE OUT``: make the triplet layout from what Cityscapes publishes.

    SOURCE/leftImg8bit_sequence/{split}/{city}/{city}_{sequence}_{number}_leftImg8bit.png     2048x1024, 17 a second
    SOURCE/camera/{split}/{city}/{city}_{sequence}_{number}_camera.json                       one for 30 frames

Every frame is halved (Lanczos) and loses its bottom quarter, which the ego car fills; three stand side by side in a
triplet. What is there already is kept, so a command that was stopped goes on when it is given again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # before imports of packages that may be missing, which `mcd` names
    from mcd.cli import main as command

    sys.exit(command(["prepare", *sys.argv[1:]]))

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mcd.data.files import Picture, read_camera, read_image, resize_image
from mcd.files import DataError, atomic_path, write_text
from mcd.geometry import scale_intrinsics

KEEP_ROWS = 0.75


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
        skip: leave triplets out of which a file is broken, instead of stopping.

    Returns:
        What was left out, a line each.

    Raises:
        DataError: a folder is missing or empty, a sequence has no camera file, or a file is broken.
    """
    problems: list[str] = []
    for split in splits:
        snippets = list(find_snippets(source, split))
        frames: list[str] = []
        # Ctrl-C is for the main process alone.
        with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
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
                        views[needed] = _road_view(snippet.images[needed])
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


def _road_view(path: Path) -> Picture:
    image = read_image(path)
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
    parser = argparse.ArgumentParser(prog="mcd prepare", description="Make a data set's triplet layout.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    cityscapes = kinds.add_parser("cityscapes", help="leftImg8bit_sequence and camera files to triplets")
    cityscapes.add_argument("source", type=Path, help="folder with leftImg8bit_sequence/ and camera/")
    cityscapes.add_argument("out", type=Path, help="root of the data set to write")
    cityscapes.add_argument("--splits", nargs="+", default=["train", "val"])
    cityscapes.add_argument("--gap", type=int, default=2, help="distance of the sources in frames (default: 2)")
    cityscapes.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    cityscapes.add_argument("--skip", action="store_true", help="leave broken files out and list them")
    options = parser.parse_args(arguments)
    if min(options.gap, options.workers) < 1:
        parser.error("--gap and --workers are at least 1")
    try:
        problems = prepare_cityscapes(
            options.source,
            options.out,
            splits=options.splits,
            gap=options.gap,
            workers=options.workers,
            skip=options.skip,
        )
    except (DataError, OSError) as error:
        print(f"mcd.data.prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0
