"""Pictures of depth, error and motion, and panels of them.

A picture is a tensor [3, H, W] in [0, 1], like the images of a data set; :func:`to_bytes` ends it. The report, the
predictions and TensorBoard draw with these functions, so a colour means the same everywhere: bright is near and dark
is far; in an error map blue is predicted too near and red too far; dark grey is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import flow_to_image

# Colours between which is interpolated. The first map rises steadily in lightness, so it survives a grey print and
# colour blindness; the second runs blue, white, red. The third is Okabe and Ito's, which the colour-blind tell apart.
_DEPTH_COLOURS = "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf"
_ERROR_COLOURS = "0b3c8c 3f7fd0 9cc4ea f4f4f4 f2b79c d5563f 8c0b1d"
_SHARE_COLOURS = "dcdcdc d55e00 0072b2 f0e442 009e73 cc79a7 56b4e9 e69f00"
_UNKNOWN = (0.13, 0.13, 0.15)
# Percentiles of a huge map are those of every n-th of its pixels.
_ENOUGH = 100_000


def depth_range(depth: Tensor, low: float = 0.02, high: float = 0.98) -> tuple[float, float]:
    """Nearest and farthest depth worth a colour: quantiles of the inverse depth over the positive, finite pixels.

    Returns:
        (near, far) in the unit of ``depth``; (1, 2) where no pixel is valid.
    """
    known = depth.detach()[_known(depth)]
    if not known.numel():
        return 1.0, 2.0
    inverse = 1 / known[:: math.ceil(known.numel() / _ENOUGH)].double()
    far, near = torch.quantile(inverse, torch.tensor([low, high], dtype=torch.float64, device=depth.device)).tolist()
    return 1 / near, 1 / far


class RunningRange:
    """The range of colours of a film: :func:`depth_range` over all frames so far, the last ``memory`` of them alike.

    It settles with the first frames and then stays, so that a depth keeps its colour.
    """

    def __init__(self, memory: int = 250):
        self._memory, self._frames = memory, 0
        self._mean = np.zeros(2)

    def update(self, depth: Tensor) -> tuple[float, float]:
        """Nearest and farthest depth worth a colour, this frame among them."""
        self._frames += 1
        self._mean += (np.log(depth_range(depth)) - self._mean) / min(self._frames, self._memory)
        near, far = np.exp(self._mean).tolist()
        return near, far


def colour_depth(depth: Tensor, limits: tuple[float, float] | None = None) -> Tensor:
    """Colour a depth map by its inverse depth.

    Args:
        depth: [H, W]; zero, negative and non-finite pixels are unknown.
        limits: depths of the brightest and the darkest colour; None takes :func:`depth_range`.

    Returns:
        Picture [3, H, W].

    Raises:
        ValueError: ``depth`` is not two-dimensional.
    """
    _check_map("depth", depth)
    near, far = limits or depth_range(depth)
    known = _known(depth)
    inverse = 1 / torch.where(known, depth.detach(), 1).float()
    return _paint((inverse - 1 / far) / max(1 / near - 1 / far, 1e-12), known, _DEPTH_COLOURS)


def colour_error(depth: Tensor, truth: Tensor, limit: float = 2.0) -> Tensor:
    """Colour the ratio of predicted to true depth: blue too near, white right, red too far.

    Args:
        depth, truth: [H, W] in one unit; known where both are positive and finite.
        limit: the ratio (and its inverse) that gets the last colour.

    Raises:
        ValueError: the maps are not two-dimensional or differ in size.
    """
    _check_map("depth", depth)
    if depth.shape != truth.shape:
        raise ValueError(f"depth is {list(depth.shape)} but truth is {list(truth.shape)}; they must have one size")
    known = _known(depth) & _known(truth)
    ratio = (torch.where(known, depth.detach(), 1) / torch.where(known, truth, 1)).float()
    return _paint(0.5 + 0.5 * ratio.log() / math.log(limit), known, _ERROR_COLOURS)


def colour_flow(flow: Tensor) -> Tensor:
    """Colour a field of arrows [2, H, W] as the slots see it: hue is direction, saturation is length.

    White does not move; the colour is full from the 99 % quantile of the lengths on.
    """
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow must be [2, H, W], got {list(flow.shape)}")
    flow = torch.nan_to_num(flow.detach().float())
    length = flow.norm(dim=0)
    longest = torch.quantile(length.flatten()[:: math.ceil(length.numel() / _ENOUGH)], 0.99).clamp(min=1e-12)
    return flow_to_image(flow / length.clamp(min=longest)).float() / 255


def outline(picture: Tensor, mask: Tensor, colour: tuple[float, float, float] = (0.0, 0.9, 0.46)) -> Tensor:
    """A copy of ``picture`` with the inner border of ``mask`` (bool [H, W]) drawn in ``colour``.

    Raises:
        ValueError: ``mask`` has another size than the picture.
    """
    if mask.shape != picture.shape[1:]:
        raise ValueError(f"mask is {list(mask.shape)} but the picture is {list(picture.shape[1:])}")
    around = F.pad(mask, (1, 1, 1, 1))
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return torch.where(mask & ~inside, picture.new_tensor(colour)[:, None, None], picture)


def tint(picture: Tensor, share: Tensor, colour: tuple[float, float, float] = (0.0, 0.9, 0.46)) -> Tensor:
    """The picture in grey, coloured as far as ``share`` ([H, W] in [0, 1]) says.

    Raises:
        ValueError: ``share`` has another size than the picture.
    """
    if share.shape != picture.shape[1:]:
        raise ValueError(f"share is {list(share.shape)} but the picture is {list(picture.shape[1:])}")
    grey = picture.mean(dim=0, keepdim=True).expand_as(picture)
    return torch.lerp(grey, picture.new_tensor(colour)[:, None, None].expand_as(grey), 0.5 * share.to(grey.dtype))


def colour_shares(shares: Tensor) -> Tensor:
    """One colour for each of n <= 8 shares [n, H, W] that sum to 1, mixed accordingly; the first is light grey.

    Raises:
        ValueError: there are more shares than colours.
    """
    colours = torch.tensor([list(bytes.fromhex(colour)) for colour in _SHARE_COLOURS.split()]) / 255
    if len(shares) > len(colours):
        raise ValueError(f"{len(shares)} shares, but only {len(colours)} colours")
    return torch.einsum("nhw,nc->chw", shares.detach().float(), colours[: len(shares)].to(shares.device)).clamp(0, 1)


def gather_points(sparse: Tensor, size: tuple[int, int]) -> Tensor:
    """Sparse depth [H, W] (LiDAR) at a smaller size, for looking at: each cell its nearest point, 0 without any."""
    _check_map("sparse", sparse)
    inverse = torch.where(_known(sparse), 1 / sparse, 0)
    nearest = F.adaptive_max_pool2d(inverse[None, None], size)[0, 0]
    return torch.where(nearest > 0, 1 / nearest, 0)


def resize_picture(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture at another size (height, width)."""
    return F.interpolate(picture[None], size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)


def panel(rows: Sequence[Sequence[Tensor | None]], titles: Sequence[str] = (), gap: int = 4) -> Tensor:
    """Lay pictures out in rows on white, with a title above each column.

    Every cell has the size of the first picture; others are resized, None stays empty.

    Raises:
        ValueError: there is no picture, or a row is longer than the titles.
    """
    pictures = [picture for row in rows for picture in row if picture is not None]
    if not pictures:
        raise ValueError("a panel needs at least one picture")
    columns = max(len(row) for row in rows)
    if titles and len(titles) < columns:
        raise ValueError(f"a row has {columns} pictures but there are {len(titles)} titles")
    height, width = pictures[0].shape[1:]
    top = 16 if titles else 0
    sheet = Image.new("RGB", (columns * (width + gap) + gap, top + len(rows) * (height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), 3), title, fill=(40, 40, 40), font=font)
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            if picture is not None:
                fitted = picture if picture.shape[1:] == (height, width) else resize_picture(picture, (height, width))
                place = (gap + column * (width + gap), top + gap + line * (height + gap))
                sheet.paste(Image.fromarray(to_bytes(fitted)), place)
    return from_bytes(np.asarray(sheet))


def to_bytes(picture: Tensor) -> NDArray[np.uint8]:
    """The picture as uint8 [H, W, 3]."""
    return (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def from_bytes(image: NDArray[np.uint8]) -> Tensor:
    """An image uint8 [H, W, 3] as a picture."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255


def _known(depth: Tensor) -> Tensor:
    return torch.isfinite(depth) & (depth > 0)


def _check_map(name: str, values: Tensor) -> None:
    if values.ndim != 2:
        raise ValueError(f"{name} must be [H, W], got {list(values.shape)}")


def _paint(share: Tensor, known: Tensor, colours: str) -> Tensor:
    table = _table(colours).to(share.device)
    level = (share.clamp(0, 1) * (len(table) - 1)).round().long()
    painted = table[level].permute(2, 0, 1)
    return torch.where(known, painted, painted.new_tensor(_UNKNOWN)[:, None, None])


@cache
def _table(colours: str) -> Tensor:
    """256 colours [256, 3] between the given ones."""
    anchors = torch.tensor([list(bytes.fromhex(colour)) for colour in colours.split()]) / 255
    return F.interpolate(anchors.T[None], 256, mode="linear", align_corners=True)[0].T
