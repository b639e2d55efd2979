"""Camera motion of a triplet from the pose net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcd.geometry import invert_rigid, pose_matrix
from mcd.nets.layers import widen
from mcd.run.context import Context

GREY = 0.45  # about the mean of the pictures that nets start from


def without_own_vehicle(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``reference`` and ``sources`` of a batch, grey where they show the own vehicle.

    What stays says to a pose net that the camera stands. And where both pictures are the same, the auto-mask of the
    photometric loss leaves the pixel out.
    """
    if "own" not in batch:
        return batch["reference"], batch["sources"]
    own = batch["own"]
    return hide_own_vehicle(batch["reference"], own), hide_own_vehicle(batch["sources"], own[:, None])


def hide_own_vehicle(images: Tensor, own: Tensor) -> Tensor:
    """Images [...,3,H,W] that are grey where ``own``, bool, of a shape that goes with theirs, is True."""
    return images.masked_fill(own, GREY)


_FAR = 10.0
"""Depth at which the difference of two motions is looked at."""


def motion_difference(first: Tensor, second: Tensor) -> Tensor:
    """How far apart two motions [...,4,4] bring a point ten units away, about; a scalar, in the unit of depth."""
    difference = (first - second)[..., :3, :].abs()
    return difference[..., 3].mean() + _FAR * difference[..., :3].mean()


def predict_poses(context: Context, net: torch.nn.Module, reference: Tensor, sources: Tensor) -> Tensor:
    """T_src_ref [B,2,4,4] towards the previous and the next frame.

    The net sees two frames in temporal order and predicts the motion from the earlier to the later one; towards the
    previous frame that motion is inverted.
    """
    previous, following = sources.unbind(1)
    with context.networks():
        angles, translation = net(torch.cat((previous, reference)), torch.cat((reference, following)))
    T = pose_matrix(widen(angles), widen(translation))
    T_ref_previous, T_next_ref = T.chunk(2)
    return torch.stack((invert_rigid(T_ref_previous), T_next_ref), dim=1)
