"""Instances stage: which masks move, and where each is in the neighbouring frames.

Consumes instance and road masks and the scene stage's nets. Leaves one ``instances/SPLIT/CITY/FRAME.npz`` a frame
(:class:`FrameInstances`) and ``instances/SPLIT.csv``, a line for every mask. No ground truth is used.

With ``instances.tracks`` these are of a second part; the first, ``instances/followed``, leaves the same frame by frame.
The second gives every object a number that follows it through the frames (:mod:`mcd.masks.tracks`), decides for all its
frames together whether it moves, and leaves out what does not persist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd import Instances, ops, world
from mcd.config import Config, InstancesStage
from mcd.data import Batch, Map, SequenceFolder, open_reader
from mcd.files import frame_path, write_text
from mcd.masks.instances import FrameInstances, InstanceRow, middle_band
from mcd.masks.packed import load_arrays
from mcd.masks.tracks import Follower, Numbers, Track, TrackSums
from mcd.run.context import Context
from mcd.run.progress import progress
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import fold, moving_pixels
from mcd.stages.stage import Preparation, Stage

FOLLOWED = "instances/followed"


class InstancesPreparation(Preparation):
    name: str = "instances"

    @classmethod
    def parts(cls, context: Context) -> Iterator[Stage]:
        if context.config.instances.tracks:
            yield _FollowedPreparation(context)
            yield _TrackedPreparation(context)
        else:
            yield cls(context)

    def __init__(self, context: Context):
        super().__init__(context)
        self.predictions = ScenePredictions(context)

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return {split: self._list(split, self._split(split, should_stop)) for split in ("train", "val")}

    def _list(self, split: str, frames: list[str]) -> dict[str, Any]:
        return world.from_first(partial(write_rows, self.folder, split, frames))

    def _split(self, split: str, should_stop: Callable[[], bool]) -> list[str]:
        dataset = self.frames(split, None, labels=lambda item: self._labels(split, item.frame))
        for batch in self.each_batch(dataset, split, self.config.instances.batch, ".npz", should_stop):
            self.process(split, batch)
        return [item.frame for item in dataset.items]

    def _labels(self, split: str, frame: str) -> dict[str, Any]:
        masks, ids = self.masks.instances(split, frame)
        moving = self.masks.moving(split, frame)
        known = {} if moving is None else {"moving": Map(moving)}
        return {"instances": Map(masks), "ids": ids, "road": Map(self.masks.ground(split, frame)), **known}

    @torch.no_grad()
    def process(self, split: str, batch: Batch) -> None:
        """Classify the masks of a batch of frames and follow them into the neighbouring frames."""
        settings = rules(self.config)
        scene = self.predictions(split, batch)
        moving = batch.get("moving")
        if moving is None:
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


class _FollowedPreparation(InstancesPreparation):
    """The masks of each frame by itself."""

    name = FOLLOWED

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return {split: {"frames": len(self._split(split, should_stop))} for split in ("train", "val")}


class _TrackedPreparation(Preparation):
    """The same, by object."""

    name = InstancesPreparation.name

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        # A track is followed from frame to frame, by one process.
        return world.from_first(partial(self._prepare, should_stop))

    def _prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            numbers, tracks = self._follow(split)
            settings = rules(self.config)
            kept = {number: track for number, track in tracks.items() if track.frames >= settings.persist}
            moving = {number for number, track in kept.items() if track.moves(settings)}
            for frame, numbered in numbers.items():
                self._write(split, frame, numbered, kept, moving)
                if should_stop():
                    raise KeyboardInterrupt
            facts[split] = write_rows(self.folder, split, list(numbers))
            facts[split] |= {"tracks": len(kept), "moving": len(moving), "brief": len(tracks) - len(kept)}
        return facts

    def _follow(self, split: str) -> tuple[dict[str, Numbers], dict[int, Track]]:
        """The track of every mask by frame, and what holds for each."""
        reader = open_reader(self.context.data, split)
        assert isinstance(reader, SequenceFolder), "a config with tracks has a sequence"
        position = {name: place for place, name in enumerate(reader.names)}
        follower, sums = Follower(), TrackSums(rules(self.config))
        numbers: dict[str, Numbers] = {}
        last = -1
        with progress(len(reader.frames), f"tracks {split}", "image") as bar:
            for frame in reader.frames:
                path = frame_path(self.context.run.stage(FOLLOWED), split, frame)
                # Without a file: its image could not be read, and data.on_error is skip.
                if path.is_file():
                    if position[frame] != last + 1:
                        follower.cut()
                    last, found = position[frame], FrameInstances.load(path)
                    numbers[frame] = follower(found)
                    sums.add(found, numbers[frame])
                bar.update()
        return numbers, sums.tracks()

    def _write(self, split: str, frame: str, numbers: Numbers, kept: Collection[int], moving: Collection[int]) -> None:
        found = FrameInstances.load(frame_path(self.context.run.stage(FOLLOWED), split, frame))
        rows = [row for row, number in enumerate(numbers.tolist()) if number in kept]
        FrameInstances(
            ids=numbers[rows],
            dynamic=np.array([number in moving for number in numbers[rows].tolist()], dtype=bool),
            coverage=found.coverage[rows],
            large=found.large[rows],
            triplet=found.triplet[rows],
            masks=found.masks[rows],
        ).save(frame_path(self.folder, split, frame))


def write_rows(folder: Path, split: str, frames: list[str]) -> dict[str, Any]:
    """Write the list of a split's masks, and say what it adds up to."""
    rows = list(_rows(folder, split, frames))
    lines = ["frame,row,id,dynamic,large,triplet,coverage"]
    lines += [f"{r.frame},{r.row},{r.id},{r.dynamic:d},{r.large:d},{r.triplet:d},{r.coverage:.4f}" for r in rows]
    write_text(folder / f"{split}.csv", "\n".join(lines) + "\n")
    return {
        "frames": len(frames),
        "instances": len(rows),
        "dynamic": sum(row.dynamic for row in rows),
        "triplets": sum(row.triplet for row in rows),
    }


def rules(config: Config) -> InstancesStage:
    """When an object moves: to be straight ahead is no reason where the stage that found it has looked at that."""
    return config.instances.model_copy(update={"middle": None}) if "proposals" in config.stages else config.instances


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


def _rows(folder: Path, split: str, frames: list[str]) -> Iterator[InstanceRow]:
    with progress(len(frames), f"list of instances {split}", "image") as bar:
        for frame in frames:
            path = frame_path(folder, split, frame)
            # Without a file: its image could not be read, and data.on_error is skip.
            if path.is_file():
                fields = load_arrays(path, "ids", "dynamic", "large", "triplet", "coverage")
                for row, values in enumerate(zip(*(field.tolist() for field in fields), strict=True)):
                    yield InstanceRow(frame, row, *values)
            bar.update()
