"""Pose networks: the camera's motion between two frames.

forward(first [B, 3, H, W], second [B, 3, H, W]), both in [0, 1] and in temporal order -> (angles [B, 3] in radians
about x, y, z, translation [B, 3] in the unit of depth), float32, of the transform that takes points of the first
camera to the second. Both are predicted in hundredths, so that training starts near the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcd.nets.layers import ResNet18, check_images, in_float32, resnet18_backbone, standardise

UNIT = 0.01


class LightPoseNet(nn.Module):
    """A quarter of ResNet-18's width; 0.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet18(in_channels=6, width=16)
        self.conv = nn.Conv2d(self.encoder.channels[-1], 128, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 6))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        check_images("the pose net 'light'", first, second)
        features = self.encoder(standardise(torch.cat([first, second], dim=1)))[-1]
        return _split(in_float32(self.head, F.relu(self.conv(features))))


class ResNet18PoseNet(nn.Module):
    """ResNet-18 on six channels and four convolutions; 12,500,492 parameters (the published net has an unused
    classifier of 513,000 more).

    The last convolution predicts two motions and the first is used: the form of the published checkpoints.
    """

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = resnet18_backbone(pretrained=pretrained, in_chans=6, out_indices=(4,))
        self.squeeze = nn.Conv2d(512, 256, 1)
        self.convs = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(2))
        # The mean of a 1x1 convolution is the convolution of the mean, and that costs nothing in float32.
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(256, 12, 1), nn.Flatten())

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        check_images("the pose net 'resnet18'", first, second)
        (features,) = self.encoder(standardise(torch.cat([first, second], dim=1)))
        features = F.relu(self.squeeze(features))
        for conv in self.convs:
            features = F.relu(conv(features))
        return _split(in_float32(self.head, features))


def build_pose_net(name: str, *, pretrained: bool = False) -> nn.Module:
    """The pose network ``light`` or ``resnet18``; ``pretrained`` starts the latter from ImageNet weights.

    Raises:
        ValueError: there is no such network, or it has no ImageNet weights.
        PretrainedError: the weights cannot be had.
    """
    if name == "resnet18":
        return ResNet18PoseNet(pretrained=pretrained)
    if name != "light":
        raise ValueError(f"no pose net '{name}'; there are light, resnet18")
    if pretrained:
        raise ValueError("the pose net 'light' has no ImageNet weights; set nets.pretrained: false")
    return LightPoseNet()


def _split(motion: Tensor) -> tuple[Tensor, Tensor]:
    motion = UNIT * motion
    return motion[:, 0:3], motion[:, 3:6]
