"""Ground segmentation: which pixels show the ground.

forward(image [B, 3, H, W] in [0, 1], disp [B, 1, H, W]: inverse depth, in any unit; rows [B, 1, H, W]) -> logits
[B, 1, H, W], float32. ``rows`` says where in the image they are, by default as :func:`image_rows` has it.
Nguyen et al., CVPR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcd.nets.layers import in_float32, one_group


class GroundNet(nn.Module):
    """Three 3x3 convolutions and a 1x1 one.

    Args:
        size: height and width; norms then have a weight and a bias for each pixel of each channel, as published: 37.7
            of the published net's 37.9 million parameters, which fit one resolution only. None: one per channel; where
            it looks, which those maps tell the published net, this one reads from ``rows``.
    """

    def __init__(self, name: str, widths: tuple[int, int, int], size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.name, self.size = name, size
        first, second, third = widths

        def norm(channels: int) -> nn.Module:
            return one_group(channels) if size is None else nn.LayerNorm([channels, *size])

        self.input_layer = nn.Conv2d(5 if size is None else 4, first, 3, padding=1)
        self.conv1 = nn.Sequential(nn.Conv2d(first, second, 3, padding=1), norm(second))
        self.conv2 = nn.Sequential(nn.Conv2d(second, third, 3, padding=1), norm(third))
        self.final_layer = nn.Conv2d(third, 1, 1)

    def forward(self, image: Tensor, disp: Tensor, rows: Tensor | None = None) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or disp.shape != image[:, :1].shape:
            raise ValueError(
                f"the ground net takes an image [B, 3, H, W] and disp [B, 1, H, W], not {list(image.shape)} and "
                f"{list(disp.shape)}"
            )
        if self.size is not None and tuple(image.shape[-2:]) != self.size:
            raise ValueError(
                f"the ground net '{self.name}' was built for {self.size[0]}x{self.size[1]}, this image is "
                f"{image.shape[-2]}x{image.shape[-1]}; 'light' and 'full' take any size"
            )
        features = ground_input(image, disp)
        if self.size is None:
            features = torch.cat((features, image_rows(disp) if rows is None else rows), dim=1)
        features = self.input_layer(features).relu()
        features = self.conv2(self.conv1(features).relu()).relu()
        return in_float32(self.final_layer, features)


def ground_input(image: Tensor, disp: Tensor) -> Tensor:
    """What the net looks at [B, 4, H, W]: the image, and the inverse depth as a share of its largest in the image."""
    return torch.cat((image, disp / disp.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)), dim=1)


def image_rows(plane: Tensor) -> Tensor:
    """How far down every pixel of a plane [B, 1, H, W] is: -1 in the image's first row, 1 in its last."""
    rows = torch.linspace(-1, 1, plane.shape[-2], device=plane.device, dtype=plane.dtype)
    return rows[:, None].expand_as(plane)


def build_ground_net(name: str, size: tuple[int, int]) -> GroundNet:
    """The ground net ``light`` (8,000 parameters), ``full`` (114,241) or ``published`` (37,862,017 at 192x512).

    Args:
        size: height and width of its images; only ``published`` depends on it.

    Raises:
        ValueError: there is no such network.
    """
    if name == "light":
        return GroundNet(name, (16, 16, 32))
    if name == "full":
        return GroundNet(name, (64, 64, 128))
    if name == "published":
        return GroundNet(name, (64, 64, 128), size)
    raise ValueError(f"no ground net '{name}'; there are light, full, published")
