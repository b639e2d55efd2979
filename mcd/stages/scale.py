"""Scale stage, depth-scale alignment (DSA): what puts an object's depth into the scene (Nguyen et al., CVPR 2024).

Learned on static objects, where the scene's depth is right, from the image, the depth of the ground around the object
and the object's own mean-normalised depth. Leaves ``scale/weights.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mcd import Instances, ops, world
from mcd.config import Augment, Config, Scale
from mcd.data import Batch, FrameDataset, Map
from mcd.errors import NothingToLearnError
from mcd.files import frame_path
from mcd.masks.instances import FrameInstances, middle_band
from mcd.masks.morphology import boxes, filled_boxes
from mcd.nets.layers import widen
from mcd.run.context import Context
from mcd.scene.contact import contact_ratio
from mcd.scene.predictions import ScenePredictions
from mcd.stages.object import ObjectItem, object_items
from mcd.stages.stage import Outputs, TrainingStage
from mcd.visualize import colour_depth


@dataclass(frozen=True)
class ScaleInputs:
    """What the scale net sees of N objects, and what its answer is compared with."""

    image: Tensor
    """[N,3,H,W]"""
    mask: Tensor
    """[N,1,H,W] bool, the object without road."""
    scene_depth: Tensor
    """[N,1,H,W] depth of the frozen scene net."""
    ground: Tensor
    """[N,1,H,W] scene depth on the road outside the object's box, 0 elsewhere."""
    object_depth: Tensor
    """[N,1,H,W] depth of the frozen object net; only the mask's pixels mean anything."""

    @cached_property
    def instances(self) -> Instances:
        """The masks as lists of pixels: their number is what the host has to wait for, once."""
        return Instances.from_masks(list(self.mask))

    def shifted(self, pixels: Tensor) -> ScaleInputs:
        """Everything moved sideways by ``pixels`` [N] int; what comes in from outside is empty."""
        width = self.mask.shape[-1]
        columns = torch.arange(width, device=pixels.device) - pixels[:, None]
        inside = ((columns >= 0) & (columns < width))[:, None, None, :]
        index = columns.clamp(0, width - 1)[:, None, None, :]

        def shift(values: Tensor) -> Tensor:
            moved = values.gather(-1, index.expand(*values.shape[:-1], -1))
            return torch.where(inside, moved, torch.zeros_like(moved))

        return ScaleInputs(*(shift(getattr(self, name)) for name in self.__dataclass_fields__))


class ScaleStage(TrainingStage):
    name = "scale"
    roles = ("scale",)
    of_objects = True
    schedule: Scale

    def __init__(self, context: Context):
        self.schedule = context.config.scale
        super().__init__(context)
        self._predictions = ScenePredictions(context)
        self._object = context.trained("object", "depth")

    def from_scratch(self) -> bool:
        return True

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        folder = self.context.run.stage("instances")
        items = object_items(self, split, lambda row: row.large and not row.dynamic)
        if self.schedule.contact is not None:
            items = self._in_contact(split, items, self.schedule.contact)
        # Colours stay as they are: the frozen nets' depth is the target.
        flip_only = augment.model_copy(update={"jitter": 0.0}) if augment is not None else None

        def labels(item: ObjectItem) -> dict[str, Any]:
            mask = FrameInstances.load(frame_path(folder, split, item.frame)).masks[item.row, 1]
            read = {"object_mask": Map(mask[None]), "road": Map(self.masks.ground(split, item.frame))}
            return read | self._predictions.depth_label(split, item.frame)

        return self.frames(split, flip_only, items=items, images="reference", labels=labels)

    def _in_contact(self, split: str, items: list[ObjectItem], most: float) -> list[ObjectItem]:
        """Objects whose depth in the scene, the label, does not contradict that of the ground at their foot.

        Raises:
            NothingToLearnError: all do, of those to train on.
        """
        kept = []
        for item in items:
            mask = FrameInstances.load(frame_path(self.context.run.stage("instances"), split, item.frame))
            depth = self._predictions.stored(split, item.frame).depth[0]
            ratio = contact_ratio(depth, depth, self.masks.ground(split, item.frame)[0], mask.masks[item.row, 1])
            if ratio is None or abs(ratio - 1) <= most:
                kept.append(item)
        if items and not kept and split == "train":
            raise NothingToLearnError(
                f"stage scale: the depth of all {len(items)} static objects of split 'train' contradicts that of the "
                f"ground at their foot by more than scale.contact, {most:g}"
            )
        return kept

    def forward(self, batch: Batch, step: int) -> Outputs:
        depth = self._predictions.depth(batch)
        inputs = scale_inputs(
            self.context, depth, self._object, batch["reference"], batch["object_mask"], batch["road"]
        )
        if self.nets["scale"].training and self.schedule.shift_augment > 0:
            inputs = inputs.shifted(self._draw_shift(inputs.mask, batch["draw"]))
        return {"inputs": inputs, "scale": predict_scale(self.context, self.nets["scale"], inputs)}

    def _draw_shift(self, mask: Tensor, draw: Tensor) -> Tensor:
        """A sideways shift [N] of every object, from random numbers in [0, 1), that keeps its middle in the image.

        The net is trained on parked cars at the kerb and used for cars in the lane; without the shift it takes the
        column for a hint of the distance.
        """
        width = mask.shape[-1]
        left, _, right, _ = boxes(mask[:, 0]).unbind(1)
        middle = (left + right - 1) // 2
        drawn = (2 * draw - 1) * self.schedule.shift_augment * width
        return torch.maximum(torch.minimum(drawn.round().long(), width - 1 - middle), -middle)

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        inputs: ScaleInputs = outputs["inputs"]
        instances = inputs.instances
        _, losses = ops.align_scale(
            instances.gather(inputs.object_depth),
            inputs.scene_depth,
            instances,
            outputs["scale"],
            delta=self.schedule.huber,
        )
        # An object without pixels has loss 0 and is not counted.
        count = inputs.mask.flatten(1).any(dim=1).sum()
        return {"total": world.part_of_mean(losses.sum() / count.clamp(min=1), count)}

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        inputs: ScaleInputs = outputs["inputs"]
        return {"image": inputs.image[0], "ground": colour_depth(inputs.ground[0, 0])}


@torch.no_grad()
def scale_inputs(
    context: Context, scene_depth: Tensor, object_net: nn.Module, image: Tensor, mask: Tensor, road: Tensor
) -> ScaleInputs:
    """Run the frozen object net for N objects: depth [N,1,H,W] and image [N,3,H,W] of their frames, mask [N,1,H,W]
    bool, road [N,1,H,W] bool."""
    with context.networks():
        object_depth = widen(object_net(image * mask)[0])
    ground = scene_depth * (road & ~surrounding_box(context.config, mask) & ~mask)
    return ScaleInputs(image, mask, scene_depth, ground, object_depth * mask)


def predict_scale(context: Context, net: nn.Module, inputs: ScaleInputs) -> Tensor:
    """Scale [N] of every object: its mean depth in the units of the scene."""
    instances = inputs.instances
    mean = ops.instance_stats(inputs.object_depth, instances).mean
    # An object without pixels has no mean; its depth plane is empty anyway.
    normalised = inputs.object_depth / torch.where(mean > 0, mean, 1.0)[:, None, None, None]
    with context.networks():
        scale = net(inputs.image, inputs.ground + normalised, normalised)
    return widen(scale)


def surrounding_box(config: Config, mask: Tensor) -> Tensor:
    """Filled bounding boxes [N,1,H,W] of the masks, grown by the configured margin, more for objects straight ahead."""
    width = mask.shape[-1]
    begin, end = middle_band(width, config.instances.middle or 20)
    ahead = mask[..., begin:end].flatten(1).any(dim=1)
    # A dilation by 5x5 grows a box by two pixels on every side; the counts are meant at a width of 512.
    near, far = (round(2 * count * width / 512) for count in (config.scale.dilate_middle, config.scale.dilate))
    return filled_boxes(mask[:, 0], torch.where(ahead, near, far))[:, None]
