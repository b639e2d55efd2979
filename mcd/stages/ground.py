"""Ground stage: which pixels show the ground, learned from the depth of the scene stage (Nguyen et al., CVPR 2024).

Pixels whose surface is level and lies below the camera are the first, noisy labels. Where the road is far, neighbours
are too close for a normal; there the net learns from its own answers on enlarged parts of the image.

Consumes ``predictions``. Leaves ``ground/weights.safetensors`` and ``ground/masks/SPLIT/CITY/FRAME.png``: the
probability as 8 bits, in the layout of road masks, which later stages of the run read in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mcd.config import Augment, Ground
from mcd.data import Batch, FrameDataset, Map
from mcd.errors import StageError
from mcd.files import atomic_path, frame_path
from mcd.geometry import backproject
from mcd.nets.ground import ground_input, image_rows
from mcd.nets.layers import widen
from mcd.run.checkpoint import find_weights, load_weights
from mcd.run.context import Context
from mcd.scene.predictions import ScenePredictions
from mcd.stages.stage import Outputs, TrainingStage
from mcd.visualize import tint


class GroundStage(TrainingStage):
    name = "ground"
    roles = ("ground",)
    schedule: Ground

    def __init__(self, context: Context):
        self.schedule = context.config.ground
        super().__init__(context)
        self._predictions = ScenePredictions(context)
        self._hidden = self.schedule.hide_depth
        """The share of the images whose depth was hidden when the net learned."""

    def initialise(self) -> None:
        if self.schedule.init is None:
            return
        path = find_weights(self.schedule.init)
        self.load(path, self.roles)
        if self.schedule.steps == 0:
            self._hidden = load_weights(path).metadata.get("hide_depth", 0.0)
            if self.schedule.hide_depth and not self._hidden:
                raise StageError(f"stage ground: the net of {path} always saw the depth: set ground.hide_depth=0")

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"hide_depth": self._hidden}

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        colours = augment.model_copy(update={"hue": (0.0, 0.0)}) if augment is not None else None

        def labels(item: Any) -> dict[str, Any]:
            return {"depth": Map(self._predictions.stored(split, item.frame).depth)}

        return self.frames(split, colours, images="reference", labels=labels)

    def forward(self, batch: Batch, step: int) -> Outputs:
        settings, image, depth = self.schedule, batch["reference"], batch["depth"]
        hidden = batch["draw"] < settings.hide_depth if settings.hide_depth else None
        target = level_surfaces(
            depth,
            batch["K"],
            settings.neighbours(depth.shape[-1]),
            settings.angle,
            below_camera=settings.below_camera,
        ).float()
        outputs: Outputs = {"target": target, "logits": self._predict(image, depth, hidden=hidden)}
        if self._weights(step)[1] is not None:
            (middle_image, near_image), (middle_depth, near_depth), (_, near_target), (middle_rows, near_rows) = (
                stretched_thirds(plane) for plane in (image, depth, target, image_rows(depth))
            )
            outputs["near_image"], outputs["near_depth"], outputs["near_target"] = near_image, near_depth, near_target
            outputs["near_logits"] = self._predict(near_image, near_depth, near_rows, hidden)
            with torch.no_grad():
                middle = self._predict(middle_image, middle_depth, middle_rows, hidden)
            outputs["own_target"] = join_thirds(middle, outputs["near_logits"].detach())
        return outputs

    def _predict(
        self, image: Tensor, depth: Tensor, rows: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Logits [B,1,H,W]; the depth of samples that are ``hidden`` [B] is not seen."""
        disp = 1 / depth
        if hidden is not None:
            disp = torch.where(hidden[:, None, None, None], torch.ones_like(disp), disp)
        with self.context.networks():
            logits = self.nets["ground"](image, disp, rows)
        return widen(logits)

    def probability(self, image: Tensor, depth: Tensor) -> Tensor:
        """Probability [B,1,H,W] that a pixel shows the ground.

        A car that keeps pace with the camera is thought far away, as far as the road seen in its place would be, and
        its lower part looks level. With ``hide_depth`` both views have to agree, with the depth and without: the
        geometric mean of their answers.
        """
        seen = self._predict(image, depth).sigmoid()
        if not self.schedule.hide_depth:
            return seen
        every = torch.ones(len(image), dtype=torch.bool, device=image.device)
        return (seen * self._predict(image, depth, hidden=every).sigmoid()).sqrt()

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        logits, smooth = outputs["logits"], self.schedule.smoothness
        labels, thirds = self._weights(step)
        guide = ground_input(batch["reference"], 1 / batch["depth"])
        terms = {
            "labels": labels * F.binary_cross_entropy_with_logits(logits, outputs["target"]),
            "smoothness": smooth * edge_aware_smoothness(logits.sigmoid(), guide),
        }
        if thirds is not None:
            near, own = outputs["near_logits"], outputs["own_target"]
            lower = logits[..., -own.shape[-2] :, :]
            terms["near"] = thirds * F.binary_cross_entropy_with_logits(near, outputs["near_target"])
            terms["own"] = thirds * F.binary_cross_entropy_with_logits(lower, own)
            near_guide = ground_input(outputs["near_image"], 1 / outputs["near_depth"])
            terms["near_smoothness"] = smooth * edge_aware_smoothness(near.sigmoid(), near_guide)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _weights(self, step: int) -> tuple[float, float | None]:
        """Weight of the labels, and of self-supervision (None: not yet). In validation those of the end, so that the
        loss of early and late weights can be compared."""
        settings = self.schedule
        if not self.nets["ground"].training:
            step = 2**62
        fallen = self.ramp(step, settings.label_until, settings.label_floor_from) or 0.0
        thirds = self.ramp(step, settings.thirds_from, settings.thirds_full_from)
        weight = 1 - fallen * (1 - settings.label_floor)
        return weight, None if thirds is None else thirds * settings.thirds_weight

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        image = batch["reference"][0]
        return {
            "labels": tint(image, outputs["target"][0, 0]),
            "ground": tint(image, outputs["logits"][0, 0].sigmoid()),
        }

    @torch.no_grad()
    def export(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        self.nets["ground"] = self.context.trained("ground", "ground")
        folder = self.folder / "masks"
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            dataset = self.dataset(split, None)
            for batch in self.each_batch(dataset, split, self.schedule.batch, ".png", should_stop, folder):
                levels = (self.probability(batch["reference"], batch["depth"]) * 255).round().to(torch.uint8)
                # A mask file whose highest level is 1 is read as zeros and ones.
                levels = torch.where(levels == 1, 0, levels)
                for frame, plane in zip(batch["frame"], levels[:, 0].cpu().numpy(), strict=True):
                    with atomic_path(frame_path(folder, split, frame, ".png")) as temporary:
                        Image.fromarray(plane).save(temporary, "PNG")
            facts[split] = {"frames": len(dataset)}
        return facts


def surface_normals(depth: Tensor, K: Tensor, distance: int) -> Tensor:
    """Unit normals [B,3,H,W] of the surface that a depth map shows, pointing away from the camera.

    The mean of four cross products of differences to neighbours ``distance`` pixels away: left and up, right and
    down, and the diagonals of either side. Near the border the normals are those of the mirrored pixel.

    Args:
        depth: [B,1,H,W]; K: [B,3,3].

    Raises:
        ValueError: the image is not more than three times ``distance`` high and wide.
    """
    height, width = depth.shape[-2:]
    if min(height, width) <= 3 * distance:
        raise ValueError(f"normals from neighbours {distance} pixels away need a larger image than {height}x{width}")
    points = backproject(depth, K.to(depth.dtype))

    def towards(right: int, down: int) -> Tensor:
        rows = slice(distance * (1 + down), height - distance * (1 - down))
        columns = slice(distance * (1 + right), width - distance * (1 - right))
        return points[..., rows, columns] - points[..., distance:-distance, distance:-distance]

    # The published order of the left diagonals turns that product round, so that it cancels one of the others.
    pairs = (((-1, 0), (0, -1)), ((1, 0), (0, 1)), ((-1, 1), (-1, -1)), ((1, -1), (1, 1)))
    products = [torch.linalg.cross(towards(*first), towards(*second), dim=1) for first, second in pairs]
    normals = F.normalize(torch.stack([F.normalize(product, dim=1) for product in products]).mean(dim=0), dim=1)
    return F.pad(normals, (distance,) * 4, mode="reflect")


def level_surfaces(depth: Tensor, K: Tensor, distance: int, angle: float, *, below_camera: bool = True) -> Tensor:
    """Pixels [B,1,H,W] bool of level surfaces below a level camera, whose y axis points down.

    Args:
        depth: [B,1,H,W]; K: [B,3,3]; distance: see :func:`surface_normals`.
        angle: degrees by which a normal may lean.
        below_camera: False counts ceilings too, as published.
    """
    normals = surface_normals(depth, K, distance)
    level = normals[:, 1:2].abs() > math.cos(math.radians(angle))
    rows = torch.arange(depth.shape[-2], device=depth.device, dtype=depth.dtype)
    down = depth * ((rows - K[:, 1, 2, None]) / K[:, 1, 1, None])[:, None, :, None]
    return level & ((down > 1e-5) if below_camera else (down.abs() > 1e-5))


def edge_aware_smoothness(plane: Tensor, guide: Tensor) -> Tensor:
    """Mean absolute differences of a plane [B,1,H,W], less where the guide [B,C,H,W] has an edge."""
    loss = plane.new_zeros(())
    for dim in (-1, -2):
        weight = (-guide.diff(dim=dim).abs().mean(dim=1, keepdim=True)).exp()
        loss = loss + (plane.diff(dim=dim).abs() * weight).mean()
    return loss


def stretched_thirds(plane: Tensor) -> tuple[Tensor, Tensor]:
    """The middle and the lowest third of a plane [B,C,H,W], each enlarged to the plane's size."""
    size = plane.shape[-2:]
    third = size[0] // 3
    parts = plane[..., -2 * third :, :].split(third, dim=-2)
    middle, near = (F.interpolate(part, size, mode="bilinear", align_corners=False) for part in parts)
    return middle, near


def join_thirds(middle: Tensor, near: Tensor) -> Tensor:
    """Answers (logits [B,1,H,W]) to the enlarged thirds as a target of 0 and 1 for the rows that they came from."""
    height, width = middle.shape[-2:]
    joined = torch.cat((middle, near), dim=-2).sigmoid()
    small = F.interpolate(joined, (2 * (height // 3), width), mode="bilinear", align_corners=False)
    return (small > 0.5).float()
