"""Depth networks. A new one is one file here: NAME.py with ``build(*, pretrained: bool) -> nn.Module``.

forward(image [B, 3, H, W] in [0, 1]) -> depths [B, 1, H >> s, W >> s] for s = 0..3, float32, in [0.1, 100], in an
arbitrary unit. H and W are multiples of 32. Files whose name begins with an underscore are no networks.
"""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

DEPTH_NETS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def build_depth_net(name: str, *, pretrained: bool = False) -> nn.Module:
    """The depth network called ``name``; ``pretrained`` starts its encoder from ImageNet weights.

    Raises:
        ValueError: there is no such network, or it has no ImageNet weights.
        PretrainedError: the weights cannot be had.
    """
    if name not in DEPTH_NETS:
        raise ValueError(f"no depth net '{name}'; there are {', '.join(DEPTH_NETS)}")
    return importlib.import_module(f"{__name__}.{name}").build(pretrained=pretrained)


def freeze_encoder(net: nn.Module, blocks: int) -> None:
    """Keep a depth net's encoder from changing: its stem and first blocks, and all of its normalisation statistics.

    Raises:
        ValueError: the encoder has fewer blocks that can be frozen.
    """
    encoder = net.encoder
    assert isinstance(encoder, nn.Module)
    early = list(getattr(encoder, "blocks", ()))
    if blocks > len(early):
        raise ValueError(f"{type(net).__name__} has an encoder of {len(early)} blocks that can be frozen, not {blocks}")
    encoder.eval()
    if blocks:
        for module in (encoder.conv_stem, encoder.bn1, *early[:blocks]):
            module.requires_grad_(False)
