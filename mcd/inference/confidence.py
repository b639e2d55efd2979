"""How far to trust a depth: whether the net says the same of the image mirrored and of the image moved aside.

The net sees the image, its mirror image, and the image moved to the left by half of the net's stride. The standard
deviation of the three logarithms of depth at a pixel is how far they disagree; :func:`calibrated` turns that into the
probability that the depth is right: within 25 % of the truth, the scale of the image being right (the a1 of the
evaluation). Its table was measured on rendered roads with ``python -m benchmarks.reliability``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Half of the stride: features fall on the other positions of the coarsest grid.
SHIFT = 16
# Disagreement, and the share of pixels with it whose depth is right.
DISAGREEMENT = (0.0083, 0.0165, 0.0242, 0.0331, 0.0434, 0.0551, 0.0724, 0.0974, 0.1317, 0.1688, 0.2219, 0.3234)
RIGHT = (0.907, 0.902, 0.892, 0.863, 0.828, 0.792, 0.728, 0.661, 0.58, 0.532, 0.392, 0.204)


def ask_thrice(net: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Depth [B, 1, h, w] of images [B, 3, h, w], and the probability that it is right, of the same shape."""
    depth, disagreement = disagree(net, images)
    return depth, calibrated(disagreement)


def disagree(net: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Depth [B, 1, h, w] of images [B, 3, h, w], and how far three answers disagree: a deviation of ln depth."""
    moved = F.pad(images[..., SHIFT:], (0, SHIFT, 0, 0), mode="replicate")
    depth, mirrored, shifted = net(torch.cat((images, images.flip(-1), moved))).chunk(3)
    answers = torch.stack((depth, mirrored.flip(-1), shifted.roll(SHIFT, -1))).log()
    # The moved image does not show the first columns any more.
    here, there = answers[:2, ..., :SHIFT].std(dim=0), answers[..., SHIFT:].std(dim=0)
    return depth, torch.cat((here, there), dim=-1)


def calibrated(disagreement: Tensor) -> Tensor:
    """The probability of being right, by linear interpolation in the table; beyond its ends, that of its ends."""
    at = torch.tensor(DISAGREEMENT, dtype=disagreement.dtype, device=disagreement.device)
    right = torch.tensor(RIGHT, dtype=disagreement.dtype, device=disagreement.device)
    after = torch.bucketize(disagreement, at).clamp(1, len(at) - 1)
    share = ((disagreement - at[after - 1]) / (at[after] - at[after - 1])).clamp(0, 1)
    return torch.lerp(right[after - 1], right[after], share)
