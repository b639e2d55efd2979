"""The depth that a net starts from, kept where the photometric loss tells nothing, and where it tells a lie.

A net that was trained elsewhere knows what a car is. The photometric loss does not: what drives along with the camera
looks the same in every frame, as something at infinity does. So a pixel's depth does not follow the photometric loss
where there is evidence against a world that stands still: where the neighbouring frames fit better as they are, or
after the camera's rotation alone, than after the motion that depth and pose predict. There, and a little everywhere,
it stays near the start's. Not in the paper; off unless `loss.start` is set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd import ops
from mcd.scene.poses import GREY
from mcd.scene.residual import fold

# As far as the start may be wrong: depth of what moves along leaves it by more.
_FACTOR = 1.5
# Evidence is a mean over a window of this share of the width, the size of a far car.
_WINDOW = 0.03


@torch.no_grad()
def told_by_motion(
    reference: Tensor, sources: Tensor, depth: Tensor, start: Tensor, K: Tensor, T_src_ref: Tensor, least: float
) -> Tensor:
    """Where the images tell the depth of a static world, [B,1,H,W] bool.

    Args:
        reference: [B,3,H,W]; sources: [B,S,3,H,W]; K: [B,3,3]; T_src_ref: [B,S,4,4].
        depth, start: [B,1,H,W]; whichever fits a pixel better counts, depth only as far as a factor of 1.5 from the
            start, or else what has sunk to infinity already would count as told.
        least: by how much the photometric error, a mean over a window, has to be lower than with everything at
            infinity, or with the camera standing still; below 0: how much higher it may be.
    """
    rotation = T_src_ref.clone()
    rotation[..., :3, 3].zero_()
    near = depth.clamp(start / _FACTOR, start * _FACTOR)
    moved = [_error(reference, sources, candidate, K, T_src_ref) for candidate in (start, near)]
    turned = _error(reference, sources, start, K, rotation)
    still = ops.photometric_error(reference, sources, sources)[0][:, None]
    seen = torch.stack([torch.isfinite(error) for error in moved]).all(0)
    gain = torch.where(seen, torch.minimum(turned, still) - torch.stack(moved).amin(0), 0.0)
    reach = round(_WINDOW * gain.shape[-1] / 2)
    padded = F.pad(gain, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, stride=1) > least


def travelled(T_src_ref: Tensor, least: float) -> Tensor:
    """Whether the camera moved by ``least`` towards the sources [B,S,4,4], on average, [B,1,1,1] bool.

    Where it hardly did, as in a traffic jam, what moves on its own outweighs what the camera's motion does.
    """
    return (T_src_ref[..., :3, 3].norm(dim=-1).mean(1) >= least)[:, None, None, None]


def _error(reference: Tensor, sources: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor) -> Tensor:
    """Photometric error [B,1,H,W] of the sources as depth and motion move them; inf where none shows the pixel."""
    count = sources.shape[1]
    cameras = fold(depth, count), fold(K, count), T_src_ref.flatten(0, 1)
    warped, _, valid = ops.backward_warp(sources.flatten(0, 1), *cameras, return_coords=True)
    valid = valid[:, 0].unflatten(0, (-1, count))
    error = ops.photometric_error(reference, warped.view_as(sources), sources, valid=valid)[0]
    return torch.where(valid.any(1), error, torch.inf)[:, None]


def without_untold(told: Tensor, reference: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """``reference`` and ``sources``, grey where depth is not ``told`` [B,1,H,W].

    The auto-mask of the photometric loss leaves out what is the same in all, so that neither depth nor the camera's
    motion follows it: as of the own vehicle, whatever moves along says that the camera stands.
    """
    return reference.masked_fill(~told, GREY), sources.masked_fill(~told[:, None], GREY)


def start_loss(depth: Tensor, start: Tensor, told: Tensor, share: float) -> Tensor:
    """Mean of |ln(depth / start)|, a pixel that is ``told`` counting ``share``; a scalar.

    In full counts the mean ratio of a picture's told pixels: else the unit of depth, and with it the camera's speed,
    drifts apart from that of what is held.

    Args:
        depth, start: [B,1,H,W], > 0, in one unit; told: [B,1,H,W] bool.
    """
    ratio = (depth / start).log()
    weight = torch.where(told, share, 1.0).to(depth)
    told = told.to(depth)
    mean = (ratio * told).sum((1, 2, 3)) / told.sum((1, 2, 3)).clamp(min=1)
    return (weight * ratio.abs()).mean() + mean.abs().mean()
