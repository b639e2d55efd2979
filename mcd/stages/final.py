"""Final stage: the scene stage's nets, trained on with the pseudo depth of dynamic objects as a label.

Leaves ``final/weights.safetensors``. :class:`ControlStage` is the same training with the label's weight at 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcd import ops, world
from mcd.config import Augment, Final, Scene
from mcd.data import Batch, FrameDataset, Map
from mcd.errors import StageError
from mcd.files import frame_path, reading
from mcd.masks.instances import FrameInstances
from mcd.run.context import Context
from mcd.stages.scene import SceneStage
from mcd.stages.stage import Outputs


class FinalStage(SceneStage):
    name = "final"
    schedule: Final

    def __init__(self, context: Context):
        super().__init__(context)
        self.pseudo_weight = self.schedule.pseudo_weight

    def _schedule(self, context: Context) -> Scene:
        return context.config.final

    def from_scratch(self) -> bool:
        return False

    def initialise(self) -> None:
        self.load(self.first_weights(), self.roles)

    def first_weights(self) -> Path:
        return self.context.weights_of("scene")

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        if self.pseudo_weight > 0 and self.context.run.finished("pseudo") is None:
            raise StageError("the stage 'pseudo' comes before 'final'; without labels: final.pseudo_weight=0")
        instances, pseudo = self.context.run.stage("instances"), self.context.run.stage("pseudo")
        empty = np.zeros((1, *self.config.data.size), np.float32)
        track = self.track(split)

        def labels(item: Any) -> dict[str, Any]:
            unit = {} if track is None else track.unit(item.frame)
            path = frame_path(pseudo, split, item.frame, ".npy")
            if not path.is_file():
                return {"pseudo_depth": Map(empty), "dynamic_mask": Map(empty.astype(bool)), **unit}
            with reading("pseudo depth", path):
                depth = np.load(path)[None]
                if depth.shape != empty.shape or not (np.isfinite(depth) & (depth >= 0)).all():
                    raise ValueError(f"{depth.dtype} {list(depth.shape[1:])} is no depth of {list(empty.shape[1:])}")
            found = FrameInstances.load(frame_path(instances, split, item.frame))
            moving = found.masks[found.dynamic & found.large, 1].any(axis=0, keepdims=True)
            return {"pseudo_depth": Map(depth), "dynamic_mask": Map(moving), **unit}

        return self.frames(split, augment, labels=labels, motion=track)

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        terms = super().loss(batch, outputs, step)
        if self.pseudo_weight == 0:
            return terms
        label, mask = batch["pseudo_depth"], batch["dynamic_mask"]
        losses = []
        for depth in outputs["depths"]:
            size = depth.shape[-2:]
            target = F.interpolate(label, size, mode="bilinear", align_corners=False)
            region = F.interpolate(mask.float(), size, mode="nearest") > 0
            loss, gate = ops.scale_invariant_loss(depth, target, region)
            if world.size() > 1:
                loss = world.part_of_mean(loss, (gate & region).sum(dtype=torch.float64) + 1e-10)
            losses.append(loss)
        pseudo = self.pseudo_weight * torch.stack(losses).mean()
        return terms | {"total": terms["total"] + pseudo, "pseudo": pseudo}


class ControlStage(FinalStage):
    name = "control"

    def __init__(self, context: Context):
        super().__init__(context)
        self.pseudo_weight = 0.0
