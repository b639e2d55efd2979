"""Pictures of what a run without given masks found in held-out frames: round by round, and what of it moves."""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mcd.config import Config
from mcd.data import open_reader
from mcd.data.files import resize_image
from mcd.evaluation.discovery import detector_parts
from mcd.files import atomic_path, frame_path
from mcd.masks.detections import FrameDetections, read_counts
from mcd.masks.instances import FrameInstances
from mcd.report.pictures import tile
from mcd.visualize import from_bytes, outline, panel, resize_picture, to_bytes

FRAMES = 4
ROUNDS = 3
SHOWN_WIDTH = 480
DYNAMIC, STATIC = (1.0, 0.2, 0.15), (0.25, 0.5, 1.0)

Tiles = list[tuple[str, Tensor]]


def detection_pictures(config: Config, run_folder: Path) -> str:
    """Pictures of a few held-out frames as HTML; "" where the run has not looked for objects.

    Raises:
        DataError, OSError: frames or detections cannot be read.
    """
    frames = choose_frames(config, run_folder)
    blocks = "".join(
        f"<h3>{escape(frame)}</h3><div class='tiles rows1'>"
        f"{''.join(tile(picture, caption) for caption, picture in detection_tiles(config, run_folder, frame))}</div>"
        for frame in frames
    )
    text = (
        "Of each part of the held-out frames, the one with the most objects. Outlined is what was found; at the end, "
        "<span class=far>red</span> is what counts as moving, <span class=near>blue</span> what does not."
    )
    return f"<p class=muted>{text}</p>{blocks}" if blocks else ""


def write_detection_panel(config: Config, run_folder: Path, path: Path) -> None:
    """The same pictures as one PNG.

    Raises:
        ValueError: the run has not looked for objects; DataError, OSError: as above.
    """
    rows = [detection_tiles(config, run_folder, frame) for frame in choose_frames(config, run_folder)]
    if not rows:
        raise ValueError(f"{run_folder} has discovered nothing: it has no finished round of a detector")
    sheet = panel([[picture for _, picture in row] for row in rows], [caption for caption, _ in rows[0]])
    with atomic_path(path) as temporary:
        Image.fromarray(to_bytes(sheet)).save(temporary, "PNG")


def choose_frames(config: Config, run_folder: Path) -> list[str]:
    """Of each of a few equal parts of the held-out frames, the one in which the last part of the stage found most."""
    shown = _parts(run_folder)
    if not shown:
        return []
    counts = read_counts(run_folder / list(shown.values())[-1] / "val.csv")
    frames = [frame for frame in open_reader(config.data, "val").frames if frame in counts]
    parts = min(FRAMES, len(frames))
    bounds = [part * len(frames) // parts for part in range(parts + 1)] if parts else []
    return [max(frames[a:b], key=lambda frame: counts[frame]) for a, b in itertools.pairwise(bounds)]


def detection_tiles(config: Config, run_folder: Path, frame: str) -> Tiles:
    """A frame, what the slots and some rounds found in it, and what of that is dynamic; with captions."""
    image = from_bytes(resize_image(open_reader(config.data, "val").read(frame).images[1], config.data.size))
    tiles: Tiles = [("image", _enlarged(image))]
    for name, part in _parts(run_folder).items():
        path = frame_path(run_folder / part, "val", frame)
        if path.is_file():
            found = FrameDetections.load(path)
            tiles.append((f"{name}: {len(found.scores)}", _outlined(image, found.masks)))
    path = frame_path(run_folder / "instances", "val", frame)
    if path.is_file():
        instances = FrameInstances.load(path)
        dynamic = torch.from_numpy(instances.dynamic)
        tiles.append((f"dynamic: {int(dynamic.sum())} of {len(dynamic)}",
                      _outlined(image, torch.from_numpy(instances.masks[:, 1]), dynamic)))  # fmt: skip
    return tiles


def _parts(run_folder: Path) -> dict[str, str]:
    """Parts of the detector stage that are shown: the slots, and at most a few rounds with the last one."""
    parts = detector_parts(run_folder)
    rounds = [name for name in parts if name != "slots"]
    shown = {rounds[max((index + 1) * len(rounds) // ROUNDS - 1, 0)] for index in range(ROUNDS)} if rounds else set()
    return {name: part for name, part in parts.items() if name in shown or name == "slots"}


def _outlined(image: Tensor, masks: Tensor, dynamic: Tensor | None = None) -> Tensor:
    picture = _enlarged(image)
    size = picture.shape[1:]
    rows = torch.arange(size[0]) * masks.shape[1] // size[0]
    columns = torch.arange(size[1]) * masks.shape[2] // size[1]
    for index, mask in enumerate(masks):
        large = mask[rows[:, None], columns]
        if dynamic is None:
            picture = outline(picture, large)
        else:
            picture = outline(picture, large, DYNAMIC if dynamic[index] else STATIC)
    return picture


def _enlarged(image: Tensor) -> Tensor:
    width = max(image.shape[2], SHOWN_WIDTH)
    return resize_picture(image, (round(image.shape[1] * width / image.shape[2]), width))
