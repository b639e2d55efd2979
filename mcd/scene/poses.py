"""Camera motion of a triplet from the pose net."""

from __future__ import annotations

import torch
from torch import Tensor

from mcd.geometry import invert_rigid, pose_matrix
from mcd.run.context import Context, widen


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
