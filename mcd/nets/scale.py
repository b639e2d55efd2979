"""Scale networks: one number that puts an object's depth into the scale of the scene (depth scale alignment).

forward(image [B, 3, H, W] in [0, 1], ground [B, 1, H, W]: the scene's depth on the road and 0 elsewhere,
object_depth [B, 1, H, W]: the object's depth divided by its mean, 0 elsewhere) -> scale [B], float32, in the unit of
the scene's depth.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcd.nets.layers import ResNet18, check_images, in_float32, one_group, resnet18_backbone

CHANNELS = 5


class ScaleNet(nn.Module):
    """Features, their mean, three linear layers.

    The published net is linear in its output and may return a negative scale, whose negative depth then wins the
    per-pixel minimum of the pseudo label; ``positive`` passes the output through a softplus, which equals it where
    it is large. Weights mean nothing without it, so it travels with them: loading weights sets it.
    """

    positive: Tensor

    def __init__(self, name: str, encoder: nn.Module, widths: tuple[int, ...], *, positive: bool) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("positive", torch.tensor(positive))
        self.encoder = encoder
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, image: Tensor, ground: Tensor, object_depth: Tensor) -> Tensor:
        check_images(f"the scale net '{self.name}'", image, ground, object_depth, channels=(3, 1, 1))
        features = self.encoder(torch.cat([image, ground, object_depth], dim=1))[-1]
        scale = in_float32(self.head, features).squeeze(1)
        return torch.where(self.positive, F.softplus(scale), scale)


def build_scale_net(name: str, *, positive: bool = True, pretrained: bool = False) -> nn.Module:
    """The scale network ``light`` (0.7 M parameters) or ``resnet18`` (11,347,137).

    Args:
        positive: the scale cannot be negative; False is the published, linear output.
        pretrained: start ``resnet18`` from ImageNet weights (all but its five-channel first convolution).

    Raises:
        ValueError: there is no such network, or it has no ImageNet weights.
        PretrainedError: the weights cannot be had.
    """
    if name == "resnet18":
        return ScaleNet(name, _group_normalised_resnet18(pretrained), (512, 256, 128), positive=positive)
    if name != "light":
        raise ValueError(f"no scale net '{name}'; there are light, resnet18")
    if pretrained:
        raise ValueError("the scale net 'light' has no ImageNet weights; set nets.pretrained: false")
    return ScaleNet(name, ResNet18(CHANNELS, 16, norm=one_group), (128, 64), positive=positive)


def _group_normalised_resnet18(pretrained: bool) -> nn.Module:
    encoder = resnet18_backbone(pretrained=pretrained, out_indices=(4,))
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.GroupNorm(1, child.num_features, eps=child.eps)
                norm.load_state_dict({"weight": child.weight, "bias": child.bias})
                setattr(parent, name, norm)
    encoder.conv1 = nn.Conv2d(CHANNELS, 64, 7, stride=2, padding=3, bias=False)
    return encoder
