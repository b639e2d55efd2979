"""What is exported: a depth net whose sizes stay free, with or without the way from pictures to its input and back."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mcd.errors import McdError
from mcd.inference.predictor import STRIDE

INPUT, OUTPUT = "image", "depth"
MOST_SIDE = 4096


class ExportError(McdError, RuntimeError):
    """A net that cannot be exported, or a file that does not compute what the net does."""


class Bare(nn.Module):
    """image [B, 3, h, w] in [0, 1] to depth [B, 1, h, w], float32."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)[0]


class WithPreprocessing(nn.Module):
    """Pictures image [B, H, W, 3], uint8, of any size to depth [B, H, W], float32.

    The net sees them at ``size``, made smaller by Lanczos as in training, but without rounding to levels between; the
    inverse depth is interpolated back.
    """

    def __init__(self, net: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        rows, columns = lanczos(height, self.size[0]), lanczos(width, self.size[1])
        pixels = image.permute(0, 3, 1, 2).to(torch.float32) / 255
        seen = (rows @ (pixels @ columns.T)).clamp(0, 1)
        inverse = F.interpolate(1 / self.net(seen)[0], (height, width), mode="bilinear", align_corners=False)
        return (1 / inverse)[:, 0]


def lanczos(old: int, new: int) -> Tensor:
    """Weights [new, old] of Lanczos resampling with three lobes, each row of sum 1: Pillow's filter as a matrix.

    Only tensors are computed with, so that ``old`` may be a symbol.
    """
    pixels = torch.arange(old, dtype=torch.float32) + 0.5
    shrink = torch.full((), old, dtype=torch.float32) / new
    centres = (torch.arange(new, dtype=torch.float32) + 0.5) * shrink
    x = torch.pi * (pixels[None] - centres[:, None]).abs() / shrink.clamp(min=1)
    # sinc(x) sinc(x / 3), 1 at 0.
    away = x.clamp(min=1e-4)
    weights = torch.where(x < 3 * torch.pi, 3 * torch.sin(away) * torch.sin(away / 3) / away**2, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


class _Padded(nn.Module):
    """A convolution with TensorFlow's 'same' padding, for inputs that its stride divides: the padding is a constant.

    timm computes it from the size at every call, and symbolic sizes make such expressions grow without end.
    """

    def __init__(self, convolution: Conv2dSame):
        super().__init__()
        self.convolution = convolution
        wide = [
            dilation * (kernel - 1) + 1 - stride
            for kernel, stride, dilation in zip(
                convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
            )
        ]
        (top, bottom), (left, right) = ((max(total, 0) // 2, max(total, 0) - max(total, 0) // 2) for total in wide)
        self.padding = (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        return F.conv2d(F.pad(x, self.padding), c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


def with_constant_padding(net: nn.Module) -> nn.Module:
    """A copy of a net that computes the same for images whose sides are multiples of 32."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv2dSame):
                setattr(module, name, _Padded(child))
    return net


@dataclass(frozen=True)
class Request:
    """What is to be exported."""

    size: tuple[int, int]
    """Height and width at which the net sees images."""
    batch: int | None = None
    """None: any."""
    fixed_size: bool = False
    preprocessing: bool = False

    def module(self, net: nn.Module) -> nn.Module:
        net = with_constant_padding(net)
        return (WithPreprocessing(net, self.size) if self.preprocessing else Bare(net)).eval().requires_grad_(False)

    def example(self, batch: int | None = None, size: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
        """An input of noise."""
        generator = torch.Generator().manual_seed(seed)
        count, (height, width) = self.batch or batch or 2, size or self.size
        if self.preprocessing:
            return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
        return torch.rand(count, 3, height, width, generator=generator)

    def other_examples(self) -> list[Tensor]:
        """Inputs of other sizes than the example's, as far as they are free."""
        height, width = self.size
        other = (height + 37, width + 11) if self.preprocessing else (height + STRIDE, width + 2 * STRIDE)
        sizes = [self.size] if self.fixed_size else [other, self.size]
        counts = [self.batch] if self.batch else [1, 3]
        pairs = itertools.product(counts, sizes)
        return [self.example(count, size, seed) for seed, (count, size) in enumerate(pairs)]

    def dimensions(self) -> dict[str, dict[int, Any]]:
        free: dict[int, Any] = {} if self.batch else {0: Dim("batch", min=1, max=1024)}
        if not self.fixed_size and self.preprocessing:
            free |= {axis: Dim(name, min=8, max=2 * MOST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
        elif not self.fixed_size:
            steps = (Dim(name, min=2, max=MOST_SIDE // STRIDE) for name in ("rows", "columns"))
            free |= {axis: STRIDE * step for axis, step in zip((2, 3), steps, strict=True)}
        return {INPUT: free}


def trace(net: nn.Module, request: Request) -> ExportedProgram:
    """The graph of a net.

    Raises:
        ExportError: torch cannot make one.
    """
    try:
        # Of a net that it refuses, torch prints the graph so far.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            return torch.export.export(
                request.module(net), (request.example(),), dynamic_shapes=request.dimensions(), strict=False
            )
    except Exception as error:  # torch raises whatever the net leads it to
        raise ExportError(f"torch.export makes no graph of the net: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
