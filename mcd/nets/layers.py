"""What several networks share: input checks, float32 heads, the ResNet-18 layout at any width, timm backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from mcd.errors import McdError
from mcd.geometry import sigmoid_to_depth
from mcd.ops.contract import no_autocast

STRIDE = 32


class PretrainedError(McdError, RuntimeError):
    """ImageNet weights were asked for and could not be had."""


def check_images(net: str, *images: Tensor, channels: tuple[int, ...] | None = None, smallest: int = STRIDE) -> None:
    """Reject what a network cannot take.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: an input is not [B, C, H, W] with the right C, H or W is no multiple of 32 or below ``smallest``,
            or the inputs differ in batch or size.
    """
    channels = channels or (3,) * len(images)
    for image, count in zip(images, channels, strict=True):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = f"{image.dtype} tensor" if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{net} takes floating-point tensors, not a {found}")
        if image.ndim != 4 or image.shape[1] != count:
            raise ValueError(f"{net} takes [B, {count}, H, W], not {list(image.shape)}")
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE or min(height, width) < smallest:
            raise ValueError(
                f"{net} takes heights and widths that are multiples of {STRIDE}, at least {smallest}; "
                f"this image is {height}x{width}"
            )
        if image.shape[0] != images[0].shape[0] or image.shape[-2:] != images[0].shape[-2:]:
            raise ValueError(f"{net} takes inputs of one size, not {[list(image.shape) for image in images]}")


def standardise(image: Tensor) -> Tensor:
    """Centre an image in [0, 1] (grey 0.45, spread 0.225: the means over ImageNet's colours)."""
    return (image - 0.45) / 0.225


def widen(values: Tensor) -> Tensor:
    """What a network computed, where eight bits are too few: bfloat16 becomes float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a small head in the precision of its weights, whatever autocast says.

    bfloat16 has 8 bits: a rounded logit of -4 is a step of 0.8 % in depth.
    """
    with no_autocast(x.device.type):
        return module(x.to(next(module.parameters()).dtype))


class ReflectConv(nn.Conv2d):
    """3x3 convolution that keeps the size; reflection avoids the frame that zero padding leaves in a depth map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


class DepthHead(nn.Module):
    """Depth 1 / (0.01 + 9.99 sigmoid) in [0.1, 100], in an arbitrary unit, of features at the same size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ReflectConv(channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return sigmoid_to_depth(torch.sigmoid(in_float32(self.conv, features)))


class ResNet18(nn.Module):
    """The ResNet-18 layout with ``width`` channels in its first stage (64 in the original).

    forward(x [B, in_channels, H, W]) -> features at H/2 (width), H/4 (width), H/8 (2 width), H/16 (4 width) and
    H/32 (8 width).
    """

    def __init__(self, in_channels: int, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.channels = (width, width, 2 * width, 4 * width, 8 * width)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        before = width
        for channels in self.channels[1:]:
            stride = 1 if channels == before else 2
            shortcut = None
            if stride == 2:
                shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride=2, bias=False), norm(channels))
            self.layers.append(
                nn.Sequential(
                    BasicBlock(before, channels, stride, shortcut, norm_layer=norm),
                    BasicBlock(channels, channels, norm_layer=norm),
                )
            )
            before = channels
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


def one_group(channels: int) -> nn.GroupNorm:
    """Normalisation over a whole sample: independent of the batch, in training and in evaluation."""
    return nn.GroupNorm(1, channels)


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation of every convolution below ``module``: the one for layers that a ReLU follows."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def resnet18_backbone(*, pretrained: bool, **options: Any) -> nn.Module:
    """ResNet-18 with torchvision's ImageNet weights, or its initialisation: no residual branch starts switched off."""
    return timm_backbone("resnet18.tv_in1k", pretrained=pretrained, zero_init_last=False, **options)


def timm_backbone(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """A feature backbone of timm; ``pretrained`` takes ImageNet weights from timm's cache or over the network.

    Raises:
        PretrainedError: the weights are not in the cache and cannot be downloaded.
    """
    if not pretrained:
        return timm.create_model(name, pretrained=False, features_only=True, **options)
    try:
        return timm.create_model(name, pretrained=True, features_only=True, **options)
    except Exception as error:  # the hub, its HTTP client and the socket each raise their own
        raise PretrainedError(
            f"no ImageNet weights for {name}: {type(error).__name__}: {error}. Connect to the network once, or "
            "start from scratch with pretrained=False (config: nets.pretrained: false)"
        ) from error
