"""Slots stage: what moves, taken apart into objects by slot attention (Nguyen et al., CVPR 2024).

Consumes ``predictions``. Each direction of the flow is a picture of its own; object slots compete with a background
slot to explain it. Leaves ``slots/weights.safetensors`` and one ``slots/masks/SPLIT/CITY/FRAME.npz`` a frame: candidate
masks of both directions (the published code keeps one and throws the other away), read by :func:`read_candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import flow_to_image

from mcd import world
from mcd.config import Augment, Slots
from mcd.data import Batch, FrameDataset, Map, WholeFrame
from mcd.errors import NothingToLearnError
from mcd.files import frame_path
from mcd.masks.packed import Masks, load_masks, save_masks
from mcd.nets.slots import SLOTS, SlotNet
from mcd.run.checkpoint import find_weights
from mcd.run.context import Context
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import fast_flow
from mcd.stages.predictions import read_moving
from mcd.stages.stage import Outputs, TrainingStage
from mcd.visualize import colour_shares


def read_candidates(folder: Path, split: str, frame: str) -> Masks:
    """Candidate masks of a frame: bool [2, 5, H, W], by direction (previous, next) and slot (0 is the background).

    Args:
        folder: the stage's folder, ``RUN/slots``.

    Raises:
        DataError: the file is missing or broken.
    """
    return load_masks(frame_path(folder / "masks", split, frame))[0]


class SlotsStage(TrainingStage):
    name = "slots"
    roles = ("slots",)
    of_objects = True
    schedule: Slots

    def __init__(self, context: Context):
        self.schedule = context.config.slots
        super().__init__(context)
        self._predictions = ScenePredictions(context)

    def initialise(self) -> None:
        seen = self.context.run.finished("predictions") or {}
        if not seen.get("train", {}).get("frames_with_motion", 0):
            raise NothingToLearnError(
                "stage slots: no training frame has a pixel whose residual flow reaches predictions.flow_threshold; "
                "there is nothing to find objects by"
            )
        if self.schedule.init is not None:
            self.load(find_weights(self.schedule.init), self.roles)

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        flip_only = augment.model_copy(update={"jitter": 0.0}) if augment is not None else None

        def labels(item: Any) -> dict[str, Any]:
            found = self._predictions.stored(split, item.frame)
            return {"flow": Map(found.flow), "depth": Map(found.depth)}

        items = None
        if augment is not None and self.schedule.min_moving > 0:
            moving = read_moving(self.context.run.stage("predictions"), split)
            items = [WholeFrame(frame) for frame, share in moving.items() if share >= self.schedule.min_moving]
            if len(items) < self.schedule.batch:
                raise NothingToLearnError(
                    f"stage slots: {len(items)} of {len(moving)} training frames move by slots.min_moving, "
                    f"{self.schedule.min_moving:g}, or more; slots.batch wants {self.schedule.batch}"
                )
        return self.frames(split, flip_only, items=items, images="none", labels=labels)

    def forward(self, batch: Batch, step: int) -> Outputs:
        flow = fast_flow(batch["flow"], self.config.predictions.flow_threshold)
        scene, still = slot_scene(flow, batch["depth"], self.schedule.size)
        training = self.nets["slots"].training
        use_emptiness = training and self._reached(self.schedule.emptiness_from, step)
        with self.context.networks():
            found = self.nets["slots"](scene, self._noise(len(scene), step if training else None), use_emptiness)
        return {"scene": scene, "still": still, **found._asdict()}

    def _noise(self, count: int, step: int | None) -> Tensor:
        """What slots start from: fresh in every step of training; else (None) the same for every frame and run."""
        net = self.nets["slots"]
        assert isinstance(net, SlotNet)
        whole = 1 if step is None else count * world.size()
        key = (self.config.seed % 2**64, 0 if step is None else step + 1)
        drawn = np.random.default_rng(key).standard_normal((whole, SLOTS, net.channels), dtype=np.float32)
        if step is not None:
            drawn = drawn[world.slice_of(whole)]
        noise = torch.from_numpy(drawn)
        if self.context.device.type == "cuda":
            noise = noise.pin_memory()  # what is not pinned is waited for
        return noise.to(self.context.device, non_blocking=True)

    def _reached(self, when: float | None, step: int) -> bool:
        return when is not None and step >= self.schedule.in_steps(when, self.steps_per_epoch)

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        settings, training = self.schedule, self.nets["slots"].training
        flow_seen, depth_seen = outputs["scene"].split((3, 1), dim=1)
        shares, flow, depth = outputs["masks"], outputs["flow"], outputs["depth"]
        weight = 1 + settings.moving * (1 - outputs["still"])
        flow_drawn, depth_drawn = ((shares[:, :, None] * values).sum(dim=1) for values in (flow, depth))
        terms = {
            "flow": (weight * (flow_drawn - flow_seen).square()).mean(),
            "depth": settings.depth * (weight * (depth_drawn - depth_seen).square()).mean(),
        }
        # Validation has the terms that act in the end, so that early and late weights can be compared. Emptiness is
        # left out of it: masks are written without.
        if not training or self._reached(settings.background_from, step):
            terms["background"] = settings.background * background_entropy(shares, outputs["still"])
            terms["background_flow"] = settings.background_flow * (flow[:, 0] - 1).square().mean()
            terms["background_depth"] = settings.background_depth * (depth[:, 0] - 1).square().mean()
        ramp = self.ramp(step, settings.emptiness_from, settings.emptiness_full_from)
        if training and ramp is not None:
            emptiness = (outputs["fullness"] - settings.emptiness_target).abs().mean()
            terms["emptiness"] = ramp * settings.emptiness * emptiness
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        shares = outputs["masks"][0]
        drawn = (shares[:, None] * outputs["flow"][0]).sum(dim=0)
        return {
            "flow": (outputs["scene"][0, :3] + 1) / 2,
            "reconstruction": (drawn.clamp(-1, 1) + 1) / 2,
            "slots": colour_shares(shares),
        }

    @torch.no_grad()
    def export(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        self.nets["slots"] = self.context.trained("slots", "slots")
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            dataset = self.dataset(split, None)
            batches = self.each_batch(dataset, split, self.schedule.batch, ".npz", should_stop, self.folder / "masks")
            for batch in batches:
                shares = F.interpolate(self.forward(batch, 0)["masks"], self.config.data.size, mode="nearest-exact")
                masks = (shares >= self.schedule.threshold).unflatten(0, (-1, 2)).cpu().numpy()
                for frame, candidates in zip(batch["frame"], masks, strict=True):
                    save_masks(frame_path(self.folder / "masks", split, frame), candidates)
            facts[split] = {"frames": len(dataset)}
        return facts


def background_entropy(shares: Tensor, still: Tensor) -> Tensor:
    """Cross entropy of the background's share with what is still.

    The published code takes the sigmoid of the share, which is no logit: it stays in [0.5, 0.73].

    Args:
        shares: [N,S,h,w], of which slot 0 is the background; still: [N,1,h,w] in [0, 1].
    """
    # Not 1 - background: from a logit 17 above the others' on it rounds to 0, whose logarithm has a gradient without
    # end (torch's cross entropy: 10^4 times too large), just where a moving pixel belongs to no slot yet.
    least = torch.finfo(shares.dtype).tiny
    background, objects = shares[:, :1].clamp(min=least), shares[:, 1:].sum(dim=1, keepdim=True).clamp(min=least)
    return -(still * background.log() + (1 - still) * objects.log()).mean()


def slot_scene(flow: Tensor, depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the slot net sees, for each direction of the flow.

    Args:
        flow: [B,2,2,H,W] in pixels, 0 where nothing moves; depth: [B,1,H,W].
        size: height and width of the result.

    Returns:
        scene [2B,4,h,w], the two directions of a frame side by side: the flow as colours in [-1, 1], white where
        nothing moves and full at the fastest pixel; (exp(depth / largest) - 1) / (e - 1), 1 where nothing moves. And
        still [2B,1,h,w] in [0, 1]: 1 where nothing moves.
    """
    directions = flow.shape[1]
    flow = flow.flatten(0, 1)
    moving = (flow != 0).any(dim=1, keepdim=True)
    fastest = flow.norm(dim=1).amax(dim=(1, 2))[:, None, None, None]
    # flow_to_image divides by the fastest pixel of the whole batch; here each picture has its own.
    colours = flow_to_image(flow / fastest.clamp(min=1e-12)).float() / 127.5 - 1
    near = torch.expm1(depth / depth.amax(dim=(1, 2, 3), keepdim=True)) / math.expm1(1)
    near = torch.where(moving, near.repeat_interleave(directions, dim=0), 1.0)
    planes = torch.cat((colours, near, (~moving).float()), dim=1)
    planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)
    return planes[:, :4], planes[:, 4:]
