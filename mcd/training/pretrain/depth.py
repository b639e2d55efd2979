"""The depth net's task: true depth of rendered views.

The loss is the mean absolute error of log depth after the best scale of each picture, a term on the differences of
log depth over several distances that keeps outlines, and one that puts the sky far away. The unit of depth is the
height of the camera above the road, which is what a picture of a road tells; metres follow from a known height.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcd.nets import build_depth_net, freeze_encoder
from mcd.run.checkpoint import load_weights
from mcd.training.pretrain.data import Batch, Settings, Views
from mcd.training.pretrain.loop import Parts, Task

NEAREST, FARTHEST = 0.3, 90.0  # camera heights; the nets' range is 0.1 to 100


def depth_task(views: Path, settings: Settings, init: Path | None = None) -> Task:
    """Training of ``settings.net`` from ImageNet's weights, or from those of a file."""
    net = build_depth_net(settings.net, pretrained=init is None and settings.net != "light")
    if init is not None:
        load_weights(init).load_into("depth", net, settings.net)
    else:
        for head in net.decoder.heads:  # type: ignore[union-attr]
            # About seven camera heights: a start in the middle of what there is to see.
            nn.init.constant_(head.conv.bias, -4.5)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = freeze(net, settings)

    def loss(batch: Batch) -> tuple[Tensor, Parts]:
        net.train()
        net.encoder.eval()
        depths = net(batch["image"].contiguous(memory_format=torch.channels_last))
        total = batch["image"].new_zeros(())
        found: Parts = {}
        for level, depth in reversed(list(enumerate(depths))):
            part, found = depth_loss(depth, batch["depth"][:, :, :: 2**level, :: 2**level], settings)
            total = total + part / 2**level
        return total, found

    return Task("depth", settings.net, net, groups, Views(views, settings).batch, loss)


def depth_loss(predicted: Tensor, truth: Tensor, settings: Settings) -> tuple[Tensor, Parts]:
    """Loss of depth [B,1,H,W] against the truth, 0 where there is sky, both in camera heights."""
    known = truth > 0
    log_predicted = predicted.log()
    difference = torch.where(known, log_predicted - truth.clamp(NEAREST, FARTHEST).log(), 0.0)
    count = known.sum((1, 2, 3)).clamp(min=1)
    mean = difference.sum((1, 2, 3)) / count
    centred = torch.where(known, difference - mean[:, None, None, None], 0.0)
    # Absolute rather than square: far and thin things are wrong by much, and not all of it can be learned.
    shape = (centred.abs().sum((1, 2, 3)) / count).mean()
    scale = mean.abs().mean()
    edges = predicted.new_zeros(())
    for step in (1, 2, 4, 8):
        for axis in (2, 3):
            length = truth.shape[axis] - step
            if length < step:
                continue
            here, there = (difference.narrow(axis, offset, length) for offset in (0, step))
            both = known.narrow(axis, 0, length) & known.narrow(axis, step, length)
            edges = edges + (torch.where(both, there - here, 0.0).abs().sum() / both.sum().clamp(min=1)) / 4
    # The sky is at least as far as anything.
    sky = torch.where(known, 0.0, (math.log(FARTHEST) - log_predicted).clamp(min=0)).mean()
    loss = shape + 0.2 * scale + settings.edges * edges + settings.sky * sky
    parts = {"shape": shape, "scale": scale, "edges": edges, "sky": sky}
    return loss, parts


def freeze(net: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups; the encoder's first blocks and all its statistics stay those of ImageNet.

    What early layers see of rendered pictures differs most from real ones.
    """
    encoder, decoder = net.encoder, net.decoder
    assert isinstance(encoder, nn.Module)
    assert isinstance(decoder, nn.Module)
    if settings.net == "lite0":
        freeze_encoder(net, settings.frozen_blocks)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [
        {"params": trained, "lr": settings.lr * settings.encoder_lr, "share": settings.encoder_lr},
        {"params": list(decoder.parameters()), "lr": settings.lr, "share": 1.0},
    ]
