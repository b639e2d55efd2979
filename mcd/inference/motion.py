"""The camera's motion between two pictures, by the pose net that comes with a depth net."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mcd.geometry import pose_matrix
from mcd.nets import build_pose_net
from mcd.run.checkpoint import CheckpointError, find_weights, load_weights


class CameraMotion:
    """A pose net as a function of pictures."""

    def __init__(self, net: torch.nn.Module, device: torch.device | str = "cpu"):
        self._net, self._device = net.to(device).eval(), torch.device(device)

    @classmethod
    def load(cls, place: Path | str, stage: str | None = None, *, device: torch.device | str = "cpu") -> CameraMotion:
        """The pose net of a run folder, stage folder or weights file.

        Raises:
            CheckpointError: nothing is there, or it holds no pose net.
        """
        weights = load_weights(find_weights(place, stage))
        if "pose" not in weights.nets:
            raise CheckpointError(f"{weights.path} holds no pose net, so that it does not see how the camera moves")
        net = build_pose_net(weights.nets["pose"])
        weights.load_into("pose", net, weights.nets["pose"])
        return cls(net, device)

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """T_second_first [B,4,4], in the unit of the depth net, of pictures [B,3,h,w] in [0,1] in order of time."""
        angles, translation = self._net(first.to(self._device), second.to(self._device))
        return pose_matrix(angles.float(), translation.float())
