"""View-synthesis loss: the reference image rebuilt from its neighbours by predicted depth and motion, at every scale.

For each scale s, with warped_i = backward_warp(sources_i, depths_s, K, T_src_ref_i, motion_i):

    error_s, auto_mask_s = photometric_error(reference, warped, sources, valid)
    losses_s = Σ auto_mask_s · error_s / Σ (auto_mask_s + 1e-10)          sums over the batch and its pixels
    loss     = Σ_s scale_weights_s · losses_s

`mask_invalid` drops the pixels that leave a source's frame or lie behind its camera (the published form keeps them,
clamped to the border). The reference below is the unfused pair; the identity error is the same for all scales. A fused
backend never writes a warped image to memory. A NaN spoils the pixels that read it; they fall out of the mask. No
pixels: loss 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.backward_warp import backward_warp_reference
from mcd.ops.contract import Shapes, computed, for_each, no_autocast
from mcd.ops.photometric_error import (
    C1,
    C2,
    L1_WEIGHT,
    SSIM_WEIGHT,
    check_image_size,
    check_photometric_weights,
    identity_error_reference,
    min_over_sources,
    pair_error,
)
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register


class ViewSynthesisLossResult(NamedTuple):
    loss: Tensor
    """scalar"""
    losses: Tensor
    """[scales], detached"""
    auto_mask: Tensor
    """[B,H,W] bool of the first scale, True where the warped error counts"""


def view_synthesis_loss_reference(
    reference: Tensor,
    sources: Tensor,
    depths: Sequence[Tensor],
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    scale_weights: Sequence[float] | None = None,
    mask_invalid: bool = True,
    ssim_weight: float = SSIM_WEIGHT,
    l1_weight: float = L1_WEIGHT,
    c1: float = C1,
    c2: float = C2,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (ssim_weight, l1_weight, c1, c2)
    batch, count = sources.shape[:2]
    identity = identity_error_reference(reference, sources, *weights)
    flat_sources = sources.to(depths[0].dtype).flatten(0, 1)
    cameras = K.repeat_interleave(count, 0), T_src_ref.flatten(0, 1), None if motion is None else motion.flatten(0, 1)

    losses, masks = [], []
    for depth in depths:
        warped, _, valid = backward_warp_reference(
            flat_sources, depth.repeat_interleave(count, 0), *cameras, return_coords=True
        )
        valid = valid.reshape(batch, count, *valid.shape[-2:]) if mask_invalid else None
        error = min_over_sources(pair_error(reference, warped.reshape(sources.shape), *weights), valid)
        mask = error < identity
        mask = mask if valid is None else mask & valid.any(1)
        total = torch.where(mask, error, 0.0).sum()
        losses.append(total / (mask.sum().to(total.dtype) + 1e-10 * max(mask.numel(), 1)))
        masks.append(mask)
    if scale_weights is None:
        scale_weights = [1 / len(depths)] * len(depths)
    loss = torch.stack([weight * value for weight, value in zip(scale_weights, losses, strict=True)]).sum()
    return loss, torch.stack(losses).detach(), masks[0]


def _allocate_fwd(
    reference: Tensor,
    sources: Tensor,
    depths: Sequence[Tensor],
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    scale_weights: Sequence[float],
    mask_invalid: bool,
    ssim_weight: float,
    l1_weight: float,
    c1: float,
    c2: float,
    need_grad: bool,
    need_motion: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """loss, losses, auto_mask; gradients of depths, each to be multiplied by its scale's coefficient, and of K,
    T_src_ref and motion; the coefficients."""

    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        return K.new_empty(tensor.shape if tensor is not None and needed else 0)

    batch, _, height, width = reference.shape
    return (
        K.new_empty(()),
        K.new_empty(len(depths)),
        K.new_empty((batch, height, width), dtype=torch.bool),
        [like(depth, need_grad) for depth in depths],
        like(K, need_grad),
        like(T_src_ref, need_grad),
        like(motion, need_motion),
        K.new_empty(len(depths)),
    )


def _workspace_fwd(*arguments: Any) -> tuple[Tensor | None, ...]:
    """The gradient of motion at each scale, as the scales' coefficients are known last; on CUDA also the sums of
    strips, and a plane for the identity error and for the gradient of each upsampled depth."""
    reference, sources, depths, motion = arguments[0], arguments[1], arguments[2], arguments[5]
    need_grad, need_motion = arguments[-2:]
    like = depths[0]
    motion_parts = like.new_empty((len(depths), *motion.shape)) if need_motion else None
    if not reference.is_cuda:
        return motion_parts, None, None
    batch, _, height, width = reference.shape
    strips = max(-(-batch * -(-width // 2) // (30 - 2 * (width % 2))), 1)
    tiles = -(-height // _STRIP_ROWS)
    smaller = sum(depth.shape[2:] != reference.shape[2:] for depth in depths) if need_grad else 0
    sums = len(depths) * tiles * sources.shape[1] * (2 * strips + _CAMERA_SUMS * (strips + batch))
    return motion_parts, like.new_empty(sums, dtype=torch.float64), like.new_empty((1 + smaller, batch, height, width))


_STRIP_ROWS = 40  # kWalkRows of csrc/view_synthesis_loss/walk.cuh
_CAMERA_SUMS = 12  # kCameraSums of csrc/view_synthesis_loss/view_synthesis_loss.h


_fwd = native.define(
    "view_synthesis_loss_fwd(Tensor reference, Tensor sources, Tensor[] depths, Tensor K, Tensor T_src_ref,"
    " Tensor? motion, float[] scale_weights, bool mask_invalid, float ssim_weight, float l1_weight, float c1, float c2,"
    " bool need_grad, bool need_motion) -> (Tensor, Tensor, Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor)",
    _allocate_fwd,
    _workspace_fwd,
)


def _launch_bwd(grad_loss: Tensor, grads: Sequence[Tensor], coefficients: Tensor, *arguments: Any) -> None:
    """Finds the gradients: those of K, T_src_ref and motion as they are, those of depths by their coefficients."""
    outputs = arguments[-1]
    factors = [grad_loss, grad_loss, grad_loss, *(grad_loss * coefficients).unbind()]
    for grad, factor, output in zip(grads, factors, outputs, strict=True):
        torch.mul(grad, factor, out=output)


_bwd = native.define_in_torch(
    "view_synthesis_loss_bwd(Tensor grad_loss, Tensor[] grads, Tensor coefficients, Tensor[] inputs) -> Tensor[]",
    lambda grad_loss, grads, coefficients, inputs: [torch.empty_like(grad) for grad in grads],
    _launch_bwd,
)


def _prepare(inputs: Sequence[Any]) -> Sequence[Any]:
    """The loss is a scalar, so its gradients are found with it, if any are needed."""
    depths, K, T_src_ref, motion = inputs[2:6]
    need_motion = motion is not None and motion.requires_grad
    return *inputs[:-2], need_motion or any(x.requires_grad for x in (K, T_src_ref, *depths)), need_motion


def _save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Any, ...]) -> None:
    """The gradients alone; the inputs are saved to tell them apart from constants in a second derivative."""
    depths, *cameras = inputs[2:6]
    _, losses, auto_mask, grad_depths, *rest = outputs
    ctx.save_for_backward(*rest, *grad_depths, *cameras, *depths)
    ctx.scales = len(depths)
    ctx.mark_non_differentiable(losses, auto_mask, *grad_depths, *rest)


def _gradients(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
    grad_K, grad_T, grad_motion, coefficients, *saved = ctx.saved_tensors
    inputs = [tensor for tensor in saved[ctx.scales :] if tensor is not None]
    grads = _bwd(grad_loss, [grad_K, grad_T, grad_motion, *saved[: ctx.scales]], coefficients, inputs)
    needs_motion = ctx.needs_input_grad[2 + ctx.scales + 2]
    return None, None, grads[3:], grads[0], grads[1], grads[2] if needs_motion else None, *[None] * 8


_differentiable = differentiate(_fwd, _save, _gradients, _prepare)


def _native(
    reference: Tensor,
    sources: Tensor,
    depths: Sequence[Tensor],
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None,
    *,
    scale_weights: Sequence[float] | None,
    mask_invalid: bool,
    ssim_weight: float,
    l1_weight: float,
    c1: float,
    c2: float,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [1 / len(depths)] * len(depths) if scale_weights is None else [float(weight) for weight in scale_weights]
    options = (weights, mask_invalid, ssim_weight, l1_weight, c1, c2, False, False)
    loss, losses, auto_mask, *_ = _differentiable(reference, sources, list(depths), K, T_src_ref, motion, *options)
    return loss, losses, auto_mask


def _sample_inputs(device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        value = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return value.to(device, dtype)

    def sample(
        label: str, batch: int, count: int, height: int, width: int, scales: int, moving: bool = False, **kwargs: Any
    ) -> Sample:
        depths = [
            uniform(4, 6, batch, 1, max(height >> s, 1), max(width >> s, 1)).requires_grad_() for s in range(scales)
        ]
        K = torch.tensor([[0.8 * width, 0, 0.48 * width], [0, 0.9 * width, 0.52 * height], [0, 0, 1]])
        K = K.to(device, dtype).repeat(batch, 1, 1)
        T = torch.eye(4).to(device, dtype).repeat(batch, count, 1, 1)
        T[..., :3, :] += uniform(-0.02, 0.02, batch, count, 3, 4)
        T[..., :3, 3] *= 8
        motion = uniform(-2, 2, batch, count, 2, height, width).requires_grad_() if moving else None
        reference, sources = uniform(0, 1, batch, 3, height, width), uniform(0, 1, batch, count, 3, height, width)
        return Sample((reference, sources, depths, K.requires_grad_(), T.requires_grad_(), motion), kwargs, label)

    yield sample("four scales, two sources", 2, 2, 32, 33, 4)
    yield sample("residual motion", 2, 2, 9, 18, 2, moving=True)
    yield sample("published form, one source", 1, 1, 8, 10, 1, mask_invalid=False)
    yield sample("three sources, own weights", 1, 3, 7, 33, 2, scale_weights=[0.75, 0.25])
    yield sample("usual SSIM constants", 1, 2, 6, 20, 2, c1=1e-4, c2=9e-4)
    yield sample("smallest image", 2, 2, 4, 4, 3)
    yield sample("no frames", 0, 2, 8, 8, 2)


def _bytes_moved(sample: Sample) -> int:
    """Every image, depth, motion once and the mask: what no implementation can avoid."""
    reference, sources, depths, _, _, motion = sample.args
    tensors = [reference, sources, *depths, *([] if motion is None else [motion])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + reference.numel() // 3


OP = register(
    Operator(
        "view_synthesis_loss",
        reference=view_synthesis_loss_reference,
        native=_native,
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def view_synthesis_loss(
    reference: Tensor,
    sources: Tensor,
    depths: Sequence[Tensor],
    K: Tensor,
    T_src_ref: Tensor,
    motion: Tensor | None = None,
    *,
    scale_weights: Sequence[float] | None = None,
    mask_invalid: bool = True,
    ssim_weight: float = SSIM_WEIGHT,
    l1_weight: float = L1_WEIGHT,
    c1: float = C1,
    c2: float = C2,
    backend: str | None = None,
) -> ViewSynthesisLossResult:
    """Masked photometric loss of a reference image rebuilt from its sources, over all scales.

    Args:
        reference: [B,3,H,W] image in [0,1], H and W at least 4 (no gradient).
        sources: [B,S,3,H,W] neighbouring images (no gradient).
        depths: one [B,1,h,w] per scale, 1 <= h <= H, 1 <= w <= W; upsampled bilinearly to H x W.
        K: [B,3,3] intrinsics for H x W, any invertible matrix.
        T_src_ref: [B,S,4,4], X_src = T_src_ref X_ref. It and K may be those of all samples: [1,…], or no batch.
        motion: [B,S,2,H,W] residual motion, homogeneous (pixel · depth), the same at every scale.
        scale_weights: one number per scale, default 1 / number of scales.
        mask_invalid: leave out-of-frame pixels out; False keeps them, clamped to the border, as published.
        ssim_weight, l1_weight, c1, c2: as in `photometric_error`.

    Returns:
        loss: the scalar; gradients reach depths, K, T_src_ref and motion.
        losses: [scales], detached.
        auto_mask: [B,H,W] bool of the first scale, True where the warped error counts.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or constant, named.

    The loss is that of Nguyen et al., CVPR 2024.
    """
    name = "view_synthesis_loss"
    if isinstance(depths, Tensor) or not isinstance(depths, Sequence):
        raise TypeError(f"{name}: depths is a {type(depths).__name__}, it should be a list of tensors, one per scale")
    if not depths:
        raise ValueError(f"{name}: depths is empty, it should hold one tensor per scale")
    sizes = Shapes(name, reference, sources, K, T_src_ref, motion, *depths)
    if not sizes.known:
        sizes.tensor("reference", reference, "B 3 H W", image=True)
        sizes.tensor("sources", sources, "B S 3 H W", image=True)
        K, T_src_ref, motion, *depths = computed(K, T_src_ref, motion, *depths, beside=reference)
        K, T_src_ref = for_each(K, sizes["B"]), for_each(T_src_ref, sizes["B"], sizes["S"])
        for scale, depth in enumerate(depths):
            sizes.tensor(f"depths[{scale}]", depth, f"B 1 h{scale} w{scale}")
            if not (1 <= sizes[f"h{scale}"] <= sizes["H"] and 1 <= sizes[f"w{scale}"] <= sizes["W"]):
                raise ValueError(
                    f"{name}: depths[{scale}] is {tuple(depth.shape[-2:])}, it should be between 1x1 and "
                    f"the images' {sizes['H']}x{sizes['W']}"
                )
        sizes.tensor("K", K, "B 3 3")
        sizes.tensor("T_src_ref", T_src_ref, "B S 4 4")
        if motion is not None:
            sizes.tensor("motion", motion, "B S 2 H W")
        check_image_size(name, sizes)
        sizes.remember(reference, sources, K, T_src_ref, motion, *depths)
    if scale_weights is not None and len(scale_weights) != len(depths):
        raise ValueError(f"{name}: scale_weights has {len(scale_weights)} entries for {len(depths)} depths")
    check_photometric_weights(name, ssim_weight, l1_weight, c1, c2)
    implementation = OP.implementation(backend, depths[0])
    with no_autocast(reference.device.type):
        return ViewSynthesisLossResult(
            *implementation(
                reference.detach(),
                sources.detach(),
                depths,
                K,
                T_src_ref,
                motion,
                scale_weights=scale_weights,
                mask_invalid=mask_invalid,
                ssim_weight=ssim_weight,
                l1_weight=l1_weight,
                c1=c1,
                c2=c2,
            )
        )
