"""Losses as modules: an operator whose options and backend are bound once, when the module is built."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from mcd.ops.smoothness_loss import smoothness_loss
from mcd.ops.view_synthesis_loss import view_synthesis_loss


class ViewSynthesisLoss(nn.Module):
    """`view_synthesis_loss` with its keyword arguments bound; called with images, depths and cameras."""

    def __init__(self, **options: Any):
        super().__init__()
        self.function = partial(view_synthesis_loss, **options)

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class SmoothnessLoss(nn.Module):
    """`smoothness_loss` with its backend bound; called with disparities and images (or masks=)."""

    def __init__(self, *, backend: str | None = None):
        super().__init__()
        self.function = partial(smoothness_loss, backend=backend)

    def forward(self, *arguments: Any, **guides: Any) -> Any:
        return self.function(*arguments, **guides)
