"""Does depth stay the same where the world does? Temporal consistency along the camera's motion; no ground truth.

A depth net D and a pose net say where a point of frame t is in frame t+1, at p', and how its depth changes: from z to
z'. They are the same for whoever is looked at, whose depth d should change as much, whatever its scale:

    e(p)     ln d_t+1(p') / d_t(p)  -  ln z' / z
    drift    median |e|                      all that is wrong from one frame to the next
    jump     |median e|                      the whole frame becomes nearer or farther
    wobble   median |e - median e|           the rest: parts move against one another

in per cent, means over pairs of consecutive frames. Pixels count whose colour is found again at p' (within a tenth,
mean over the channels), which leaves out what is hidden and most of what moves; moving objects that are known
(``evaluation.masks``) are left out too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd.config import Config
from mcd.data import SequenceFolder
from mcd.data.dataset import network_intrinsics
from mcd.data.files import resize_image, resize_nearest
from mcd.data.labels import moving_mask
from mcd.data.sequence import consecutive_runs
from mcd.files import DataError
from mcd.inference.motion import CameraMotion, Change, disagreement
from mcd.inference.predictor import DepthPredictor, resize_depth
from mcd.visualize import from_bytes

FIGURES = ("drift", "jump", "wobble")

# Fewer pixels, and a pair says nothing.
_LEAST_SHARE = 0.05


def pair_figures(e: Tensor, counted: Tensor) -> dict[str, float] | None:
    """The figures of one pair, in per cent; None where too little of the frame is found again."""
    if counted.float().mean() < _LEAST_SHARE:
        return None
    values = e[counted].double()
    middle = values.median()
    return {
        "drift": 100 * float(values.abs().median()),
        "jump": 100 * float(middle.abs()),
        "wobble": 100 * float((values - middle).abs().median()),
    }


def consistency(
    config: Config, predict: Callable[[dict[str, Any]], Tensor], along: Path, device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """Figures of every pair of consecutive evaluated frames of a sequence, by the name of the first.

    Args:
        predict: a batch (``image`` [B,3,H,W] at ``data.size``, ``frame``) to depths [B,1,h,w].
        along: run, stage folder or weights whose depth and pose nets say how the camera moves.

    Raises:
        DataError: the data are no sequence, or have no two frames that are neighbours.
        CheckpointError: ``along`` has no depth net or no pose net.
    """
    if config.data.kind != "sequence":
        raise DataError(f"temporal consistency is for data of kind sequence, not {config.data.kind}")
    depth_net = DepthPredictor.load(along, device=device, size=config.data.size)
    motion = CameraMotion.load(along, device=device)
    found: dict[str, dict[str, float]] = {}
    for name, (images, K, static) in _pairs(config, device):
        depths = resized(predict({"image": torch.cat(images), "frame": list(name)}), config.data.size)
        change = Change(depth_net(images[0]), motion(*images), K)
        e, counted = disagreement(change, images, (depths[:1], depths[1:]))
        figures = pair_figures(e, counted & static)
        if figures is not None:
            found[name[0]] = figures
    if not found:
        raise DataError(f"no two consecutive frames of {config.data.root} show the same by the motion of {along}")
    return found


def resized(depths: Tensor, size: tuple[int, int]) -> Tensor:
    """Depths [B,1,h,w] at a size, as float32."""
    return resize_depth(depths.float(), size)


Pair = tuple[tuple[Tensor, Tensor], Tensor, Tensor]


def _pairs(config: Config, device: torch.device | str) -> Iterator[tuple[tuple[str, str], Pair]]:
    """Names, images [1,3,H,W], K [1,3,3] and what stands still [1,1,H,W] of all neighbours, at the networks' size."""
    folder, size = SequenceFolder(config.data, "eval"), config.data.size
    names = folder.every_frame
    K = torch.from_numpy(network_intrinsics(folder.K, folder.size, config.data)).float()[None].to(device)
    own = folder.own_mask
    still = np.ones(folder.size, bool) if own is None else ~own
    masks = None if config.evaluation.masks is None else config.data.root / config.evaluation.masks

    def picture(name: str) -> Tensor:
        return from_bytes(resize_image(folder.read_image(name), size))[None].to(device)

    for first, last in [(0, len(names) - 1)] if config.data.bridge_gaps else consecutive_runs(names):
        following = picture(names[first]) if last > first else None
        for name, after in itertools.pairwise(names[first : last + 1]):
            assert following is not None
            image, following = following, picture(after)
            moving = None if masks is None else moving_mask(masks, name)
            here = still if moving is None else still & ~folder.as_seen(moving)
            static = torch.from_numpy(resize_nearest(here, size))[None, None].to(device)
            yield (name, after), ((image, following), K, static)
