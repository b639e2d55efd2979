"""Motion networks: what still moves after the camera's motion is accounted for.

forward(warped [B, 3, H, W]: the reference forward-warped into the source, source [B, 3, H, W]), both in [0, 1]
-> motion [B, 2, H, W] (x, y), float32, on the source's grid, from where the rigid prediction puts a pixel to where it
is seen. It is pixel-depth: it enters the projection before the division (Nguyen et al., CVPR 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_large

from mcd.nets.layers import check_images, in_float32, initialise_convolutions


def correlation_pyramid(first: Tensor, second: Tensor, radius: int, levels: int) -> Tensor:
    """Products of every pixel's features with the neighbourhood of the same place in the other image's pyramid.

    Level l is ``second`` averaged over 2^l x 2^l pixels. Channel l (2r + 1)^2 + (dx + r)(2r + 1) + dy + r at (x, y) is
    first(x, y) . second_l(x / 2^l + dx, y / 2^l + dy) / sqrt(C), bilinear, zero outside: the lookup of Teed and Deng,
    "RAFT", ECCV 2020, at zero flow, with its order (dx before dy) but without the volume of all pairs.

    Args:
        first, second: [B, C, h, w].

    Returns:
        [B, levels (2 radius + 1)^2, h, w].
    """
    return torch.cat([_correlation_level(first, second, radius, 2**level) for level in range(levels)], dim=1)


def _correlation_level(first: Tensor, second: Tensor, radius: int, step: int) -> Tensor:
    batch, channels, height, width = first.shape
    rows, columns = -(-height // step), -(-width // step)
    # Pixels of one cell of the level see the same neighbourhood up to their fraction of a cell, which needs one more.
    window = 2 * radius + (1 if step == 1 else 2)
    cells = F.pad(first, (0, columns * step - width, 0, rows * step - height)) / channels**0.5
    cells = cells.unflatten(3, (columns, step)).unflatten(2, (rows, step)).permute(2, 0, 3, 5, 4, 1)
    cells = cells.reshape(rows * batch, step**2 * columns, channels)
    level = F.avg_pool2d(second, step)
    right, bottom = columns - level.shape[3] + window - radius - 1, rows - level.shape[2] + window - radius - 1
    # Rows lead, so that a shift by dy is a slice of one batch of matrices.
    level = F.pad(level, (radius, right, radius, bottom)).permute(2, 0, 3, 1).flatten(0, 1).mT
    bands = []
    for dy in range(window):
        products = torch.bmm(cells, level[dy * batch : (dy + rows) * batch]).unflatten(1, (step**2, columns))
        # The band of column + dx: read with a stride longer by one, every row begins one column later.
        skewed = F.pad(products.flatten(2), (0, columns)).unflatten(2, (columns, columns + window))
        bands.append(skewed[..., :window])
    values = torch.stack(bands, dim=3).unflatten(1, (step, step)).unflatten(0, (rows, batch))
    # Now [rows, B, y, x, columns, dy, dx].
    if step > 1:
        fraction = torch.arange(step, device=first.device, dtype=values.dtype) / step
        values = torch.lerp(values[..., :-1], values[..., 1:], fraction.view(step, 1, 1, 1))
        values = torch.lerp(values[..., :-1, :], values[..., 1:, :], fraction.view(step, 1, 1, 1, 1))
    values = values.permute(1, 6, 5, 0, 2, 4, 3).reshape(batch, -1, rows * step, columns * step)
    return values[..., :height, :width]


def convex_upsample(flow: Tensor, weights: Tensor, factor: int) -> Tensor:
    """Every fine pixel is a weighted mean of its 3x3 coarse neighbours; the values grow with the size.

    Args:
        flow: [B, 2, h, w] in coarse pixels.
        weights: [B, 9 factor^2, h, w], logits.

    Returns:
        [B, 2, factor h, factor w] in fine pixels.
    """
    batch, _, height, width = flow.shape
    share = weights.reshape(batch, 1, 9, factor, factor, height, width).softmax(dim=2)
    neighbours = F.unfold(factor * flow, kernel_size=3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    fine = (share * neighbours).sum(dim=2)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, factor * height, factor * width)


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3, *, norm: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True))


class LightMotionNet(nn.Module):
    """Correlation at a quarter and an eighth of the size (12 and 24 pixels each way); 0.5 M parameters.

    Most of the work is done at an eighth, so that a training step of small images takes a CPU a fraction of a second.
    """

    radius, levels, factor = 3, 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 24, stride=2, size=7, norm=True), _conv(24, 48, stride=2, norm=True), _conv(48, 48, norm=True)
        )
        # Without a mean of zero, what all places have in common drowns the correlation of matching ones.
        self.match = nn.Sequential(nn.Conv2d(48, 64, 1, bias=False), nn.BatchNorm2d(64))
        # No normalisation from here on: a whole frame that moves alike must not be centred away.
        self.mix = _conv(self.levels * (2 * self.radius + 1) ** 2 + 48, 64, size=1)
        self.coarse = nn.Sequential(_conv(64, 128, stride=2), _conv(128, 128), _conv(128, 128), _conv(128, 64, size=1))
        self.refine = nn.Sequential(_conv(64, 64), _conv(64, 64))
        self.flow = nn.Conv2d(64, 2, 3, padding=1)
        self.weights = nn.Conv2d(64, 9 * self.factor**2, 1)
        initialise_convolutions(self)
        # Small, not zero: training starts from almost no motion, and everything before the head learns from step one.
        nn.init.normal_(self.flow.weight, std=1e-3)

    def forward(self, warped: Tensor, source: Tensor) -> Tensor:
        check_images("the motion net 'light'", warped, source)
        features = self.features(2 * torch.cat([warped, source]) - 1)
        first, second = self.match(features).chunk(2)
        correlation = correlation_pyramid(first, second, self.radius, self.levels)
        fine = self.mix(torch.cat([correlation, features.chunk(2)[0]], dim=1))
        coarse = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="bilinear", align_corners=False)
        fine = self.refine(fine + coarse)
        return convex_upsample(in_float32(self.flow, fine), in_float32(self.weights, fine), self.factor)


class RaftMotionNet(nn.Module):
    """RAFT (large) with one iteration from zero flow; 5,257,536 parameters, no dropout, trained from scratch.

    The parts are torchvision's. Its forward is not: it builds all pairs of pixels, refuses images below 128x128 and
    copies constants from the host in every step.
    """

    radius, levels, factor = 4, 4, 8

    def __init__(self) -> None:
        super().__init__()
        raft = raft_large(weights=None)
        self.feature_encoder = raft.feature_encoder
        self.context_encoder = raft.context_encoder
        self.update_block = raft.update_block
        self.mask_predictor = raft.mask_predictor

    def forward(self, warped: Tensor, source: Tensor) -> Tensor:
        check_images("the motion net 'raft'", warped, source, smallest=64)
        warped, source = 2 * warped - 1, 2 * source - 1
        first, second = self.feature_encoder(torch.cat([warped, source])).chunk(2)
        correlation = correlation_pyramid(first, second, self.radius, self.levels)
        hidden, context = self.context_encoder(warped).chunk(2, dim=1)
        start = correlation.new_zeros(correlation.shape[0], 2, *correlation.shape[2:])
        hidden, flow = self.update_block(hidden.tanh(), context.relu(), correlation, start)
        precision = self.mask_predictor.conv.weight.dtype
        return convex_upsample(flow.to(precision), self.mask_predictor(hidden).to(precision), self.factor)


def build_motion_net(name: str) -> nn.Module:
    """The motion network ``light`` or ``raft``; both train from scratch.

    Raises:
        ValueError: there is no such network.
    """
    nets = {"light": LightMotionNet, "raft": RaftMotionNet}
    if name not in nets:
        raise ValueError(f"no motion net '{name}'; there are {', '.join(nets)}")
    return nets[name]()
