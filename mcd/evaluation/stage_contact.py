"""Contact and upright of every stage of a run: of the boxes that ``evaluation.boxes`` names, and of the run's masks.

Boxes may be of any frame of a sequence, masks are those of held-out frames with what the stage ``instances`` says of
them: moving, or static.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import Tensor

from mcd.config import Config
from mcd.data import SequenceFolder, open_reader
from mcd.data.files import Picture, resize_image
from mcd.evaluation.contact import Thing, contact_figures, in_order, read_boxes
from mcd.files import DataError, frame_path
from mcd.inference.predictor import resize_depth
from mcd.masks.instances import FrameInstances
from mcd.visualize import from_bytes

Contact = dict[str, dict[str, float]]
"""Quartiles by group: see :func:`mcd.evaluation.contact.contact_figures`."""

SOURCES = ("boxes", "masks")

# Quartiles of a few hundred objects do not change with more frames.
_FRAMES = 60


def stage_contact(
    config: Config,
    run_folder: Path | None,
    predict: Callable[[dict[str, Any]], Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, Contact]:
    """Figures of a depth predictor by source, ``boxes`` and ``masks``; without objects of a source it is left out.

    Args:
        run_folder: of the run whose masks are used; None for none.
        predict: a batch (``image`` [B,3,H,W] at ``data.size``, ``frame``) to depths [B,1,h,w].

    Raises:
        DataError: the boxes or the frames cannot be read.
    """
    found: dict[str, Contact] = {}
    if config.evaluation.boxes is not None:
        folder = _sequence(config)
        things = read_boxes(config.evaluation.boxes, folder.names)
        frames = in_order(things, folder.names)
        depths = _depths(config, predict, frames, folder.read_image, device, native=True)
        found["boxes"] = contact_figures(depths, things)
    masked = _masked_things(config, run_folder) if run_folder is not None else {}
    if masked:
        reader = open_reader(config.data, "val")

        def read(frame: str) -> Picture:
            return reader.read(frame, sources=False).images[0]

        found["masks"] = contact_figures(_depths(config, predict, list(masked), read, device, native=False), masked)
    return {source: figures for source, figures in found.items() if figures}


def _sequence(config: Config) -> SequenceFolder:
    if config.data.kind != "sequence":
        raise DataError(f"evaluation.boxes are for data of kind sequence, not {config.data.kind}")
    return SequenceFolder(config.data, "eval")


def _masked_things(config: Config, run_folder: Path) -> dict[str, Sequence[Thing]]:
    """Objects of held-out frames, evenly over them; empty where the run has not classified its masks."""
    if not (run_folder / "instances" / "val").is_dir():
        return {}
    frames = open_reader(config.data, "val").frames
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).astype(int))
    found: dict[str, Sequence[Thing]] = {}
    for frame in (frames[index] for index in chosen):
        path = frame_path(run_folder / "instances", "val", frame)
        if not path.is_file():
            continue
        instances = FrameInstances.load(path)
        things = [
            Thing.of_mask(mask, bool(moves))
            for mask, moves, large in zip(instances.masks[:, 1], instances.dynamic, instances.large, strict=True)
            if large
        ]
        if kept := [thing for thing in things if thing is not None]:
            found[frame] = kept
    return found


def _depths(
    config: Config,
    predict: Callable[[dict[str, Any]], Tensor],
    frames: Sequence[str],
    read: Callable[[str], Picture],
    device: torch.device | str,
    *,
    native: bool,
) -> Mapping[str, NDArray[np.float32]]:
    depths: dict[str, NDArray[np.float32]] = {}
    for first in range(0, len(frames), config.evaluation.batch):
        names = list(frames[first : first + config.evaluation.batch])
        images = [read(name) for name in names]
        batch = torch.stack([from_bytes(resize_image(image, config.data.size)) for image in images]).to(device)
        for name, image, depth in zip(names, images, predict({"image": batch, "frame": names}), strict=True):
            size = image.shape[:2] if native else config.data.size
            depths[name] = resize_depth(depth[None].float().cpu(), size)[0, 0].numpy()
    return depths


def contact_table(contact: Mapping[str, Mapping[str, Contact]]) -> Table:
    """Median and quartiles of every stage, source and group; the figures of the net's own row medians beside."""
    table = Table(box=box.SIMPLE, padding=0, title="do vehicles stand on the road (1), upright (1 to 1.15)?")
    for name in ("stage", "objects"):
        table.add_column(name, no_wrap=True)
    for name in ("count", "contact", "quartiles", "upright", "quartiles", "upright of its rows"):
        table.add_column(name, justify="right")
    for stage, sources in contact.items():
        for number, (name, f) in enumerate(
            (f"{source}, {group}", figures) for source, groups in sources.items() for group, figures in groups.items()
        ):
            table.add_row(
                stage if number == 0 else "",
                name,
                f"{f['count']:.0f}",
                f"{f['contact']:.2f}",
                f"{f['contact_25']:.2f}-{f['contact_75']:.2f}",
                f"{f['upright']:.2f}",
                f"{f['upright_25']:.2f}-{f['upright_75']:.2f}",
                f"{f['upright_rows']:.2f}",
            )
        table.add_section()
    return table
