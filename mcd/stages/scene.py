"""Scene stage: depth, camera pose and residual motion of the whole image, self-supervised.

Consumes image triplets. Leaves ``scene/weights.safetensors``: a depth net that is right where nothing moves.
The stage has up to four phases: the pose net alone; depth and pose; the motion net alone; all together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcd import ops, world
from mcd.config import Augment, Scene
from mcd.data import Batch, FrameDataset, SequenceFolder, open_reader
from mcd.data.dataset import network_intrinsics
from mcd.data.files import resize_nearest
from mcd.data.frames import SHARES, camera_shares
from mcd.nets import freeze_encoder
from mcd.nets.camera import LearnedCamera, apply_changes
from mcd.nets.layers import widen
from mcd.run.checkpoint import WEIGHTS, find_weights, load_weights
from mcd.run.context import Context
from mcd.scene.poses import motion_difference, predict_poses, without_own_vehicle
from mcd.scene.residual import residual_motion
from mcd.scene.road import road_loss
from mcd.scene.start import start_loss, told_by_motion, travelled, without_untold
from mcd.scene.track import CameraTrack, find_track
from mcd.stages.stage import Outputs, TrainingStage
from mcd.visualize import colour_depth, colour_flow


class SceneStage(TrainingStage):
    name = "scene"
    graphable = True
    schedule: Scene

    def __init__(self, context: Context):
        self.schedule = self._schedule(context)
        self.roles = ("depth", "pose", "motion") if self.schedule.motion_from is not None else ("depth", "pose")
        if self.name == "scene" and context.config.data.intrinsics == "learn":
            self.roles = (*self.roles, "camera")
        super().__init__(context)
        self._searches = 0
        self.start = None
        if self.config.init is not None and self.config.loss.start:
            self.start = context.frozen("depth", find_weights(self.config.init))

    def _schedule(self, context: Context) -> Scene:
        return context.config.scene

    def from_scratch(self) -> bool:
        return self.config.init is None

    def initialise(self) -> None:
        if self.config.init is not None:
            self.load(find_weights(self.config.init))

    def dataset(self, split: str, augment: Augment | None) -> FrameDataset:
        track = self.track(split)
        labels = None if track is None else lambda item: track.unit(item.frame)
        return self.frames(split, augment, motion=track, labels=labels)

    def look_again(self, step: int) -> bool:
        times = sum(step >= self.schedule.in_steps(when, self.steps_per_epoch) for when in self.schedule.odometry_again)
        again, self._searches = times != self._searches, times
        return again

    def track(self, split: str) -> CameraTrack | None:
        """The camera's motion along a split, if depth is to learn with it."""
        first = 1 if "camera" in self.roles else 0
        if not self.schedule.odometry or self.config.init is None or self._searches < first:
            return None
        # One unit for both splits and for all searches.
        height = self._search("train", first, None).height
        return self._search(split, self._searches, height)

    def _search(self, split: str, number: int, height: float | None) -> CameraTrack:
        """What was found, or else is found now, by the first process."""
        path = self.folder / (f"odometry_{split}_{number}.npz" if number else f"odometry_{split}.npz")
        world.from_first(lambda: None if path.is_file() else self._find_track(split, number, height).save(path))
        return CameraTrack.load(path)

    def _find_track(self, split: str, number: int, height: float | None) -> CameraTrack:
        """With the depth that training starts from (``number`` 0), or with depth as it is now."""
        context, nets, start = self.context, self.nets, self.start
        reader = open_reader(self.data, split)
        assert isinstance(reader, SequenceFolder)  # as the config says
        if number == 0:
            weights = self.first_weights()
            roles = [role for role in ("depth", "pose") if role in load_weights(weights).tensors]
            nets = {role: context.frozen(role, weights) for role in roles}
            start = None if weights == find_weights(str(self.config.init)) else start
        K = reader.K
        if isinstance(camera := self.nets.get("camera"), LearnedCamera):
            # As the next step has it; what it settles at lags behind.
            K = changed(K, camera.changes().detach())
        K = network_intrinsics(K, reader.size, self.data)

        def of_net(net: nn.Module) -> Callable[[Tensor], Tensor]:
            def predict(images: Tensor) -> Tensor:
                with context.networks():
                    return widen(net(images)[0])

            return predict

        for net in nets.values():
            net.eval()
        return find_track(
            reader,
            self.data,
            torch.from_numpy(K).float().to(context.device),
            of_net(nets["depth"]),
            nets.get("pose"),
            None if start is None else of_net(start),
            height,
        )

    def first_weights(self) -> Path:
        """What training starts from."""
        assert self.config.init is not None
        return find_weights(self.config.init)

    def facts(self) -> dict[str, Any]:
        reader = open_reader(self.data, "train")
        first = reader.read(reader.frames[0], sources=False)
        camera = self.nets.get("camera")
        if not isinstance(camera, LearnedCamera):
            return super().facts() | {"camera": camera_shares(first)}
        found = replace(first, K=changed(first.K, camera.settled()))
        spread = [round(float(value), 6) for value in camera.spread()]
        return super().facts() | {"camera": camera_shares(found), "camera_spread": spread}

    def export(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        facts = super().export(should_stop)
        if "camera" in self.nets:
            # Of the weights that are kept, which may be older than the last step.
            kept = load_weights(self.folder / WEIGHTS).metadata
            spread = {f"{name}_spread": value for name, value in zip(SHARES, kept["camera_spread"], strict=True)}
            # As shares of the picture; spreads of focal lengths are relative, those of the centre in focal lengths.
            facts["camera"] = dict(zip(SHARES, kept["camera"], strict=True)) | spread
        return facts

    def phase(self, step: int) -> int:
        """-1: the pose net, before depth learns; 0: depth and pose; 1: the motion net alone; 2: all together."""

        def begun(when: float) -> bool:
            return step >= self.schedule.in_steps(when, self.steps_per_epoch)

        if self.config.init is not None and not begun(self.schedule.depth_from):
            return -1
        first, joint = self.schedule.motion_from, self.schedule.joint_from
        return sum(begun(when) for when in (first, first if joint is None else joint) if when is not None)

    def active(self, step: int) -> Sequence[str]:
        phase = self.phase(step)
        if phase == 1:
            return ("motion",)
        without = {-1: ("depth", "motion"), 0: ("motion",)}.get(phase, ())
        return tuple(role for role in self.roles if role not in without)

    def set_mode(self, step: int) -> None:
        super().set_mode(step)
        if self.config.init is not None and self.schedule.frozen_blocks is not None:
            freeze_encoder(self.nets["depth"], self.schedule.frozen_blocks)

    def rate(self, role: str) -> float:
        return {"pose": self.schedule.pose_rate, "camera": self.schedule.camera_rate}.get(role, 1.0)

    def forward(self, batch: Batch, step: int) -> Outputs:
        with self.context.networks():
            depths = self.nets["depth"](batch["reference"])
        depths = [widen(depth) for depth in depths[: self.config.loss.scales]]
        reference, sources = without_own_vehicle(batch)
        T_src_ref = batch.get("T_src_ref")
        outputs: Outputs = {"depths": depths}
        if T_src_ref is None or "pose" in self.active(step):
            outputs["T_predicted"] = predict_poses(self.context, self.nets["pose"], reference, sources)
        T_src_ref = outputs["T_src_ref"] = outputs.pop("T_predicted") if T_src_ref is None else T_src_ref
        if self.start is not None and "depth" in self.active(step):
            with torch.no_grad(), self.context.networks():
                start = widen(self.start(batch["reference"])[0])
            outputs["start"] = start if "unit" not in batch else start * batch["unit"][:, None, None, None]
        K: Tensor = batch["K"]
        if "camera" in self.nets:
            K = outputs["K"] = self.nets["camera"](batch["K"], batch["flipped"])
        if self.phase(step) > 0:
            outputs["motion"] = residual_motion(
                self.context,
                self.nets["motion"],
                reference,
                sources,
                depths[0],
                K,
                T_src_ref,
                filtered=self.phase(step) > 1,
                floor=self.schedule.motion_floor,
            )
        return outputs

    def loss(self, batch: Batch, outputs: Outputs, step: int) -> dict[str, Tensor]:
        weights = self.config.loss
        depths, motion = outputs["depths"], outputs.get("motion")
        reference, sources = without_own_vehicle(batch)
        K: Tensor = outputs["K"] if "K" in outputs else batch["K"]
        terms: dict[str, Tensor] = {}
        if "start" in outputs:
            start, T = outputs["start"], outputs["T_src_ref"]
            told = told_by_motion(reference, sources, depths[0], start, K, T, weights.start_evidence)
            told &= travelled(T, weights.start_travel)
            reference, sources = without_untold(told, reference, sources)
            terms["start"] = weights.start * start_loss(depths[0], start, told, weights.start_share)
        photometric = self.photometric(reference, sources, depths, K, outputs["T_src_ref"], motion)
        terms = {"photometric": photometric} | terms
        if "T_predicted" in outputs:
            terms["pose"] = motion_difference(outputs["T_predicted"], outputs["T_src_ref"])
        if "depth" in self.active(step):
            images = image_pyramid(batch["reference"], depths)
            terms["smoothness"] = weights.smoothness * self.smoothness([1 / depth for depth in depths], images)
            if weights.road:
                rows = self._rows_above_own_vehicle if "own" in batch else None
                terms["road"] = weights.road * road_loss(depths[0][:, :, :rows], K.detach())
        if motion is not None and self.phase(step) > 1:
            terms["sparsity"] = weights.sparsity * ops.motion_sparsity(motion)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    @torch.no_grad()
    def watched(self, outputs: Outputs) -> Mapping[str, Tensor]:
        return {"depth_spread": depth_spread(outputs["depths"][0])}

    @cached_property
    def _rows_above_own_vehicle(self) -> int:
        own = getattr(open_reader(self.config.data, "train"), "own_mask", None)
        return rows_above(resize_nearest(own, self.config.data.size)) if own is not None else self.config.data.size[0]

    def pictures(self, batch: Batch, outputs: Outputs) -> Mapping[str, Tensor]:
        shown = {"image": batch["reference"][0], "depth": colour_depth(outputs["depths"][0][0, 0])}
        if "motion" in outputs:
            shown["motion"] = colour_flow(outputs["motion"][0, -1])
        return shown


def depth_spread(depth: Tensor) -> Tensor:
    """How much depth [B,1,H,W] differs within an image: the standard deviation of its logarithm, the mean of images."""
    return depth.log().flatten(1).std(dim=1).mean()


def changed(K: NDArray[np.float64], changes: Tensor) -> NDArray[np.float64]:
    """Intrinsics [3,3] of the frames with what a camera has learned."""
    given = torch.from_numpy(K)[None]
    return apply_changes(given, changes.cpu().to(given), torch.tensor([False]))[0].numpy()


def rows_above(own: NDArray[np.bool_]) -> int:
    """How many rows of an image there are above a bonnet, which ``own`` [H,W] shows: the road begins there."""
    middle = own[:, own.shape[1] * 2 // 5 : own.shape[1] * 3 // 5].mean(axis=1) > 0.5
    return len(own) if middle.all() else int(np.flatnonzero(~middle).max()) + 1


def image_pyramid(image: Tensor, depths: Sequence[Tensor]) -> list[Tensor]:
    """The image at the size of every depth map."""
    return [
        image if depth.shape[-2:] == image.shape[-2:] else F.interpolate(image, depth.shape[-2:], mode="area")
        for depth in depths
    ]
