"""Instances stage: which masks move, and where each is in the neighbouring frames.

Consumes instance and road masks and the scene stage's nets. Leaves one ``instances/SPLIT/CITY/FRAME.npz`` a frame
(:class:`FrameInstances`) and ``instances/SPLIT.csv``, a line for every mask. No ground truth is used.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd import Instances, ops
from mcd.checkpoint import atomic_path, write_text
from mcd.config import Data, InstancesStage
from mcd.data import instance_masks, road_mask
from mcd.progress import progress
from mcd.stages.base import Batch, Context, Preparation, StageError
from mcd.stages.residual import fold, moving_pixels
from mcd.stages.scene_predictions import ScenePredictions


@dataclass(frozen=True)
class FrameInstances:
    """The n instances of one frame."""

    ids: np.ndarray
    """[n] int64, names of the mask files."""
    dynamic: np.ndarray
    """[n] bool."""
    coverage: np.ndarray
    """[n] float32, share of the mask whose residual flow is above the threshold."""
    large: np.ndarray
    """[n] bool, mask without road is above the area threshold."""
    triplet: np.ndarray
    """[n] bool, masks in all three frames are above the area threshold."""
    masks: np.ndarray
    """[n,3,H,W] bool, mask without road in the previous, reference and next frame."""

    def save(self, path: Path) -> None:
        fields = {name: getattr(self, name) for name in ("ids", "dynamic", "coverage", "large", "triplet")}
        buffer = BytesIO()
        np.savez_compressed(buffer, shape=self.masks.shape, masks=np.packbits(self.masks), **fields)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())

    @staticmethod
    def load(path: Path) -> FrameInstances:
        with np.load(path) as file:
            fields = {name: file[name] for name in file.files}
        shape = tuple(fields.pop("shape"))
        fields["masks"] = np.unpackbits(fields["masks"], count=int(np.prod(shape))).reshape(shape).astype(bool)
        return FrameInstances(**fields)


@dataclass(frozen=True)
class InstanceRow:
    """A line of ``instances/SPLIT.csv``."""

    frame: str
    row: int
    """Index within the frame's file."""
    id: int
    dynamic: bool
    large: bool
    triplet: bool
    coverage: float


def read_rows(folder: Path, split: str) -> list[InstanceRow]:
    """All instances of a split, in the order of frames.

    Raises:
        StageError: the instances stage has not left its list.
    """
    if not (folder / f"{split}.csv").is_file():
        raise StageError(f"{folder / split}.csv does not exist: the stage 'instances' comes first")
    with (folder / f"{split}.csv").open(newline="") as file:
        return [
            InstanceRow(
                line["frame"],
                int(line["row"]),
                int(line["id"]),
                line["dynamic"] == "1",
                line["large"] == "1",
                line["triplet"] == "1",
                float(line["coverage"]),
            )
            for line in csv.DictReader(file)
        ]


def frame_path(folder: Path, split: str, frame: str, suffix: str = ".npz") -> Path:
    return folder / split / f"{frame}{suffix}"


class InstancesPreparation(Preparation):
    name = "instances"

    def __init__(self, context: Context):
        super().__init__(context)
        self.predictions = ScenePredictions(context)

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            frames = self._split(split, should_stop)
            rows = list(_rows(self.folder, split, frames))
            lines = ["frame,row,id,dynamic,large,triplet,coverage"]
            lines += [
                f"{r.frame},{r.row},{r.id},{r.dynamic:d},{r.large:d},{r.triplet:d},{r.coverage:.4f}" for r in rows
            ]
            write_text(self.folder / f"{split}.csv", "\n".join(lines) + "\n")
            facts[split] = {
                "frames": len(frames),
                "instances": len(rows),
                "dynamic": sum(row.dynamic for row in rows),
                "triplets": sum(row.triplet for row in rows),
            }
        return facts

    def _split(self, split: str, should_stop: Callable[[], bool]) -> list[str]:
        dataset = self.frames(split, None, labels=lambda item: read_masks(self.context.labels, split, item.frame))
        for batch in self.each_batch(dataset, split, self.config.instances.batch, ".npz", should_stop):
            self.process(split, batch)
        return [item.frame for item in dataset.items]

    @torch.no_grad()
    def process(self, split: str, batch: Batch) -> None:
        """Classify the masks of a batch of frames and follow them into the neighbouring frames."""
        settings = self.config.instances
        scene = self.predictions(split, batch)
        moving = moving_pixels(scene.flow, settings.flow_threshold)
        masks, road = batch["instances"], batch["road"]
        solid = [mask & ~road[b] for b, mask in enumerate(masks)]
        coverage, dynamic = classify(settings, masks, moving)
        triplets = self._follow(solid, scene.depth, batch["K"], scene.T_src_ref, scene.motion)
        area = settings.min_area * masks[0].shape[-2] * masks[0].shape[-1] if masks else 0
        start = 0
        for frame, ids, followed in zip(batch["frame"], batch["ids"], triplets, strict=True):
            count = len(ids)
            sizes = followed.sum(dim=(2, 3))
            FrameInstances(
                ids=np.asarray(ids, dtype=np.int64),
                dynamic=dynamic[start : start + count].cpu().numpy(),
                coverage=coverage[start : start + count].cpu().numpy().astype(np.float32),
                large=(sizes[:, 1] > area).cpu().numpy(),
                triplet=(sizes > area).all(dim=1).cpu().numpy(),
                masks=followed.cpu().numpy(),
            ).save(frame_path(self.folder, split, frame))
            start += count

    def _follow(self, masks: list[Tensor], depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor) -> list[Tensor]:
        """Masks [n,3,H,W] of every frame in its previous, own and next image: all masks of a frame in one splat."""
        count = T_src_ref.shape[1]
        most = max((len(mask) for mask in masks), default=0)
        stacked = depth.new_zeros((len(masks), most, *depth.shape[-2:]))
        for b, mask in enumerate(masks):
            stacked[b, : len(mask)] = mask.to(stacked.dtype)
        lifted = torch.cat((motion, torch.zeros_like(motion[:, :, :1])), dim=2)
        # The motion is homogeneous (pixel · depth): K⁻¹ makes it a translation in the source frame.
        translation = torch.einsum("bij,bsjhw->bsihw", torch.linalg.inv(K), lifted)
        warped, _, _ = ops.forward_warp(
            fold(stacked, count), fold(depth, count), fold(K, count), T_src_ref.flatten(0, 1), translation.flatten(0, 1)
        )
        warped = warped.unflatten(0, (-1, count)) >= 0.5
        return [
            torch.stack((warped[b, 0, : len(mask)], mask, warped[b, 1, : len(mask)]), dim=1)
            for b, mask in enumerate(masks)
        ]


def classify(settings: InstancesStage, masks: list[Tensor], moving: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each mask that moves, and whether the mask is dynamic.

    Args:
        masks: B bool tensors [n,H,W]; moving: [B,1,H,W] bool.

    Returns:
        coverage [N] (0 for an empty mask) and dynamic [N] bool, masks of all frames after one another. A mask is
        dynamic when enough of it moves, or when it touches the middle columns: objects straight ahead move along the
        viewing direction and show little flow.
    """
    instances = Instances.from_masks(masks)
    coverage = ops.instance_stats(moving.float(), instances).mean.nan_to_num(0.0)
    dynamic = coverage >= settings.coverage
    if settings.middle is not None and masks:
        begin, end = middle_band(masks[0].shape[-1], settings.middle)
        dynamic |= torch.cat([mask[..., begin:end].flatten(1).any(dim=1) for mask in masks])
    return coverage, dynamic


def middle_band(width: int, k: int) -> tuple[int, int]:
    """First and one past the last column of the central 1/k of an image."""
    return width * (k - 1) // (2 * k), width * (k + 1) // (2 * k)


def read_masks(data: Data, split: str, frame: str) -> dict[str, Any]:
    """Labels of a frame: its instance masks [n,H,W], their file names, and the road [1,H,W]."""
    masks, ids = instance_masks(data, split, frame)
    return {"instances": masks, "ids": ids, "road": road_mask(data, split, frame)}


def _rows(folder: Path, split: str, frames: list[str]) -> Iterator[InstanceRow]:
    with progress(len(frames), f"list of instances {split}", "image") as bar:
        for frame in frames:
            path = frame_path(folder, split, frame)
            # Without a file: its image could not be read, and data.on_error is skip.
            if path.is_file():
                # Field by field: masks, which are nearly all of the file, are not unpacked.
                with np.load(path) as file:
                    fields = [file[name].tolist() for name in ("ids", "dynamic", "large", "triplet", "coverage")]
                for row, values in enumerate(zip(*fields, strict=True)):
                    yield InstanceRow(frame, row, *values)
            bar.update()
