"""A picture of what was taken for the own vehicle, so that a wrong mask is seen before it costs anything."""

from __future__ import annotations

from pathlib import Path

import torch

from mcd.config import Config
from mcd.data import SequenceFolder
from mcd.report.gallery import Gallery, Tiles, spread
from mcd.visualize import from_bytes, tint

_COLOUR = (1.0, 0.2, 0.15)
_FRAMES = 3


def own_vehicle_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """Frames of the clip with the own vehicle tinted; None for a config that asks for none.

    Raises:
        DataError: frames or the mask cannot be read.
    """
    if config.data.kind != "sequence" or config.data.own_mask is None:
        return None
    folder = SequenceFolder(config.data, "eval")
    own = folder.own_mask
    share = 0.0 if own is None else float(own.mean())
    frames: list[tuple[str, Tiles]] = []
    for name in spread(folder.names, _FRAMES):
        picture = from_bytes(folder.read_image(name))
        if own is not None:
            picture = tint(picture, torch.from_numpy(own.copy()), _COLOUR)
        frames.append((name, [(f"{100 * share:.1f} % of the picture", picture)]))
    note = "Red: taken for the own vehicle, what stays while the world moves; left out of losses, pose and evaluation."
    return Gallery(note if share else "Nothing was taken for the own vehicle.", frames)
