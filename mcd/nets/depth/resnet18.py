"""ResNet-18 of timm with a U-Net decoder, 14.3 M parameters; ImageNet weights by option."""

from __future__ import annotations

from torch import Tensor, nn

from mcd.nets.depth._decoder import UNetDecoder
from mcd.nets.layers import check_images, resnet18_backbone, standardise


class ResNet18DepthNet(nn.Module):
    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = resnet18_backbone(pretrained=pretrained)
        self.decoder = UNetDecoder((64, 64, 128, 256, 512), (16, 32, 64, 128, 256))

    def forward(self, image: Tensor) -> list[Tensor]:
        check_images("the depth net 'resnet18'", image, smallest=64)
        return self.decoder(self.encoder(standardise(image)))


def build(*, pretrained: bool) -> nn.Module:
    return ResNet18DepthNet(pretrained=pretrained)
