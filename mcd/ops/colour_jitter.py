"""Colour jitter of a whole batch of images of bytes, by numbers that were drawn before.

Values are bytes / 255. Each item undergoes four changes, in its own order and by its own factors:

    brightness  clip(factor · x)
    contrast    clip(factor · x + (1 - factor) · mean grey of the image)
    saturation  clip(factor · x + (1 - factor) · grey)
    hue         turned by a share of the colour circle; value and saturation (HSV) stay

with grey = 0.299 r + 0.587 g + 0.114 b. The result is rounded to bytes. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcd.ops import backend as backends
from mcd.ops import native

KINDS = ("brightness", "contrast", "saturation", "hue")
NONE = (1.0, 1.0, 1.0, 0.0, -1.0, -1.0, -1.0, -1.0)
"""The draws of an item that stays as it is."""

_GREY = (0.299, 0.587, 0.114)

_fwd = native.define(
    "colour_jitter_fwd(Tensor images, Tensor draws) -> Tensor", lambda images, _: images.new_empty(images.shape)
)


def colour_jitter(images: Tensor, draws: Tensor, *, backend: str | None = None) -> Tensor:
    """Images with other colours.

    Args:
        images: [B,S,3,H,W] uint8; the S images of an item change alike.
        draws: [B,8] float32: factors of brightness, contrast, saturation and hue (a share of the circle in
            [-0.5, 0.5]), then the numbers of the four in the order in which they act. Where the first of these is
            below 0, the item stays as it is.
        backend: "native" or "reference"; None: what :func:`mcd.set_backend` says, and native where it can serve.

    Returns:
        [B,S,3,H,W] uint8. The two backends differ by one grey level at most.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or device, or an unknown backend.
    """
    if images.dtype != torch.uint8 or draws.dtype != torch.float32:
        raise TypeError(f"colour_jitter: images are uint8 and draws float32, not {images.dtype} and {draws.dtype}")
    if images.ndim != 5 or images.shape[2] != 3 or draws.shape != (len(images), 2 * len(KINDS)):
        raise ValueError(
            f"colour_jitter: expected images [B,S,3,H,W] and draws [B,8], not {list(images.shape)} and "
            f"{list(draws.shape)}"
        )
    if images.device != draws.device:
        raise ValueError(f"colour_jitter: images are on {images.device}, draws on {draws.device}")
    name = backends.chosen("colour_jitter")[0] if backend is None else backend
    if name not in (*backends.BACKENDS, "auto"):
        raise ValueError(f"colour_jitter: unknown backend {name!r}")
    if name == "reference" or native.why_not(images.device.type) is not None:
        return colour_jitter_reference(images, draws)
    return _fwd(images, draws)


def colour_jitter_reference(images: Tensor, draws: Tensor) -> Tensor:
    """The definition, in plain PyTorch; it does not wait for the device."""
    x = images.float() / 255
    changes = (_brightness, _contrast, _saturation, _hue)
    for place in range(len(KINDS)):
        kind = draws[:, len(KINDS) + place].view(-1, 1, 1, 1, 1)
        changed = [change(x, draws[:, number].view(-1, 1, 1, 1, 1)) for number, change in enumerate(changes)]
        for number, result in enumerate(changed):
            x = torch.where(kind == number, result, x)
    same = (draws[:, len(KINDS)] < 0).view(-1, 1, 1, 1, 1)
    return torch.where(same, images, (x * 255 + 0.5).to(torch.uint8))


def _grey(x: Tensor) -> Tensor:
    """Luminance [..., 1, H, W]."""
    red, green, blue = x.unbind(-3)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).unsqueeze(-3)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + (1 - factor) * _grey(x).mean(dim=(-1, -2), keepdim=True)).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + (1 - factor) * _grey(x)).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    red, green, blue = x.unbind(-3)
    value = x.amax(dim=-3)
    chroma = value - x.amin(dim=-3)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    # Position on the circle in sixths, red at 0.
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths = sixths + 6 * shift.squeeze(-3)
    position = torch.stack([torch.remainder(sixths + offset, 6) for offset in (5, 3, 1)], dim=-3)
    return value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(position, 4 - position).clamp(0, 1)
