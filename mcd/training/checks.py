"""Results that cannot be used, told from the frames before training and from the nets of the scene stage after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd.config import Config
from mcd.data import Reader, fixed_batches, open_reader, prefetch
from mcd.files import DataError
from mcd.nets.layers import STRIDE
from mcd.ops import backward_warp
from mcd.run.warned import warn
from mcd.stages import TrainingStage
from mcd.stages.scene import SceneStage, depth_spread

LOOKED_AT = 32
"""Frames, spread evenly over a split."""

# Levels of 255 by which pixels of one colour, or of equal frames, may differ: less than the noise of any camera.
_FLAT, _EQUAL = 0.75, 0.25
_MOST, _REPEATED = 0.9, 0.25
# Ratio of the frames' width to height against that of data.size.
_SQUEEZED = 1.25
# Pixels by which a camera moves what it sees, at the nets' size; ln of depth; share of pixels that are learned from.
_STILL, _CONSTANT, _LEARNED = 0.02, 0.01, 0.01
# Steps for which depth has to be constant before that is said; a net that was just made spreads by more than _CONSTANT.
_COLLAPSED = 100
# Photometric loss: 3 SSIM + 2 L1 of an image whose neighbours fit to a hundredth of a level.
_NO_ERROR = 1e-4


def look_at_frames(config: Config) -> list[str]:
    """What is wrong with the training frames: their shape is another one, nothing is seen in them, nothing changes."""
    reader = open_reader(config.data, "train")
    return [*_squeezed(config, reader), *_nothing_to_learn(reader)]


def _squeezed(config: Config, reader: Reader) -> list[str]:
    """A size for the nets that is far from the shape of the frames."""
    try:
        native = reader.read(reader.frames[0], sources=False).images[0].shape
    except DataError:
        return []  # the stage that needs it reports it
    (height, width), wide = config.data.size, native[1] / native[0]
    if 1 / _SQUEEZED < width / height / wide < _SQUEEZED:
        return []
    rows = max(round((height * width / wide) ** 0.5 / STRIDE), 2) * STRIDE
    columns = max(round(rows * wide / STRIDE), 2) * STRIDE
    return [
        f"data.size {height}x{width} has another shape than the frames, {native[0]}x{native[1]}: "
        f'--set "data.size=[{rows}, {columns}]" keeps it at the same cost'
    ]


def _nothing_to_learn(reader: Reader) -> list[str]:
    count = min(len(reader.frames), LOOKED_AT)
    flat = equal = seen = pairs = repeated = 0
    for position in range(count):
        frame = reader.frames[position * len(reader.frames) // count]
        try:
            images = [image[::2, ::2].astype(np.float32) for image in reader.read(frame).images]
        except DataError:
            continue  # the stage that needs it reports it
        if len({image.shape for image in images}) > 1:
            continue
        seen += 1
        flat += max(float(image.std(axis=(0, 1)).max()) for image in images) < _FLAT
        same = [float(np.abs(image - images[1]).mean()) < _EQUAL for image in (images[0], images[2])]
        equal, repeated, pairs = equal + all(same), repeated + sum(same), pairs + len(same)
    if seen and flat >= _MOST * seen:
        return [
            f"{flat} of {seen} training frames looked at have one colour only: without texture, as in black frames, "
            "nothing can be learned from them"
        ]
    if seen and equal >= _MOST * seen:
        return [
            f"{equal} of {seen} training frames looked at equal their neighbours: the camera stands still, or frames "
            "are repeated; depth is learned from what changes between frames, so that nothing can be learned here"
        ]
    if pairs and repeated >= _REPEATED * pairs:
        return [
            f"{repeated} of {pairs} neighbouring frames looked at are equal: frames are repeated, as in a film "
            "that was converted to a higher rate, or the camera stands now and then; nothing is learned from such pairs"
        ]
    return []


class CollapseWatch:
    """Says while a stage trains, once, that the depth has become the same everywhere and stays so.

    What :func:`look_at_results` finds at the end of the stage takes the place of it.
    """

    def __init__(self, run_folder: Path, stage: str):
        self._run_folder, self._stage = run_folder, stage
        self._since: int | None = None
        self._said = False

    def look(self, step: int, spread: float | None) -> None:
        """``spread``: of the logarithm of depth at this step; None where the stage learns no depth of images."""
        if spread is None or spread >= _CONSTANT:
            self._since = None
            return
        self._since = step if self._since is None else self._since
        if step - self._since >= _COLLAPSED and not self._said:
            self._said = True
            line = f"stage {self._stage}, from step {self._since} on: {_same_everywhere(spread)}"
            warn(self._run_folder, self._stage, [line])


def _same_everywhere(spread: float) -> str:
    return f"the depth is the same everywhere (its logarithm has a spread of {spread:.4f})"


@torch.no_grad()
def look_at_results(stage: TrainingStage) -> list[str]:
    """What is wrong with the trained nets of a stage that explains whole images; nothing for others."""
    if not isinstance(stage, SceneStage):
        return []
    context, config = stage.context, stage.config
    for role in ("depth", "pose"):
        stage.nets[role] = context.trained(stage.name, role)
    found: list[tuple[float, float, float, float]] = []
    batch = stage.schedule.batch
    loader = fixed_batches(
        stage.frames("val", None), batch, config.data.workers, context.device, limit=max(LOOKED_AT // batch, 1)
    )
    for loaded in prefetch(loader, context.device, config.channels_last):
        outputs = stage.forward(loaded, 0)
        photometric, _, mask = stage.view_synthesis(
            loaded["reference"], loaded["sources"], outputs["depths"], loaded["K"], outputs["T_src_ref"]
        )
        depth = outputs["depths"][0]
        found.append((
            _displacement(loaded, depth, outputs["T_src_ref"]),
            float(depth_spread(depth)),
            float(mask.float().mean()),
            float(photometric),
        ))  # fmt: skip
    if not found:
        return []
    moved, spread, learned, error = np.mean(found, axis=0).tolist()
    name = f"stage {stage.name}"
    said = []
    if moved < _STILL:
        said.append(
            f"{name}: the pose net has stayed at its start: by it the camera moves what it sees by {moved:.3f} pixels"
        )
    if spread < _CONSTANT:
        said.append(f"{name}: {_same_everywhere(spread)}")
    if learned < _LEARNED:
        said.append(
            f"{name}: the auto-mask takes {1 - learned:.1%} of the pixels out of the loss: as they stand, the "
            "neighbouring frames fit better than anything that the nets can make of them"
        )
    if error < _NO_ERROR:
        said.append(f"{name}: the photometric loss is {error:.1e}, less than in any images that have texture")
    return said


def _displacement(batch: dict[str, Any], depth: Tensor, T_src_ref: Tensor) -> float:
    """Median pixels by which the camera's motion alone moves what is seen."""
    sources = T_src_ref.shape[1]
    image, depth, K = (values.repeat_interleave(sources, 0) for values in (batch["reference"], depth, batch["K"]))
    there, here = (
        backward_warp(image, depth, K, T, return_coords=True)[1]
        for T in (T_src_ref.flatten(0, 1), torch.eye(4).to(T_src_ref).expand(len(image), 4, 4))
    )
    return float((there - here).norm(dim=1).median())
