"""Predictions stage: what the scene stage's nets see in every frame, so that no later stage has to look again.

Consumes image triplets and the scene stage's nets. Leaves one ``predictions/SPLIT/CITY/FRAME.npz`` a frame
(:class:`FramePrediction`): depth in half precision (5e-4 of it), and the flow of what moves, which is mostly zeros and
compresses to little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd.checkpoint import atomic_path
from mcd.data.files import reading
from mcd.stages.base import Batch, Preparation
from mcd.stages.instances import frame_path
from mcd.stages.residual import pixel_flow, residual_motion
from mcd.stages.scene import predict_poses


@dataclass(frozen=True)
class FramePrediction:
    """Depth and residual motion of one frame."""

    depth: np.ndarray
    """[H,W] float32, positive."""
    flow: np.ndarray
    """[2,2,H,W] float32: towards the previous and the next frame, (x, y) in pixels; 0 where |x|+|y| is below the
    threshold."""
    moving: np.ndarray
    """[H,W] bool: the mean of |x|+|y| over both directions reaches the threshold."""

    def save(self, path: Path) -> None:
        buffer = BytesIO()
        np.savez_compressed(
            buffer,
            depth=self.depth.astype(np.float16),
            flow=self.flow.astype(np.float16),
            moving=np.packbits(self.moving),
        )
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())

    @staticmethod
    def load(path: Path) -> FramePrediction:
        """Raises DataError: the file is missing or broken."""
        with reading("prediction", path), np.load(path) as file:
            depth, flow = file["depth"].astype(np.float32), file["flow"].astype(np.float32)
            moving = np.unpackbits(file["moving"], count=depth.size).reshape(depth.shape).astype(bool)
        return FramePrediction(depth, flow, moving)


class PredictionsPreparation(Preparation):
    name = "predictions"

    def prepare(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        self._nets = {role: self.context.trained("scene", role) for role in ("depth", "pose", "motion")}
        batch = self.config.predictions.batch
        facts: dict[str, Any] = {}
        for split in ("train", "val"):
            dataset = self.frames(split, None)
            for loaded in self.each_batch(dataset, split, batch, ".npz", should_stop):
                self.process(split, loaded)
            facts[split] = self._summary(split, [item.frame for item in dataset.items])
        return facts

    def _summary(self, split: str, frames: list[str]) -> dict[str, Any]:
        paths = [frame_path(self.folder, split, frame) for frame in frames]
        # Without a file: its image could not be read, and data.on_error is skip.
        shares = [float(FramePrediction.load(path).moving.mean()) for path in paths if path.is_file()]
        return {
            "frames": len(shares),
            "frames_with_motion": sum(share > 0 for share in shares),
            "moving_share": float(np.mean(shares)) if shares else 0.0,
        }

    @torch.no_grad()
    def process(self, split: str, batch: Batch) -> None:
        """Write the files of a batch of frames."""
        depth, flow = self._observe(batch)
        threshold = self.config.predictions.flow_threshold * self.config.data.size[1] / 512
        length = flow.abs().sum(dim=2, keepdim=True)
        moving = (length.mean(dim=1) >= threshold)[:, 0].cpu().numpy()
        kept = torch.where(length >= threshold, flow, 0.0).cpu().numpy()
        for index, frame in enumerate(batch["frame"]):
            found = FramePrediction(depth[index, 0].cpu().numpy(), kept[index], moving[index])
            found.save(frame_path(self.folder, split, frame))

    def _observe(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Depth [B,1,H,W] and residual flow [B,2,2,H,W] in pixels."""
        context, reference, sources, K = self.context, batch["reference"], batch["sources"], batch["K"]
        with context.networks():
            depth = self._nets["depth"](reference)[0]
        depth = depth.float()
        T_src_ref = predict_poses(context, self._nets["pose"], reference, sources)
        floor = self.config.scene.motion_floor
        motion = residual_motion(context, self._nets["motion"], reference, sources, depth, K, T_src_ref, floor=floor)
        return depth, pixel_flow(reference, depth, K, T_src_ref, motion)
