"""The road as a plane under the camera: nothing that is seen below the horizon lies beyond it.

A car that drives ahead at the camera's speed looks the same in every frame. The photometric loss explains it as
something infinitely far away, a hole in the road, and no ground truth is needed to see that this is wrong. Not in the
paper; off unless `loss.road` is set.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mcd.ops import instance_stats
from mcd.ops.instances import Instances

# What a camera that looks along the road sees of the road itself: the bottom of the image, its middle.
_ROWS, _COLUMNS = (0.85, 1.0), (0.3, 0.7)
# Rows nearer to the principal point, as a share of the height, are left out: a small pitch moves the plane far there.
_HORIZON = 0.08
# ln of a ratio of depths: slopes and kerbs.
_TOLERANCE = 0.1


def road_loss(depth: Tensor, K: Tensor) -> Tensor:
    """Mean over all pixels of how far, beyond 10 %, the depth lies behind the road plane; a scalar."""
    return (beyond_road(depth, K) - _TOLERANCE).clamp(min=0).mean()


def beyond_road(depth: Tensor, K: Tensor) -> Tensor:
    """ln(depth / depth of the road plane) [B,1,H,W] where the depth lies beyond the plane; 0 elsewhere.

    The plane is horizontal in the camera's frame. Its distance is the median of what the bottom centre of the depth
    map shows, and takes no gradient.

    Args:
        depth: [B,1,H,W], > 0, in any unit.
        K: [B,3,3], in pixels of the depth map, of a camera that looks along the road.
    """
    batch, _, height, width = depth.shape
    row = torch.arange(height, device=depth.device, dtype=depth.dtype).reshape(1, 1, height, 1)
    fy, cy = (K[:, 1, column].to(depth.dtype).reshape(-1, 1, 1, 1) for column in (1, 2))
    slope = (row - cy) / fy
    bottom = _bottom_centre(batch, height, width, depth.device)
    camera_height = instance_stats(depth.detach() * slope, bottom, (0.5,), "lower").quantiles.reshape(-1, 1, 1, 1)
    below = (row > cy + _HORIZON * height) & (camera_height > 0)
    plane = torch.where(below, camera_height / slope, 1.0)
    return torch.where(below, (depth / plane).log().clamp(min=0), 0.0)


@lru_cache(maxsize=8)
def _bottom_centre(batch: int, height: int, width: int, device: torch.device) -> Instances:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    top, bottom = (round(share * height) for share in _ROWS)
    left, right = (round(share * width) for share in _COLUMNS)
    mask[:, top:bottom, left:right] = True
    return Instances.from_masks([mask] * batch, (height, width)).to(device)
