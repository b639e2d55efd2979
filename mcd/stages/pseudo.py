"""Pseudo stage: dynamic objects, put into the scene's scale, over the scene's depth; the nearest wins.

Consumes the nets of the scene, object and scale stages. Leaves ``pseudo/SPLIT/CITY/FRAME.npy`` [H,W] float32 for
every frame with a dynamic object.

With ``pseudo.contact`` a first part, ``pseudo/contact``, compares the depth that the scale net gives each object with
that of the ground at its foot; the second gives all frames of an object one ratio of the two (:func:`corrections`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd import Instances, ops
from mcd.data import Batch, FrameDataset, Map
from mcd.files import atomic_path, frame_path, reading
from mcd.masks.instances import FrameInstances, read_rows
from mcd.run.context import Context
from mcd.scene.contact import contact_ratio
from mcd.scene.predictions import ScenePredictions
from mcd.stages.object import ObjectItem
from mcd.stages.scale import predict_scale, scale_inputs
from mcd.stages.stage import Preparation, Stage

CONTACT = "pseudo/contact"


class PseudoPreparation(Preparation):
    name: str = "pseudo"
    suffix = ".npy"

    @classmethod
    def parts(cls, context: Context) -> Iterator[Stage]:
        if context.config.pseudo.contact is not None:
            yield _ContactPreparation(context)
        yield cls(context)

    def __init__(self, context: Context):
        super().__init__(context)
        self.predictions = ScenePredictions(context)
        self._factors: dict[str, NDArray[np.float32]] = {}

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        trained = self.context.trained
        self._nets = {"object": trained("object", "depth"), "scale": trained("scale", "scale")}
        return {split: self._split(split, should_stop) for split in ("train", "val")}

    def _split(self, split: str, should_stop: Callable[[], bool]) -> dict[str, int]:
        dataset = self._dataset(split)
        if dataset is None:
            return {"frames": 0}
        self._factors = self._corrections(split, [item.frame for item in dataset.items])
        for batch in self.each_batch(dataset, split, self.config.pseudo.batch, self.suffix, should_stop):
            self.write(split, batch)
        return {"frames": len(dataset)}

    def write(self, split: str, batch: Batch) -> None:
        """Write what this part leaves of a batch of frames."""
        for frame, depth in zip(batch["frame"], self.compose(batch).cpu().numpy(), strict=True):
            with atomic_path(frame_path(self.folder, split, frame, ".npy")) as temporary:
                np.save(temporary, depth[0])

    def _corrections(self, split: str, frames: list[str]) -> dict[str, NDArray[np.float32]]:
        """What the scales of each frame's objects are multiplied by; empty where the scale net has the last word."""
        most = self.config.pseudo.contact
        if most is None:
            return {}
        found = {}
        for frame in frames:
            path = frame_path(self.context.run.stage(CONTACT), split, frame)
            # Without a file: its image could not be read, and data.on_error is skip.
            if path.is_file():
                with reading("contact of objects", path), np.load(path) as file:
                    found[frame] = file["ids"], file["ratios"]
        return corrections(found, most, shared=self.config.instances.tracks)

    def _dataset(self, split: str) -> FrameDataset | None:
        folder = self.context.run.stage("instances")
        rows = read_rows(folder, split)
        frames = dict.fromkeys(row.frame for row in rows if row.dynamic and row.large)
        if not frames:
            return None

        def labels(item: ObjectItem) -> dict[str, Any]:
            found = FrameInstances.load(frame_path(folder, split, item.frame))
            masks = found.masks[found.dynamic & found.large, 1]
            read: dict[str, Any] = {"instances": Map(masks), "road": Map(self.masks.ground(split, item.frame))}
            read |= {"ids": found.ids[found.dynamic & found.large].tolist()}
            return read | self.predictions.depth_label(split, item.frame)

        items = [ObjectItem(frame, -1) for frame in frames]
        return self.frames(split, None, items=items, images="reference", labels=labels)

    def compose(self, batch: Batch) -> Tensor:
        """Pseudo depth [B,1,H,W] of a batch of frames."""
        background, aligned, instances = self.align(batch)
        fused, _ = ops.fuse_depth(background, aligned, instances)
        return fused

    @torch.no_grad()
    def align(self, batch: Batch) -> tuple[Tensor, Tensor, Instances]:
        """Depth of the scene [B,1,H,W], that of all its objects [P] in the scene's unit, and which pixels are whose.

        All objects of the batch go through the nets at once.
        """
        masks = batch["instances"]
        instances = Instances.from_masks(masks)
        frame = instances.frame.long()
        background = self.predictions.depth(batch)
        inputs = scale_inputs(
            self.context,
            background[frame],
            self._nets["object"],
            batch["reference"][frame],
            torch.cat(masks)[:, None],
            batch["road"][frame],
        )
        scale = predict_scale(self.context, self._nets["scale"], inputs)
        if self._factors:
            factors = np.concatenate([self._factors[name] for name in batch["frame"]])
            scale = scale * torch.from_numpy(factors).to(scale)
        # Masks of all frames after one another are the pixels of `instances` in order.
        object_depth = inputs.object_depth[:, 0][inputs.mask[:, 0]]
        aligned, _ = ops.align_scale(object_depth, background, instances, scale, delta=self.config.scale.huber)
        return background, aligned, instances


class _ContactPreparation(PseudoPreparation):
    """How the depth of each object, as the scale net has it, compares with the ground at its foot."""

    name = CONTACT
    suffix = ".npz"

    def _corrections(self, split: str, frames: list[str]) -> dict[str, NDArray[np.float32]]:
        return {}

    def write(self, split: str, batch: Batch) -> None:
        background, aligned, instances = self.align(batch)
        # Masks of all frames after one another are the pixels of `instances` in order.
        each = iter(aligned.cpu().split(instances.count.tolist()))
        for index, frame in enumerate(batch["frame"]):
            depth, ground = background[index, 0].cpu().numpy(), batch["road"][index, 0].cpu().numpy()
            ratios = []
            for mask in batch["instances"][index].cpu().numpy():
                own = np.zeros_like(depth)
                own[mask] = next(each).numpy()
                ratio = contact_ratio(own, depth, ground, mask)
                ratios.append(np.nan if ratio is None else ratio)
            with atomic_path(frame_path(self.folder, split, frame)) as temporary:
                np.savez(temporary, ids=np.array(batch["ids"][index]), ratios=np.array(ratios, np.float32))


def corrections(
    found: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]], most: float, *, shared: bool
) -> dict[str, NDArray[np.float32]]:
    """What the scale of every object in every frame is multiplied by.

    An object's ratio to the ground at its foot is the median over its frames, and at most ``most`` away from 1. In each
    frame the scale is corrected to it; where the foot is not seen, by as much as the object is in the median.

    Args:
        found: numbers and ratios [n] of each frame's objects, NaN where the foot is not seen.
        shared: one number is one object in all frames; otherwise each frame has its own.
    """
    members: dict[tuple[str, int], list[float]] = defaultdict(list)

    def key(frame: str, number: int) -> tuple[str, int]:
        return ("" if shared else frame), number

    for frame, (ids, ratios) in found.items():
        for number, ratio in zip(ids.tolist(), ratios.tolist(), strict=True):
            if ratio > 0 and np.isfinite(ratio):
                members[key(frame, number)].append(ratio)
    medians = {name: float(np.median(values)) for name, values in members.items()}

    def factor(frame: str, number: int, ratio: float) -> float:
        median = medians.get(key(frame, number))
        if median is None:
            return 1.0
        wanted = min(max(median, 1 - most), 1 + most)
        return wanted / (ratio if ratio > 0 and np.isfinite(ratio) else median)

    return {
        frame: np.array([factor(frame, *pair) for pair in zip(ids.tolist(), ratios.tolist(), strict=True)], np.float32)
        for frame, (ids, ratios) in found.items()
    }
