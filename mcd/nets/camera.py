"""The camera's own numbers, learned with depth and pose: focal lengths and centre, one camera for a data set.

forward(K [B,3,3], flipped [B] bool) -> K [B,3,3]. It starts at the K that it is given, and stays within bounds of it: a
focal length between 1/2.5 and 2.5 times it, pixels within 10 % of square, the centre within a tenth of the picture.

What a turn of the camera does to straight lines is what the focal length can be seen by (Gordon et al., ICCV 2019); a
clip in which the camera never turns does not tell it, and then it matters little for depth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# Adam moves a parameter by about the learning rate a step; these make steps of the size that a camera needs.
_FOCAL_GAIN, _SMALL_GAIN = 10.0, 0.5
_FOCAL_BOUND, _SMALL_BOUND = math.log(2.5), 0.1
# Of so many last steps the camera is the mean, and the spread the standard deviation.
LAST_STEPS = 64


class LearnedCamera(nn.Module):
    """Four parameters; in training it also remembers its last steps, whose mean is :meth:`settled`."""

    history: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.focal = nn.Parameter(torch.zeros(1))
        self.aspect = nn.Parameter(torch.zeros(1))
        self.centre = nn.Parameter(torch.zeros(2))
        self.register_buffer("history", torch.zeros(LAST_STEPS, 4))
        # Of the kind that is put back after a step that is not finite (:class:`mcd.training.nan_guard.NanGuard`).
        self.register_buffer("seen", torch.zeros(()))

    def changes(self) -> Tensor:
        """[4]: logarithms of the factors of fx and fy, and the shifts of cx and cy in focal lengths."""
        focal = _bounded(self.focal, _FOCAL_GAIN, _FOCAL_BOUND)
        aspect = _bounded(self.aspect, _SMALL_GAIN, _SMALL_BOUND)
        return torch.cat((focal, focal + aspect, _bounded(self.centre, _SMALL_GAIN, _SMALL_BOUND)))

    def forward(self, K: Tensor, flipped: Tensor) -> Tensor:
        changes = self.changes() if self.training else self.settled()
        if self.training:
            with torch.no_grad():
                self.history.index_copy_(0, (self.seen % LAST_STEPS).long().view(1), changes.detach()[None])
                self.seen += 1
        return apply_changes(K, changes.to(K), flipped)

    def settled(self) -> Tensor:
        """The mean [4] of the last steps, without waiting for the device."""
        # What is not there yet is 0.
        mean = self.history.sum(0) / self.seen.clamp(1, LAST_STEPS)
        return torch.where(self.seen > 0, mean, self.changes().detach())

    def spread(self) -> Tensor:
        """Standard deviation [4] over the last steps."""
        count = min(int(self.seen), LAST_STEPS)
        return self.history[:count].std(0, correction=0) if count else torch.zeros(4)


def apply_changes(K: Tensor, changes: Tensor, flipped: Tensor) -> Tensor:
    """K [B,3,3] with other focal lengths and centre; of flipped pictures the centre moves to the other side."""
    factor = changes[:2].exp()
    side = torch.where(flipped, -1.0, 1.0).to(K)
    fx, fy = K[:, 0, 0] * factor[0], K[:, 1, 1] * factor[1]
    cx, cy = K[:, 0, 2] + side * changes[2] * K[:, 0, 0], K[:, 1, 2] + changes[3] * K[:, 1, 1]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _bounded(parameter: Tensor, gain: float, bound: float) -> Tensor:
    return bound * torch.tanh(gain * parameter / bound)


def build_camera(name: str, **_: Any) -> nn.Module:
    """The learned camera ``pinhole``.

    Raises:
        ValueError: there is no such camera.
    """
    if name != "pinhole":
        raise ValueError(f"no camera '{name}' can be learned; there is pinhole")
    return LearnedCamera()
