"""U-Net decoder: five times up by two, with skips, and a depth at each of the four finest sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcd.nets.layers import DepthHead, ReflectConv

SCALES = 4


class UNetDecoder(nn.Module):
    """Decoder in the layout of Godard et al., "Digging into self-supervised monocular depth estimation", ICCV 2019.

    Args:
        features: channels of the encoder's features at H/2, H/4, H/8, H/16 and H/32.
        channels: of the decoder at H, H/2, H/4, H/8 and H/16.
    """

    def __init__(self, features: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        inputs = [*channels[1:], features[-1]]
        skips = [0, *features[:-1]]
        self.before = nn.ModuleList(ReflectConv(i, c) for i, c in zip(inputs, channels, strict=True))
        self.after = nn.ModuleList(ReflectConv(c + s, c) for c, s in zip(channels, skips, strict=True))
        self.heads = nn.ModuleList(DepthHead(channels[scale]) for scale in range(SCALES))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x = features[-1]
        depths: list[Tensor] = []
        for level in reversed(range(len(self.before))):
            x = F.elu(self.before[level](x), inplace=True)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            if level > 0:
                x = torch.cat([x, features[level - 1]], dim=1)
            x = F.elu(self.after[level](x), inplace=True)
            if level < SCALES:
                depths.insert(0, self.heads[level](x))
        return depths
