"""What moves between two pictures of one camera: the camera, by a pose net, and with it what is seen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mcd.geometry import backproject, pose_matrix
from mcd.nets import build_pose_net
from mcd.ops import backward_warp
from mcd.run.checkpoint import CheckpointError, find_weights, load_weights

# Mean difference of the channels, of 1, between a pixel and where it is found again.
_SAME_COLOUR = 0.1


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
        if "pose" not in weights.nets and stage is None and Path(place).is_dir():
            weights = load_weights(find_weights(place, "scene"))  # the final net has learned from what this one knew
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


class Change:
    """Where pixels of a frame are in another, p', and how their depth changes, from z to z'.

    Args:
        depth: [1,1,H,W] of the frame.
        T_other_frame: [1,4,4], in the unit of that depth.
        K: [1,3,3] in pixels of H×W.
    """

    def __init__(self, depth: Tensor, T_other_frame: Tensor, K: Tensor):
        self._depth, self._T, self._K = depth, T_other_frame, K
        points = backproject(depth, K)
        moved = T_other_frame[:, 2, :3].reshape(-1, 3, 1, 1) * points
        after = moved.sum(1, keepdim=True) + T_other_frame[:, 2, 3].reshape(-1, 1, 1, 1)
        self.growth = (after.clamp(min=1e-6) / depth).log()
        """ln z' / z [1,1,H,W]."""

    def fetch(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen at p' of an image [1,C,H,W] of the other frame, and where p' lies in it [1,1,H,W]."""
        warped, _, valid = backward_warp(other, self._depth, self._K, self._T, return_coords=True)
        return warped, valid


def disagreement(change: Change, images: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """ln d_other(p') / d(p) - ln z' / z, and the pixels whose colour is found again at p', [1,1,H,W] both.

    Args:
        images: of the frame and of the other, [1,3,H,W].
        depths: [1,1,H,W], of whatever net, in one unit of its own.
    """
    found, valid = change.fetch(torch.cat((images[1], depths[1].log()), dim=1))
    same = (found[:, :3] - images[0]).abs().mean(1, keepdim=True) < _SAME_COLOUR
    return found[:, 3:] - depths[0].log() - change.growth, valid & same
