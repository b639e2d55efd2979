"""Segment stage: objects of every frame by what they look like, from a segmenter that was trained elsewhere.

The variant with pre-trained masks on footage that has none (the paper takes its masks from such a net): torchvision's
Mask R-CNN v2 with its COCO weights looks at the frames at their own size. Consumes images alone. Leaves the objects
with their scores and labels, ``segment/SPLIT/CITY/FRAME.npz``, at the size of ``data.size``, for
:class:`mcd.masks.source.DiscoveredMasks`; which of them move is for the stage ``instances`` to say.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcd import world
from mcd.config import Config, ConfigError
from mcd.data import FrameDataset, open_reader
from mcd.data.files import resize_nearest
from mcd.errors import out_of_memory
from mcd.files import frame_path
from mcd.masks.detections import FrameDetections, distinct, summarise
from mcd.nets import PretrainedError, build_segmenter
from mcd.nets.segmenter import CLASSES, coco_weights, seen_size
from mcd.run.checkpoint import CheckpointError, Weights
from mcd.stages.stage import Preparation

ROLE = "segmenter"
OWN = 0.5
"""A mask of which a larger share lies on the own vehicle is its bonnet."""


class SegmentPreparation(Preparation):
    name = "segment"

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        settings, data = self.config.segment, self.context.data
        labels = torch.tensor(class_labels(settings.classes), device=self.context.device)
        facts: dict[str, Any] = {"classes": list(settings.classes)}
        net: nn.Module | None = None
        for split in ("train", "val"):
            reader = open_reader(data, split)
            native = reader.read(reader.frames[0], sources=False).images[0].shape
            seen = seen_size((native[0], native[1]), settings.side)
            net = net or self._segmenter(seen)
            dataset = FrameDataset(
                reader, data.model_copy(update={"size": seen}), seed=self.config.seed, images="reference"
            )
            for batch in self.each_batch(dataset, split, settings.batch, ".npz", should_stop):
                own = batch["own"] if "own" in batch else [None] * len(batch["frame"])
                found = self.segment(net, batch["reference"], labels)
                for frame, (objects, named), vehicle in zip(batch["frame"], found, own, strict=True):
                    self._save(split, frame, objects, named, vehicle)
            frames = [item.frame for item in dataset.items]
            facts[split] = world.from_first(partial(summarise, self.folder, split, frames))
        return facts

    def _segmenter(self, seen: tuple[int, int]) -> nn.Module:
        net = load_segmenter(self.config, seen).to(self.context.device).eval().requires_grad_(False)
        net.roi_heads.score_thresh = self.config.segment.score  # type: ignore[union-attr]  # masks of worse ones are not even drawn
        if self.config.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
        return net

    @torch.no_grad()
    def segment(self, net: nn.Module, images: Tensor, labels: Tensor) -> list[tuple[FrameDetections, Tensor]]:
        """Objects of images [B,3,H,W] that have one of the labels, best first, and the label [n] of each."""
        found = []
        # In float32: bfloat16's eight bits are too few for the corners of boxes.
        for objects in net(list(images)):
            wanted = torch.isin(objects["labels"], labels)
            named = objects["labels"][wanted].cpu()
            seen = FrameDetections(objects["masks"][wanted, 0].cpu() >= 0.5, objects["scores"][wanted].cpu())
            kept = distinct(seen)
            found.append((FrameDetections(seen.masks[kept], seen.scores[kept]), named[kept]))
        return found

    def _save(self, split: str, frame: str, objects: FrameDetections, labels: Tensor, own: Tensor | None) -> None:
        """Objects at the networks' size, without the own vehicle [1,H,W] and what is too small to be seen there."""
        masks = torch.from_numpy(resize_nearest(objects.masks.numpy(), self.config.data.size).copy())
        area = masks.flatten(1).sum(dim=1)
        kept = area > 0
        if own is not None:
            vehicle = torch.from_numpy(resize_nearest(own[0].cpu().numpy(), self.config.data.size).copy())
            kept &= (masks & vehicle).flatten(1).sum(dim=1) <= OWN * area
        found = FrameDetections(masks[kept], objects.scores[kept])
        found.save(frame_path(self.folder, split, frame), labels=labels[kept].numpy().astype(np.int64))


def class_labels(names: tuple[str, ...]) -> list[int]:
    """COCO's labels of its names.

    Raises:
        ConfigError: there is no such class; the nearest is named.
    """
    known = [name for name in CLASSES[1:] if name != "N/A"]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            raise ConfigError(
                f"'segment.classes' names '{name}', which is none of COCO's {len(known)} classes; near are "
                f"{', '.join(near)}"
            )
    return [CLASSES.index(name) for name in names]


def weights_file(config: Config) -> Path:
    """The file that the segmenter's weights are in.

    Raises:
        ConfigError: there is none, and it cannot be fetched.
    """
    given = config.segment.weights
    if given is None and config.nets.segmenter == "light":
        raise ConfigError("'segment.weights' should name a file: the segmenter 'light' has no COCO weights")
    try:
        return coco_weights() if given is None else given
    except PretrainedError as error:
        raise ConfigError(f"stage segment: {error}") from None


def load_segmenter(config: Config, size: tuple[int, int]) -> nn.Module:
    """The segmenter of a config for images of a height and width.

    Raises:
        ConfigError: there is no such net.
        CheckpointError: the weights file is missing, broken or of another net.
    """
    path = weights_file(config)
    try:
        net = build_segmenter(config.nets.segmenter, size)
    except ValueError as error:
        raise ConfigError(f"'nets.segmenter': {error}") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise ValueError("it is no state dict")
    except FileNotFoundError:
        raise CheckpointError(f"weights file {path} does not exist") from None
    except Exception as error:  # torch.load raises whatever the broken bytes lead to
        if out_of_memory(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({said})") from None
    Weights(path, {}, None, {}, {ROLE: tensors}).load_into(ROLE, net, config.nets.segmenter)
    return net


def check_segmenter(config: Config) -> None:
    """Raises as :func:`load_segmenter` and :func:`class_labels` do, before hours are spent on other stages."""
    class_labels(config.segment.classes)
    load_segmenter(config, (64, 64))
