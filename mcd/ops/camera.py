"""Camera geometry that operators share: pixels, their rays, points and back, and images between pixels.

Camera axes: x right, y down, z forward; pixel centres lie at integer coordinates. Points and pixels are columns, row
by row of the image: [...,3,H·W].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel coordinates (x, y, 1) [3,H·W], in the dtype and on the device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device),
        torch.arange(width, dtype=like.dtype, device=like.device),
        indexing="ij",
    )
    return torch.stack((x, y, torch.ones_like(x))).reshape(3, -1)


def inverse_intrinsics(K: Tensor) -> Tensor:
    """K⁻¹ [...,3,3], not finite where `K` has no inverse: without the wait for the device that a check would be."""
    return torch.linalg.inv_ex(K).inverse


def points_of(depth: Tensor, K: Tensor, pixels: Tensor) -> Tensor:
    """depth · K⁻¹ · (x, y, 1)ᵀ: points [...,3,P] in the unit of `depth` [...,1,P], at `pixels` [3,P] or [...,3,P]."""
    return depth * (inverse_intrinsics(K) @ pixels)


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` [B,C,h,w] bilinearly at `size` (H, W); pixel areas are aligned, as in `scale_intrinsics`."""
    if image.shape[-2:] == torch.Size(size):
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def sample_bilinear(image: Tensor, coords: Tensor) -> Tensor:
    """`image` [B,C,H,W] at `coords` [B,2,h,w] (pixel x, y), clamped to the image; NaN coordinates read its last pixel.

    Arithmetic in the dtype of `coords`, the result in that of `image`. No gradient to a coordinate that is clamped.
    """
    height, width = image.shape[-2:]
    normalized = []
    for u, limit in zip(coords.unbind(1), (width - 1, height - 1), strict=True):
        # A comparison, for a clamp would let NaN pass, and its gradient at the limit would reach beyond the image.
        clamped = torch.where(u < limit, u, limit).clamp(min=0)
        normalized.append(clamped * (2 / max(limit, 1)) - 1)
    return _GridSample.apply(image.to(coords.dtype), torch.stack(normalized, -1)).to(image.dtype)


class _GridSample(torch.autograd.Function):
    """`grid_sample` with derivatives of any order: torch's own has the first ones only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, grid = ctx.saved_tensors
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(_gathered, image, grid)[1]
            return pull_back(grad)
        bilinear, zeros = 0, 0
        needed = ctx.needs_input_grad[:2]
        return torch.ops.aten.grid_sampler_2d_backward(grad, image, grid, bilinear, zeros, True, needed)


def _gathered(image: Tensor, grid: Tensor) -> Tensor:
    """What `grid_sample` computes, of operators that torch differentiates as often as it is asked to."""
    height, width = image.shape[-2:]
    rows = image.flatten(2)
    x, y = ((u + 1) * (0.5 * (size - 1)) for u, size in zip(grid.unbind(-1), (width, height), strict=True))
    left, top = x.floor().detach(), y.floor().detach()
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            value = rows.gather(2, index.long().flatten(1).unsqueeze(1).expand(-1, rows.shape[1], -1))
            weight = torch.where(inside, weight_x * weight_y, 0.0).unsqueeze(1)
            total = total + weight * value.unflatten(2, index.shape[1:])
    return total
