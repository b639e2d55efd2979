"""The ResNet-18 layout at half its width with a U-Net decoder, 3.6 M parameters: trains from scratch in minutes."""

from __future__ import annotations

from torch import Tensor, nn

from mcd.nets.depth._decoder import UNetDecoder
from mcd.nets.layers import ResNet18, check_images, standardise


class LightDepthNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet18(in_channels=3, width=32)
        self.decoder = UNetDecoder(self.encoder.channels, (8, 16, 32, 64, 128))

    def forward(self, image: Tensor) -> list[Tensor]:
        check_images("the depth net 'light'", image, smallest=64)
        return self.decoder(self.encoder(standardise(image)))


def build(*, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ValueError("the depth net 'light' has no ImageNet weights; set nets.pretrained: false")
    return LightDepthNet()
