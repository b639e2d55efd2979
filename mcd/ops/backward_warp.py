"""Backward warp: look the source image up where each reference pixel moves to.

    X_ref = depth · K⁻¹ · (x, y, 1)ᵀ        back-project; depth is bilinearly upsampled to the image first
    X_src = T_src_ref · X_ref (+ motion)    rigid motion; a 3-D motion is a translation in the source frame
    q     = K · X_src (+ motion)            project; a 2-D motion is in pixel · depth and has no third component
    u     = q_xy / (q_z + 1e-5)
    out   = source(clamp(u))                bilinear; u is clamped to [0, W-1] × [0, H-1], without gradient there

Depth is up to scale, in the unit of the translation. A pixel is valid if q_z > 1e-3 and u lies inside the image. A
pixel whose depth or motion is not finite reads NaN, is not valid, and has no part in any gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.camera import pixel_grid, points_of, sample_bilinear, upsample
from mcd.ops.contract import Shapes, computed, for_each, no_autocast
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register

EPSILON = 1e-5
NEAREST = 1e-3


class BackwardWarpResult(NamedTuple):
    warped: Tensor
    """[B,C,H,W] in the dtype of the source"""
    coords: Tensor
    """[B,2,H,W] pixel x, y after clamping, without a gradient"""
    valid: Tensor
    """[B,1,H,W] bool, in front of the source camera and inside its image"""


def backward_warp_reference(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    return_coords: bool = False,
) -> Any:
    batch, _, height, width = source.shape
    grid = pixel_grid(height, width, like=depth)
    depth = upsample(depth, (height, width)).flatten(2)
    shift = T_src_ref[:, :3, 3:]

    # Replaced by numbers first: a NaN would reach the gradients of T_src_ref and K through products with zero.
    finite = depth.isfinite()
    if motion is not None:
        motion = motion.flatten(2)
        finite = finite & motion.isfinite().all(1, keepdim=True)
        motion = torch.where(finite, motion, 0.0)
    depth = torch.where(finite, depth, 1.0)

    points = points_of(depth, K, grid)
    if motion is not None and motion.shape[1] == 3:
        q = K @ (T_src_ref[:, :3, :3] @ points + shift + motion)
    else:
        q = (K @ T_src_ref[:, :3, :3]) @ points + K @ shift
    q_xy = q[:, :2] + motion if motion is not None and motion.shape[1] == 2 else q[:, :2]
    coords = (q_xy / (q[:, 2:] + EPSILON)).reshape(batch, 2, height, width)

    unusable = ~finite.reshape(batch, 1, height, width) | coords.isnan().any(1, keepdim=True)
    warped = sample_bilinear(source, coords).masked_fill(unusable, torch.nan)
    if not return_coords:
        return warped
    limit = grid[:2, -1].reshape(1, 2, 1, 1)
    inside = ((coords >= 0) & (coords <= limit)).all(1, keepdim=True)
    valid = inside & (q[:, 2:].reshape(batch, 1, height, width) > NEAREST) & ~unusable
    clamped = torch.minimum(coords.detach().clamp(min=0), limit).masked_fill(unusable, torch.nan)
    return warped, clamped, valid


def _allocate_fwd(
    source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor | None, return_coords: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = source.shape
    pixels = (batch, 1, height, width) if return_coords else (0,)
    warped = torch.empty_like(source, memory_format=torch.contiguous_format)
    coords = depth.new_empty((batch, 2, height, width) if return_coords else (0,))
    return warped, coords, depth.new_empty(pixels, dtype=torch.bool)


def _allocate_bwd(
    grad_warped: Tensor,
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    need_source: bool,
    need_geometry: bool,
) -> tuple[Tensor, ...]:
    """Gradients of source, depth, K, T_src_ref, motion; those not needed have no elements."""

    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        if tensor is None or not needed:
            return depth.new_empty(0)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    return like(source, need_source), *(like(tensor, need_geometry) for tensor in (depth, K, T_src_ref, motion))


def _workspace_bwd(
    grad_warped: Tensor,
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    need_source: bool,
    need_geometry: bool,
) -> tuple[Tensor, ...]:
    """Sums of each row for the camera's gradients; depth's gradient before the adjoint of upsampling; the source's
    gradient in fixed point, in which CUDA's atomic sums do not depend on their order."""
    batch, _, height, width = source.shape
    upsampled = depth.shape[2:] != source.shape[2:]
    return (
        depth.new_empty((batch, height, _SUMS) if need_geometry else (0,)),
        depth.new_empty((batch, height, width) if need_geometry and upsampled else (0,)),
        source.new_empty(source.numel() + 1 if need_source and source.is_cuda else 0, dtype=torch.int64),
    )


_SUMS = 18  # kSums of csrc/backward_warp/backward_warp.h

_fwd = native.define(
    "backward_warp_fwd(Tensor source, Tensor depth, Tensor K, Tensor T_src_ref, Tensor? motion, bool return_coords)"
    " -> (Tensor, Tensor, Tensor)",
    _allocate_fwd,
    batched=True,
)
_bwd = native.define(
    "backward_warp_bwd(Tensor grad_warped, Tensor source, Tensor depth, Tensor K, Tensor T_src_ref, Tensor? motion,"
    " bool need_source, bool need_geometry) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _allocate_bwd,
    _workspace_bwd,
    batched=True,
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
        """Inputs and nothing else: where each pixel looked is computed again."""
        ctx.save_for_backward(*inputs[:5])
        ctx.mark_non_differentiable(*outputs[1:])

    def gradients(ctx: Any, grad_warped: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:5]
        grads = bwd(grad_warped, *ctx.saved_tensors, needed[0], any(needed[1:]))
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None

    forward = differentiate(fwd, save, gradients)

    def implementation(
        source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor | None, *, return_coords: bool
    ) -> Any:
        warped, coords, valid = forward(source, depth, K, T_src_ref, motion, return_coords)
        return (warped, coords, valid) if return_coords else warped

    return implementation


def _sample_inputs(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        value = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return value.to(device, dtype)

    def scene(batch: int, channels: int, height: int, width: int, ratio: int, motion: int) -> Sample:
        K = torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)
        K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = 0.9 * width, 1.1 * width, 0.45 * width, 0.55 * height
        K = K.to(device, dtype) + uniform(-0.01, 0.01, batch, 3, 3)
        T = torch.eye(4, device=device, dtype=dtype) + uniform(-0.03, 0.03, batch, 4, 4)
        T[:, 3] = T.new_tensor([0, 0, 0, 1])
        depth = uniform(1, 3, batch, 1, -(-height // ratio), -(-width // ratio))
        moved = (uniform(-0.3, 0.3, batch, motion, height, width),) if motion else ()
        return Sample((uniform(0, 1, batch, channels, height, width), depth, K, T, *moved))

    for label, sizes in {
        "depth of full size": (2, 3, 6, 9, 1, 0),
        "depth of half size, 2-D motion, one channel": (2, 1, 6, 8, 2, 2),
        "depth of a third, 3-D motion": (1, 4, 7, 9, 3, 3),
        "wider than a CPU chunk and a CUDA block": (1, 2, 3, 521, 1, 2),
        "one pixel": (1, 3, 1, 1, 1, 0),
        "no sample": (0, 3, 4, 5, 1, 2),
    }.items():
        sample = scene(*sizes)
        yield Sample(sample.args, {"return_coords": "half" in label}, label)


def _bytes_moved(sample: Sample) -> int:
    source, depth, _, _, *motion = sample.args
    return sum(tensor.numel() * tensor.element_size() for tensor in (source, source, depth, *motion))


OP = register(
    Operator(
        "backward_warp",
        reference=backward_warp_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.backward_warp:backward_warp",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


@overload
def backward_warp(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    return_coords: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def backward_warp(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    return_coords: Literal[True],
    backend: str | None = None,
) -> BackwardWarpResult: ...


@overload
def backward_warp(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    return_coords: bool,
    backend: str | None = None,
) -> Tensor | BackwardWarpResult: ...


def backward_warp(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    return_coords: bool = False,
    backend: str | None = None,
) -> Tensor | BackwardWarpResult:
    """The source image as seen from the reference camera.

    Args:
        source: [B,C,H,W], any channels; float32, float64, bfloat16 or float16. The rest is computed in float32, beside
            a float64 source in float64.
        depth: [B,1,h,w] of the reference view, 1 <= h <= H and 1 <= w <= W, up to scale.
        K: [B,3,3] intrinsics in pixels of H×W, any invertible matrix.
        T_src_ref: [B,4,4], X_src = T_src_ref · X_ref, its translation in the unit of depth. Like K it may be that of
            all samples: [1,…], or without a batch.
        motion: residual motion: [B,2,H,W] in pixel · depth, or [B,3,H,W], a translation in the source frame.
        return_coords: also return where each pixel looked.
        backend: see `mcd.backend`.

    Returns:
        `warped` [B,C,H,W] in the dtype of `source`; with `return_coords` also `coords` [B,2,H,W] (pixel x, y after
        clamping, no gradient) and `valid` [B,1,H,W] bool (in front of the source camera and inside its image).

    Gradients reach depth at its own resolution, K, T_src_ref, motion and source. Nothing is saved for them but the
    inputs. Raises TypeError or ValueError naming the argument that is wrong. Nguyen et al., CVPR 2024, whose published
    code does the same, without `valid`.
    """
    sizes = Shapes("backward_warp", source, depth, K, T_src_ref, motion)
    if not sizes.known:
        depth, K, T_src_ref, motion = _checked(sizes, source, depth, K, T_src_ref, motion)
        sizes.remember(source, depth, K, T_src_ref, motion)
    implementation = OP.implementation(backend, source)
    with no_autocast(source.device.type):
        result = implementation(source, depth, K, T_src_ref, motion, return_coords=return_coords)
    if return_coords:
        return BackwardWarpResult(*result)
    warped: Tensor = result
    return warped


def _checked(
    sizes: Shapes, source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor | None
) -> list[Any]:
    """Depth, cameras and motion as they are computed with."""
    sizes.tensor("source", source, "B C H W", image=True)
    depth, K, T_src_ref, motion = computed(depth, K, T_src_ref, motion, beside=source)
    K, T_src_ref = for_each(K, sizes["B"]), for_each(T_src_ref, sizes["B"])
    sizes.tensor("depth", depth, "B 1 h w")
    sizes.tensor("K", K, "B 3 3")
    sizes.tensor("T_src_ref", T_src_ref, "B 4 4")
    if motion is not None:
        sizes.tensor("motion", motion, "B M H W")
        if sizes["M"] not in (2, 3):
            raise ValueError(f"backward_warp: motion has {sizes['M']} components, it should have 2 or 3")
    sizes.at_least(h=1, w=1)
    if sizes["h"] > sizes["H"] or sizes["w"] > sizes["W"]:
        raise ValueError(
            f"backward_warp: depth is {sizes['h']}x{sizes['w']}, it should not be larger than source, "
            f"{sizes['H']}x{sizes['W']}"
        )
    return [depth, K, T_src_ref, motion]
