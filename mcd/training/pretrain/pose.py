"""The pose net's task: true motion between frames of rendered clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mcd.geometry import pose_matrix
from mcd.nets import build_pose_net
from mcd.run.checkpoint import load_weights
from mcd.training.pretrain.data import Batch, Settings, Views
from mcd.training.pretrain.loop import Parts, Task

# A thousandth of a radian moves a pixel as far as a per cent of the way driven does.
TURN = 10.0
SLOW = 0.2  # camera heights; below it errors of the way count as they are, above it as shares


def pose_task(views: Path, settings: Settings, init: Path | None = None) -> Task:
    """Training of the pose net ``settings.net``; translations are in camera heights, as the depth net's depth is."""
    net = build_pose_net(settings.net)
    if init is not None:
        load_weights(init).load_into("pose", net, settings.net)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(batch: Batch) -> tuple[Tensor, Parts]:
        net.train()
        return pose_loss(pose_matrix(*net(batch["first"], batch["second"])), batch["T"])

    groups = [{"params": list(net.parameters()), "lr": settings.lr, "share": 1.0}]
    return Task("pose", settings.net, net, groups, Views(views, settings).pairs, loss)


def pose_loss(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Parts]:
    """Loss of motions [B,4,4] against the true ones."""
    # For small angles half the Frobenius norm of the difference is the angle between the rotations.
    turn = (predicted[:, :3, :3] - truth[:, :3, :3]).square().sum((1, 2)).add(1e-12).sqrt().mean() / 2**0.5
    way = truth[:, :3, 3].norm(dim=1)
    error = (predicted[:, :3, 3] - truth[:, :3, 3]).abs().sum(1)
    shift = (error / (way + SLOW)).mean()
    return TURN * turn + shift, {"turn": turn, "shift": shift}
