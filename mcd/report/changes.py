"""Pictures of what the pseudo labels changed: the depth of the labels and of the final net beside the first net's."""

from __future__ import annotations

from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from mcd.config import Config
from mcd.data import open_reader
from mcd.data.files import read_depth_array
from mcd.evaluation.stages import stage_predictor
from mcd.files import frame_path
from mcd.inference.predictor import choose_device
from mcd.masks.instances import FrameInstances, read_rows
from mcd.report.clip import shown_image
from mcd.report.gallery import Gallery, Tiles, greatest
from mcd.visualize import colour_error, from_bytes, outline, resize_picture

_FRAMES = 4


def changes_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """Held-out frames with moving objects, and how far labels and final net lie from the scene's net.

    None for a run without a final net, or without objects that move.

    Raises:
        DataError, CheckpointError, ValueError, OSError: frames, objects or weights cannot be read.
    """
    folder, device = run_folder / "instances", choose_device(config.device)
    scene, final = (stage_predictor(config, run_folder, stage, device) for stage in ("scene", "final"))
    if scene is None or final is None or not (folder / "val.csv").is_file():
        return None
    pixels: dict[str, int] = {}
    for frame in dict.fromkeys(row.frame for row in read_rows(folder, "val") if row.dynamic and row.large):
        path = frame_path(run_folder / "pseudo", "val", frame, ".npy")
        if path.is_file():
            found = FrameInstances.load(frame_path(folder, "val", frame))
            pixels[frame] = int(found.masks[found.dynamic & found.large, 1].sum())
    if not pixels:
        return None
    reader = open_reader(config.data, "val")
    frames: list[tuple[str, Tiles]] = []
    for frame in greatest(sorted(pixels), _FRAMES, pixels.__getitem__):
        found = FrameInstances.load(frame_path(folder, "val", frame))
        moving = torch.from_numpy(found.masks[found.dynamic & found.large, 1].any(axis=0))
        picture = from_bytes(shown_image(reader, frame))
        image = resize_picture(picture, config.data.size)
        with torch.no_grad():
            first, last = (predict({"image": image[None], "frame": [frame]})[0, 0].cpu() for predict in (scene, final))
        label = torch.from_numpy(read_depth_array(frame_path(run_folder / "pseudo", "val", frame, ".npy")))
        tiles: Tiles = [("image", outline(image, moving))]
        for name, depth in (("labels", label), ("final net", last)):
            tiles.append(_compared(name, depth, first, moving))
        frames.append((frame, tiles))
    note = Markup(
        "Depth of the labels and of the final net over that of the first net: <span class=near>blue</span> is nearer "
        "than before, <span class=far>red</span> farther, full colour at a factor of 2. Outlined is what moves; the "
        "number is the median factor there, where that of all that stands still is 1."
    )
    return Gallery(note, frames)


def _compared(name: str, depth: Tensor, first: Tensor, moving: Tensor) -> tuple[str, Tensor]:
    """The ratio of two depths [H,W] as a picture, with its median where something moves as a caption."""
    ratio = depth / first
    ratio = ratio / ratio[~moving].median() if (~moving).any() else ratio
    return f"{name}: {float(ratio[moving].median()):.2f} times", colour_error(ratio, torch.ones_like(ratio))
