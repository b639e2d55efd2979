"""Colour jitter, the same for all frames of an item, as the published system draws it.

What is drawn follows the item; what is done with it is an operator on the whole batch: :mod:`mcd.ops.colour_jitter`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcd.config import Augment
from mcd.ops.colour_jitter import KINDS, NONE


def draw_jitter(augment: Augment, rng: np.random.Generator) -> Tensor:
    """Factors of brightness, contrast, saturation and hue, then their numbers in random order: [8] float32."""
    factors = [rng.uniform(*getattr(augment, kind)) for kind in KINDS]
    return torch.tensor([*factors, *rng.permutation(len(KINDS)).tolist()], dtype=torch.float32)


def no_jitter() -> Tensor:
    """The draws of an item that stays as it is, [8] float32."""
    return torch.tensor(NONE)
