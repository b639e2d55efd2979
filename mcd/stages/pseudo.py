"""Pseudo stage: dynamic objects, put into the scene's scale, over the scene's depth; the nearest wins.

Consumes the nets of the scene, object and scale stages. Leaves ``pseudo/SPLIT/CITY/FRAME.npy`` [H,W] float32 for
every frame with a dynamic object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd import Instances, ops
from mcd.data import Batch, FrameDataset
from mcd.files import atomic_path, frame_path
from mcd.masks.instances import FrameInstances, read_rows
from mcd.run.context import Context
from mcd.scene.predictions import ScenePredictions
from mcd.stages.object import ObjectItem
from mcd.stages.scale import predict_scale, scale_inputs
from mcd.stages.stage import Preparation


class PseudoPreparation(Preparation):
    name = "pseudo"

    def __init__(self, context: Context):
        super().__init__(context)
        self.predictions = ScenePredictions(context)

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        trained = self.context.trained
        self._nets = {"object": trained("object", "depth"), "scale": trained("scale", "scale")}
        return {split: self._split(split, should_stop) for split in ("train", "val")}

    def _split(self, split: str, should_stop: Callable[[], bool]) -> dict[str, int]:
        dataset = self._dataset(split)
        if dataset is None:
            return {"frames": 0}
        for batch in self.each_batch(dataset, split, self.config.pseudo.batch, ".npy", should_stop):
            for frame, depth in zip(batch["frame"], self.compose(batch).cpu().numpy(), strict=True):
                with atomic_path(frame_path(self.folder, split, frame, ".npy")) as temporary:
                    np.save(temporary, depth[0])
        return {"frames": len(dataset)}

    def _dataset(self, split: str) -> FrameDataset | None:
        folder = self.context.run.stage("instances")
        rows = read_rows(folder, split)
        frames = dict.fromkeys(row.frame for row in rows if row.dynamic and row.large)
        if not frames:
            return None

        def labels(item: ObjectItem) -> dict[str, Any]:
            found = FrameInstances.load(frame_path(folder, split, item.frame))
            masks = found.masks[found.dynamic & found.large, 1]
            read = {"instances": masks, "road": self.masks.ground(split, item.frame)}
            return read | self.predictions.depth_label(split, item.frame)

        items = [ObjectItem(frame, -1) for frame in frames]
        return self.frames(split, None, items=items, images="reference", labels=labels)

    @torch.no_grad()
    def compose(self, batch: Batch) -> Tensor:
        """Pseudo depth [B,1,H,W] of a batch of frames; all objects of the batch go through the nets at once."""
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
        # Masks of all frames after one another are the pixels of `instances` in order.
        object_depth = inputs.object_depth[:, 0][inputs.mask[:, 0]]
        aligned, _ = ops.align_scale(object_depth, background, instances, scale, delta=self.config.scale.huber)
        fused, _ = ops.fuse_depth(background, aligned, instances)
        return fused
