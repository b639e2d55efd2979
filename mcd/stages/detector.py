"""Detector stage: what the slots found teaches a detector, whose detections teach it again (Nguyen et al., CVPR 2024).

Consumes ``predictions``, ``ground`` and, unless it does not train, ``slots``. Its parts are the objects that pass as
such among the slots' masks, ``detector/candidates``, and rounds, ``detector/round_N``: each trains on the objects of
the one before and then looks for objects in every frame. Leaves the detections of each part, from which later stages
select (:class:`mcd.masks.source.DiscoveredMasks`), and ``detector/weights.safetensors``.
"""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcd import world
from mcd.config import Augment, Detector
from mcd.data import Batch, FrameDataset, Map, WholeFrame
from mcd.errors import NothingToLearnError
from mcd.files import atomic_path, frame_path
from mcd.masks.detections import (
    REASONS,
    VIEWS,
    FrameDetections,
    Window,
    look_through,
    objects_of_slots,
    paste_back,
    read_counts,
    summarise,
    tidied,
)
from mcd.masks.morphology import boxes
from mcd.masks.packed import load_arrays
from mcd.masks.source import CANDIDATES, newest_labels, read_ground, round_name
from mcd.nets.detector import detector_input, draw_by_image, first_layers, loss_counts
from mcd.run.checkpoint import WEIGHTS, Weights, find_weights, load_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import moving_pixels
from mcd.stages.slots import read_candidates
from mcd.stages.stage import Outputs, Preparation, Stage, TrainingStage
from mcd.visualize import outline


class CandidatesPreparation(Preparation):
    """Objects among the masks of the slots stage, ``detector/candidates/SPLIT/CITY/FRAME.npz``."""

    name = CANDIDATES

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            dataset = self._dataset(split)
            for batch in self.each_batch(dataset, split, self.config.detector.batch, ".npz", should_stop):
                moving = moving_pixels(batch["flow"], self.config.predictions.flow_threshold)
                found, dropped = objects_of_slots(self.config.detector, batch["slots"], batch["ground"], moving)
                for frame, masks, counts in zip(batch["frame"], found, dropped.cpu().numpy(), strict=True):
                    objects = FrameDetections(masks, torch.ones(len(masks)))
                    objects.save(frame_path(self.folder, split, frame), dropped=counts)
            facts[split] = self._summary(split, dataset)
        return facts

    def _summary(self, split: str, dataset: FrameDataset) -> dict[str, Any]:
        frames = [item.frame for item in dataset.items]
        return world.from_first(lambda: summarise(self.folder, split, frames) | {"dropped": self._dropped(split)})

    def _dropped(self, split: str) -> dict[str, int]:
        """How many candidates of a split are no objects, by reason."""
        total = np.zeros(len(REASONS), dtype=np.int64)
        for frame in read_counts(self.folder / f"{split}.csv"):
            total += load_arrays(frame_path(self.folder, split, frame), "dropped")[0]
        return dict(zip(REASONS, total.tolist(), strict=True))

    def _dataset(self, split: str) -> FrameDataset:
        run, predictions = self.context.run, ScenePredictions(self.context)

        def labels(item: Any) -> dict[str, Any]:
            return {
                "slots": Map(read_candidates(run.stage("slots"), split, item.frame)),
                "flow": Map(predictions.stored(split, item.frame).flow),
                "ground": Map(self.masks.ground(split, item.frame)),
            }

        return self.frames(split, None, images="none", labels=labels)


class DetectorStage(TrainingStage):
    """One round of self-training."""

    name = "detector"
    roles = ("detector",)
    of_objects = True
    schedule: Detector

    @classmethod
    def parts(cls, context: Context) -> Iterator[Stage]:
        if context.config.detector.steps != 0:
            yield CandidatesPreparation(context)
        for number in range(len(context.config.detector.scores)):
            yield cls(context, number)

    def __init__(self, context: Context, number: int):
        settings = context.config.detector
        self.schedule = settings.model_copy(update={"lr": settings.lr * settings.decay**number})
        self.name = round_name(number)
        self.number = number
        self.first_epoch = number * 2**20
        self.is_last = number == len(settings.scores) - 1
        super().__init__(context)
        self._labels = context.run.stage(newest_labels(context.run, number))
        self._predictions = ScenePredictions(context)

    def from_scratch(self) -> bool:
        return self.number == 0 and self.schedule.init is None

    def initialise(self) -> None:
        if self.number > 0:
            self.load(find_weights(self.context.run.stage(round_name(self.number - 1))), self.roles)
        elif self.schedule.init is not None:
            path = find_weights(self.schedule.init)
            self.load(path, self.roles)
            self._compare_scale(load_weights(path))

    def _compare_scale(self, weights: Weights) -> None:
        """Warn if the detector now sees objects much larger or smaller than it has learned them."""
        width, seen = self.config.data.size[1], weights.metadata.get("magnify")
        if weights.size is None or seen is None:
            return
        wanted = weights.size[1] * seen / width
        if not 1 / 1.5 < wanted / self.schedule.magnify < 1.5:
            warnings.warn(
                f"the detector of {weights.path} has learned objects in images {weights.size[1] * seen:.0f} pixels "
                f"wide; these are {width * self.schedule.magnify:.0f}. detector.magnify: {wanted:.2g} would show them "
                "alike",
                stacklevel=2,
            )

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"magnify": self.schedule.magnify}

    def set_mode(self, step: int) -> None:
        super().set_mode(step)
        fixed = first_layers(self.nets["detector"]) if self.config.nets.pretrained else None
        if fixed is not None:
            fixed.requires_grad_(False)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        settings = self.schedule
        optimizer = torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
        # Otherwise a first step that is left out as not finite would leave momentum that nobody has set.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        """Frames with objects: the others would teach that there is nothing, which the labels do not say.

        Raises:
            NothingToLearnError: there are none to train on.
        """
        counts = read_counts(self._labels / f"{split}.csv")
        items = [WholeFrame(frame) for frame, count in counts.items() if count]
        if split == "train" and not items:
            raise NothingToLearnError(nothing_found(self.context.run))
        flip_only = augment.model_copy(update={"jitter": 0.0}) if augment is not None else None

        def labels(item: WholeFrame) -> dict[str, Any]:
            found = FrameDetections.load(frame_path(self._labels, split, item.frame))
            return {"instances": Map(found.masks.numpy()), **self._seen(split, item.frame)}

        return self.frames(split, flip_only, items=items, images="reference", labels=labels)

    def _seen(self, split: str, frame: str) -> dict[str, Any]:
        """What the detector sees beside the image: depth and probability of ground [1,H,W]."""
        depth = self._predictions.stored(split, frame).depth
        return {"depth": Map(depth), "ground": Map(read_ground(self.context.run.path, split, frame))}

    def forward(self, batch: Batch, step: int) -> Outputs:
        net, training = self.nets["detector"], self.nets["detector"].training
        images = detector_input(batch["reference"], batch["depth"], batch["ground"])
        # torchvision draws which boxes enter the losses. The draw belongs to the step and the frame, so that a resumed
        # run has it too, whichever process has the frame; validation has always the same.
        # In float32: bfloat16's eight bits are too few for the corners of boxes.
        devices = [self.context.device] if self.context.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            draw_by_image(net, [self._seed(frame, step + 1 if training else 0) for frame in batch["frame"]])
            # Only in this mode it returns losses; it has no layer that behaves differently.
            net.train()
            losses = net(list(images), [target(masks) for masks in batch["instances"]])
            net.train(training)
        return losses

    def _seed(self, frame: str, draw: int) -> int:
        entropy = (self.config.seed % 2**64, self.number, draw, zlib.crc32(frame.encode()))
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        counts = loss_counts(self.nets["detector"])
        terms = {name.removeprefix("loss_"): world.part_of_mean(outputs[name], counts[name]) for name in outputs}
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        picture = batch["reference"][0]
        for mask in batch["instances"][0]:
            picture = outline(picture, mask)
        return {"labels": picture}

    def export(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        score = self.schedule.scores[self.number]
        if score is None:
            return {"usable": False}
        net = self.context.trained(self.name, "detector")
        net.roi_heads.score_thresh = score  # type: ignore[union-attr]  # masks of worse ones are not even drawn
        windows = VIEWS[: self.schedule.views if self.is_last else 1]
        scene = self.context.trained("scene", "depth") if len(windows) > 1 else None
        facts: dict[str, Any] = {"score": score}
        for split in ("train", "val"):
            dataset = self.frames(
                split, None, images="reference", labels=lambda item, split=split: self._seen(split, item.frame)
            )
            for batch in self.each_batch(dataset, split, self.schedule.batch, ".npz", should_stop):
                for frame, found in zip(batch["frame"], self.detect(net, scene, windows, batch), strict=True):
                    found.save(frame_path(self.folder, split, frame))
            facts[split] = self._summary(split, dataset)
        # Too few to train on: the next round, or the next stage, takes what was found before, if there is anything.
        facts["usable"] = facts["train"]["frames_with_objects"] >= self.schedule.batch or self.schedule.steps == 0
        if self.is_last:
            newest = self.name if facts["usable"] else newest_labels(self.context.run, self.number)
            facts |= {"masks_from": newest}
            if world.is_first():
                with atomic_path(self.context.run.stage("detector") / WEIGHTS) as temporary:
                    shutil.copyfile(self.folder / WEIGHTS, temporary)
        return facts

    def _summary(self, split: str, dataset: FrameDataset) -> dict[str, Any]:
        return world.from_first(partial(summarise, self.folder, split, [item.frame for item in dataset.items]))

    @torch.no_grad()
    def detect(
        self, net: nn.Module, scene: nn.Module | None, windows: tuple[Window, ...], batch: Batch
    ) -> list[FrameDetections]:
        """Objects of each frame of a batch, seen through each window; ``scene`` is asked for the depth of parts."""
        thorough = self.number in self.schedule.filter_after
        masks: list[list[Tensor]] = [[] for _ in batch["frame"]]
        scores: list[list[Tensor]] = [[] for _ in batch["frame"]]
        for window in windows:
            image, depth, ground = batch["reference"], batch["depth"], batch["ground"]
            if window != VIEWS[0]:
                assert scene is not None
                image, ground = look_through(window, image), look_through(window, ground)
                with self.context.networks():
                    depth = scene(image)[0].float()
            for index, found in enumerate(net(list(detector_input(image, depth, ground)))):
                masks[index].append(paste_back(window, found["masks"]))
                scores[index].append(found["scores"])
        return [
            tidied(self.schedule, FrameDetections(torch.cat(m), torch.cat(s)), ground[0] > 0.5, thorough=thorough)
            for m, s, ground in zip(masks, scores, batch["ground"], strict=True)
        ]


def target(masks: Tensor) -> dict[str, Tensor]:
    """What torchvision's detectors learn of an image with objects [n,H,W]; an image may have none."""
    return {
        "boxes": boxes(masks).float(),
        "labels": torch.ones(len(masks), dtype=torch.int64, device=masks.device),
        "masks": masks.to(torch.uint8),
    }


def nothing_found(run: Run) -> str:
    """Why there is nothing to train on."""
    dropped = ((run.finished(CANDIDATES) or {}).get("train") or {}).get("dropped") or {}
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return (
        "stage detector: no training frame has a slot that passes as a moving object; candidates were dropped as: "
        f"{reasons or 'nothing large enough moves and is no ground'}. See the keys of 'detector' in --help"
    )
