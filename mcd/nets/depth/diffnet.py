"""DIFFNet: HRNet-W18 with features of every stage and a decoder that weighs their channels; 10,869,100 parameters.

The architecture of Zhou et al., "Self-supervised monocular depth estimation with internal feature fusion", BMVC 2021,
as Nguyen et al. (CVPR 2024) train it: no standardisation of the input, branches fused by bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcd.nets.layers import DepthHead, ReflectConv, check_images, timm_backbone


class Features(NamedTuple):
    """Features by resolution, each from the earliest stage to the last."""

    half: list[Tensor]
    quarter: list[Tensor]
    eighth: list[Tensor]
    sixteenth: list[Tensor]
    last: Tensor


class HRNetEncoder(nn.Module):
    """timm's HRNet-W18 with the outputs of its inner stages."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.hrnet = timm_backbone("hrnet_w18.ms_in1k", pretrained=pretrained, feature_location="")
        for module in self.hrnet.modules():
            if isinstance(module, nn.Upsample):
                module.mode, module.align_corners = "bilinear", True

    def forward(self, image: Tensor) -> Features:
        net: Any = self.hrnet
        half = net.act1(net.bn1(net.conv1(image)))
        quarter = net.act2(net.bn2(net.conv2(half)))
        x = net.layer1(quarter)
        # A stage overwrites the list it is given.
        second = net.stage2([transition(x) for transition in net.transition1])
        third = net.stage3([*second, net.transition2[-1](second[-1])])
        fourth = net.stage4([*third, net.transition3[-1](third[-1])])
        stages = (second, third, fourth)
        return Features(
            half=[half],
            quarter=[quarter, *(stage[0] for stage in stages)],
            eighth=[stage[1] for stage in stages],
            sixteenth=[stage[2] for stage in stages[1:]],
            last=fourth[3],
        )


class AttentionFusion(nn.Module):
    """Upsample, concatenate, weigh the channels by what their means say, convolve."""

    def __init__(self, high: int, lows: Sequence[int], out_channels: int) -> None:
        super().__init__()
        channels = high + sum(lows)
        self.squeeze = nn.Linear(channels, channels // 16, bias=False)
        self.excite = nn.Linear(channels // 16, channels, bias=False)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        x = torch.cat([F.interpolate(high, scale_factor=2.0, mode="nearest"), *lows], dim=1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return F.relu(self.conv(x * gate[:, :, None, None]))


class AttentionDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_sixteenth = AttentionFusion(144, (72, 72), 256)
        self.to_eighth = AttentionFusion(256, (36, 36, 36), 128)
        self.to_quarter = AttentionFusion(128, (64, 18, 18, 18), 64)
        self.to_half = AttentionFusion(64, (64,), 32)
        self.before = ReflectConv(32, 16)
        self.after = ReflectConv(16, 16)
        self.heads = nn.ModuleList(DepthHead(channels) for channels in (16, 32, 64, 128))

    def forward(self, features: Features) -> list[Tensor]:
        x = self.to_sixteenth(features.last, features.sixteenth)
        eighth = self.to_eighth(x, features.eighth)
        quarter = self.to_quarter(eighth, features.quarter)
        half = self.to_half(quarter, features.half)
        x = F.interpolate(F.elu(self.before(half)), scale_factor=2.0, mode="nearest")
        full = F.elu(self.after(x))
        levels = (full, half, quarter, eighth)
        return [head(x) for head, x in zip(self.heads, levels, strict=True)]


class DIFFNet(nn.Module):
    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = HRNetEncoder(pretrained=pretrained)
        self.decoder = AttentionDecoder()

    def forward(self, image: Tensor) -> list[Tensor]:
        check_images("the depth net 'diffnet'", image)
        return self.decoder(self.encoder(image))


def build(*, pretrained: bool) -> nn.Module:
    return DIFFNet(pretrained=pretrained)
