"""Camera geometry that operators share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` [B,C,h,w] bilinearly at `size` (H, W); pixel areas are aligned, as in `scale_intrinsics`."""
    if image.shape[-2:] == torch.Size(size):
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False)
