"""A small segmenter, taught in a test what it is to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mcd.nets.segmenter import CLASSES
from mcd.stages.detector import target


def teach(net: nn.Module, images: Sequence[Tensor], masks: Sequence[Tensor], steps: int) -> None:
    """Teach a net the masks [n,H,W] of images [3,H,W] in [0,1] at its own size, as cars."""
    targets = [target(found) for found in masks]
    for wanted in targets:
        wanted["labels"] *= CLASSES.index("car")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    draw = np.random.default_rng(0)
    net.train()
    for _ in range(steps):
        chosen = draw.choice(len(images), 2, replace=False)
        losses = net([images[i] for i in chosen], [targets[i] for i in chosen])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5)
        optimizer.step()
