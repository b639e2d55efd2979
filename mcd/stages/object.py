"""Object stage: depth of each object up to its own scale (Nguyen et al., CVPR 2024).

Everything but one object is blacked out in three frames, so that the object is a rigid scene with a camera motion of
its own. Consumes mask triplets. Leaves ``object/weights.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcd import world
from mcd.config import Augment, Object
from mcd.data import Batch, FrameDataset, Map
from mcd.errors import NothingToLearnError
from mcd.files import frame_path
from mcd.masks.instances import FrameInstances, InstanceRow, read_rows
from mcd.nets.layers import widen
from mcd.ops.smoothness_loss import slopes_inside
from mcd.run.checkpoint import find_weights
from mcd.run.context import Context
from mcd.scene.poses import predict_poses
from mcd.stages.stage import Outputs, TrainingStage
from mcd.visualize import colour_depth


@dataclass(frozen=True)
class ObjectItem:
    """One object of one frame."""

    frame: str
    row: int


class ObjectStage(TrainingStage):
    name = "object"
    graphable = True
    roles = ("depth", "pose")
    of_objects = True
    schedule: Object

    def __init__(self, context: Context):
        self.schedule = context.config.object
        super().__init__(context)

        self.start: nn.Module | None = None
        if self.schedule.start and context.config.init is not None:
            self.start = context.frozen("depth", find_weights(context.config.init))

    def initialise(self) -> None:
        self.load(self.context.weights_of("scene"), self.roles)

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        folder = self.context.run.stage("instances")
        items = object_items(self, split, lambda row: row.triplet)

        def labels(item: ObjectItem) -> dict[str, Any]:
            return {"object_masks": Map(FrameInstances.load(frame_path(folder, split, item.frame)).masks[item.row])}

        return self.frames(split, augment, items=items, labels=labels)

    def forward(self, batch: Batch, step: int) -> Outputs:
        reference, sources = masked_images(batch)
        with self.context.networks():
            depth = self.nets["depth"](reference)[0]
        T_src_ref = predict_poses(self.context, self.nets["pose"], reference, sources)
        outputs = {"depth": widen(depth), "T_src_ref": T_src_ref}
        if self.start is not None:
            with torch.no_grad(), self.context.networks():
                outputs["start"] = widen(self.start(batch["reference"])[0])
        return outputs

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        reference, sources = masked_images(batch)
        mask = batch["object_masks"][:, 1:2]
        photometric = self.photometric(reference, sources, [outputs["depth"] * mask], batch["K"], outputs["T_src_ref"])
        smoothness = self.schedule.smoothness * self._smoothness_inside(1 / outputs["depth"], mask)
        terms = {"total": photometric + smoothness, "photometric": photometric, "smoothness": smoothness}
        if "start" in outputs:
            terms["start"] = self.schedule.start * shape_loss(outputs["depth"], outputs["start"], mask)
            terms["total"] = terms["total"] + terms["start"]
        return terms

    def _smoothness_inside(self, disparity: Tensor, mask: Tensor) -> Tensor:
        """`mcd.ops.smoothness_loss` with a mask [B,1,H,W], over the pairs of pixels of all processes."""
        if world.size() == 1:
            return self.smoothness([disparity], masks=[mask])
        costs, pairs = slopes_inside(disparity, mask)
        pairs = pairs.clamp(min=1)
        return world.part_of_mean(costs / pairs, pairs).sum()

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        reference, _ = masked_images(batch)
        depth = outputs["depth"][0, 0] * batch["object_masks"][0, 1]
        return {"image": reference[0], "depth": colour_depth(depth)}


def shape_loss(depth: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """Mean over objects of the mean of |ln(depth / start)| less its mean: how far their shapes differ; a scalar.

    What drives along with the camera shows no other side of itself: of its depth, motion tells nothing.

    Args:
        depth, start: [B,1,H,W], > 0; mask: [B,1,H,W] bool.
    """
    inside = mask.to(depth)
    count = inside.sum((1, 2, 3), keepdim=True).clamp(min=1)
    ratio = (depth / start).log() * inside
    ratio = (ratio - ratio.sum((1, 2, 3), keepdim=True) / count).abs() * inside
    return (ratio / count).sum((1, 2, 3)).mean()


def masked_images(batch: Batch) -> tuple[Tensor, Tensor]:
    """Reference [B,3,H,W] and sources [B,2,3,H,W] with everything but the object black; the batch stays as it is."""
    previous, own, following = batch["object_masks"].unsqueeze(2).unbind(1)
    previous_image, following_image = batch["sources"].unbind(1)
    return batch["reference"] * own, torch.stack((previous_image * previous, following_image * following), dim=1)


def object_items(stage: TrainingStage, split: str, wanted: Any) -> list[ObjectItem]:
    """Objects of a split for which ``wanted(InstanceRow)`` holds; an error if there is none to train on."""
    rows: list[InstanceRow] = read_rows(stage.context.run.stage("instances"), split)
    items = [ObjectItem(row.frame, row.row) for row in rows if wanted(row)]
    if not items and split == "train":
        raise NothingToLearnError(
            f"stage {stage.name}: none of the {len(rows)} instances of split '{split}' can be used"
        )
    return items
