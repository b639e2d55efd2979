"""Photometric error: how badly the nearest-looking warped source explains each reference pixel.

    a       = (μx - μy)² / (μx² + μy² + c1)              luminance term, 0 for c1 = ∞
    b       = Var(x - y) / (Var x + Var y + c2)          contrast term, 0 for c2 = ∞
    ssim    = mean over channels of (a + b - a·b) / 2    = (1 - SSIM) / 2, in [0, 1] without a clamp
    pair    = ssim_weight · ssim + l1_weight · mean over channels of |x - y|
    error   = min over sources of pair(warped)           ties: the smaller source
    auto_mask = error < min over sources of pair(sources)

μ and Var are taken over 3x3 windows, which exist for the inner (H-2)x(W-2) pixels; the border mirrors them
(reflection padding of the error map). (1 - SSIM) / 2 is written through Var(x - y), which is the same number as
the usual covariance form without its cancellation, and every Var is found from differences between neighbours, which a
flat bright patch has in full precision. With `valid`, an invalid source takes no part in the minimum, and a
pixel without a valid source has error 0 and lies outside `auto_mask`. A NaN spoils the pixels whose window reads it:
their error is NaN, their mask False and the gradient that passes through them 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, no_autocast
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register

SSIM_WEIGHT, L1_WEIGHT = 3.0, 2.0
C1, C2 = inf, 9e-6


class PhotometricErrorResult(NamedTuple):
    error: Tensor
    """[B,H,W], float32 (float64 for float64)"""
    auto_mask: Tensor
    """[B,H,W] bool, True where the warped error is strictly smaller than that of the unwarped sources"""


def photometric_error_reference(
    reference: Tensor,
    warped: Tensor,
    sources: Tensor,
    *,
    valid: Tensor | None = None,
    ssim_weight: float = SSIM_WEIGHT,
    l1_weight: float = L1_WEIGHT,
    c1: float = C1,
    c2: float = C2,
) -> tuple[Tensor, Tensor]:
    weights = (ssim_weight, l1_weight, c1, c2)
    identity = identity_error_reference(reference, sources, *weights)
    error = min_over_sources(pair_error(reference, warped, *weights), valid)
    auto_mask = error < identity
    return error, auto_mask if valid is None else auto_mask & valid.any(1)


@torch.no_grad()
def identity_error_reference(
    reference: Tensor, sources: Tensor, ssim_weight: float, l1_weight: float, c1: float, c2: float
) -> Tensor:
    """The error [B,H,W] of the unwarped sources, which the warped ones have to beat."""
    return min_over_sources(pair_error(reference, sources, ssim_weight, l1_weight, c1, c2))


def pair_error(reference: Tensor, images: Tensor, ssim_weight: float, l1_weight: float, c1: float, c2: float) -> Tensor:
    """Error [B,S,H,W] of each of the `images` [B,S,C,H,W] against `reference` [B,C,H,W]."""
    dtype = torch.promote_types(torch.promote_types(reference.dtype, images.dtype), torch.float32)
    x, y = images.to(dtype), reference.to(dtype).unsqueeze(1)
    spoiled = (x.detach().sum(2) + y.detach().sum(2)) * 0  # 0, or NaN at a pixel that is not finite
    spoiled = spoiled + F.pad(_mean3x3(spoiled), (1, 1, 1, 1), mode="reflect")
    # Arithmetic on finite numbers only: otherwise the zero gradient of a masked NaN pixel becomes 0 · NaN.
    x, y = x.nan_to_num(0.0, 0.0, 0.0), y.nan_to_num(0.0, 0.0, 0.0)

    difference = x - y
    ssim = F.pad(_ssim_error(x, y, difference, c1, c2).mean(2), (1, 1, 1, 1), mode="reflect")
    error = ssim_weight * ssim + l1_weight * difference.abs().mean(2)
    return torch.where(spoiled == 0, error, torch.nan)


def min_over_sources(error: Tensor, valid: Tensor | None = None) -> Tensor:
    """Minimum [B,H,W] of `error` [B,S,H,W]; the gradient goes to the smallest source that reaches it, undivided."""
    if valid is not None:
        error = torch.where(valid, error, inf)
    best = error[:, 0]
    for candidate in error.unbind(1)[1:]:
        best = torch.where((candidate < best) | candidate.isnan(), candidate, best)
    return best if valid is None else torch.where(valid.any(1), best, 0.0)


def _ssim_error(x: Tensor, y: Tensor, difference: Tensor, c1: float, c2: float) -> Tensor:
    (mean_x, variance_x), (mean_y, variance_y) = _moments3x3(x), _moments3x3(y)
    mean_d, variance_d = _moments3x3(difference)
    luminance = contrast = x.new_zeros(())
    if c1 != inf:
        luminance = mean_d**2 / (mean_x**2 + mean_y**2 + c1)
    if c2 != inf:
        contrast = variance_d / (variance_x + variance_y + c2)
    if c1 == inf or c2 == inf:
        return (contrast if c1 == inf else luminance) * 0.5
    return (luminance + contrast - luminance * contrast) * 0.5


def _moments3x3(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over 3x3 windows, [...,H,W] -> [...,H-2,W-2] each.

    The variance is the mean of the columns' variances and the variance of their means, and all squares are of
    differences between neighbours: E[x²] - E[x]² of a flat bright patch has no digit left where c2 = 9e-6 matters.
    """
    mean, within = _moments3(image, -2)
    means, between = _moments3(mean, -1)
    width = within.shape[-1] - 2
    within = sum(within.narrow(-1, i, width) for i in range(1, 3)) + within.narrow(-1, 0, width)
    return means, within / 3 + between


def _moments3(image: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of three neighbours along `dim`."""
    before, here, after = (image.narrow(dim, i, image.shape[dim] - 2) for i in range(3))
    down, up = before - here, after - here
    shift = (down + up) / 3
    return here + shift, (down * down + up * up) / 3 - shift * shift


def _mean3x3(image: Tensor) -> Tensor:
    """Mean over 3x3 windows, [...,H,W] -> [...,H-2,W-2]."""
    lead = image.shape[:-2]
    pooled = F.avg_pool2d(image.reshape(-1, 1, *image.shape[-2:]), 3, stride=1)
    return pooled.reshape(*lead, *pooled.shape[-2:])


def check_photometric_weights(name: str, ssim_weight: float, l1_weight: float, c1: float, c2: float) -> None:
    for label, weight in (("ssim_weight", ssim_weight), ("l1_weight", l1_weight)):
        if not 0 <= weight < inf:
            raise ValueError(f"{name}: {label} is {weight}, it should be finite and not negative")
    if not (c1 > 0 and c2 > 0) or (c1 == inf and c2 == inf):
        raise ValueError(f"{name}: c1 = {c1} and c2 = {c2} should be positive and not both infinite")


def _allocate_fwd(
    reference: Tensor, warped: Tensor, sources: Tensor, valid: Tensor | None, *weights: float
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = reference.shape
    error = reference.new_empty((batch, height, width), dtype=torch.promote_types(reference.dtype, torch.float32))
    return error, torch.empty_like(error, dtype=torch.bool)


def _allocate_bwd(
    grad_error: Tensor,
    reference: Tensor,
    warped: Tensor,
    valid: Tensor | None,
    ssim_weight: float,
    l1_weight: float,
    c1: float,
    c2: float,
    need_reference: bool,
) -> tuple[Tensor, Tensor]:
    return warped.new_empty(warped.shape), reference.new_empty(reference.shape if need_reference else 0)


_fwd = native.define(
    "photometric_error_fwd(Tensor reference, Tensor warped, Tensor sources, Tensor? valid, float ssim_weight,"
    " float l1_weight, float c1, float c2) -> (Tensor, Tensor)",
    _allocate_fwd,
    batched=True,
)
_bwd = native.define(
    "photometric_error_bwd(Tensor grad_error, Tensor reference, Tensor warped, Tensor? valid, float ssim_weight,"
    " float l1_weight, float c1, float c2, bool need_reference) -> (Tensor, Tensor)",
    _allocate_bwd,
    batched=True,
)


def _save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Tensor, Tensor]) -> None:
    """Inputs and nothing else: windows and minima are found again."""
    reference, warped, _, valid, *ctx.weights = inputs
    ctx.save_for_backward(reference, warped, valid)
    ctx.mark_non_differentiable(outputs[1])


def _gradients(ctx: Any, grad_error: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    need_reference = ctx.needs_input_grad[0]
    grad_warped, grad_reference = _bwd(grad_error, *ctx.saved_tensors, *ctx.weights, need_reference)
    return grad_reference if need_reference else None, grad_warped, None, None, None, None, None, None


_differentiable = differentiate(_fwd, _save, _gradients)


def _native(
    reference: Tensor,
    warped: Tensor,
    sources: Tensor,
    *,
    valid: Tensor | None,
    ssim_weight: float,
    l1_weight: float,
    c1: float,
    c2: float,
) -> tuple[Tensor, Tensor]:
    return _differentiable(reference, warped, sources, valid, ssim_weight, l1_weight, c1, c2)


def _sample_inputs(device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def images(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def sample(
        label: str, batch: int, count: int, height: int, width: int, masked: bool = False, **kwargs: Any
    ) -> Sample:
        reference, sources = images(batch, 3, height, width), images(batch, count, 3, height, width)
        warped = 0.7 * reference.unsqueeze(1) + 0.3 * images(batch, count, 3, height, width)
        if masked:
            kwargs["valid"] = (torch.rand((batch, count, height, width), generator=generator) > 0.3).to(device)
        return Sample((reference, warped.requires_grad_(), sources), kwargs, label)

    yield sample("two sources, wider than a vector", 2, 2, 6, 37)
    yield sample("pairs of columns, more than a warp has", 2, 2, 6, 34)
    yield sample("smallest image", 1, 1, 4, 4)
    yield sample("three sources, some invalid", 1, 3, 9, 7, masked=True)
    yield sample("usual SSIM constants", 1, 2, 5, 18, c1=1e-4, c2=9e-4)
    yield sample("luminance only", 1, 2, 5, 6, c1=1e-4, c2=inf)
    yield sample("no frames", 0, 2, 4, 5)


def _bytes_moved(sample: Sample) -> int:
    reference, warped, sources = sample.args
    pixels = reference.numel() // reference.shape[1]
    read = sum(tensor.numel() * tensor.element_size() for tensor in (reference, warped, sources))
    return read + pixels * (torch.promote_types(warped.dtype, torch.float32).itemsize + 1)


OP = register(
    Operator(
        "photometric_error",
        reference=photometric_error_reference,
        native=_native,
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def photometric_error(
    reference: Tensor,
    warped: Tensor,
    sources: Tensor,
    *,
    valid: Tensor | None = None,
    ssim_weight: float = SSIM_WEIGHT,
    l1_weight: float = L1_WEIGHT,
    c1: float = C1,
    c2: float = C2,
    backend: str | None = None,
) -> PhotometricErrorResult:
    """Per-pixel minimum over sources of SSIM error and L1, and the mask of pixels that warping explains better.

    Args:
        reference: [B,3,H,W] image in [0,1], H and W at least 4.
        warped: [B,S,3,H,W] sources looked up at the reference's pixels.
        sources: [B,S,3,H,W] the same sources unwarped (no gradient).
        valid: [B,S,H,W] bool, False where a source takes no part in the minimum of the warped errors.
        ssim_weight, l1_weight: weights of the two terms.
        c1, c2: SSIM's constants; the default c1 = inf keeps the contrast term only. Not both infinite.

    Returns:
        error: [B,H,W], float32 (float64 for float64); gradients reach `warped` and `reference`.
        auto_mask: [B,H,W] bool, True where the warped error is strictly the smaller one.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or constant, named. More source images than the CUDA kernels
            take, which are 5 of float32 and 16 bit, 4 of float64; backend="reference" has no such limit.

    The variant of SSIM is that of Li et al., "Unsupervised Monocular Depth Learning in Dynamic Scenes", CoRL 2020;
    minimum and auto-mask are those of Godard et al., "Digging into Self-Supervised Monocular Depth Estimation", ICCV
    2019.
    """
    sizes = Shapes("photometric_error", reference, warped, sources, valid)
    if not sizes.known:
        sizes.tensor("reference", reference, "B 3 H W", image=True)
        sizes.tensor("warped", warped, "B S 3 H W", image=True)
        sizes.tensor("sources", sources, "B S 3 H W", image=True)
        if valid is not None:
            sizes.tensor("valid", valid, "B S H W", dtype=torch.bool)
        check_image_size("photometric_error", sizes)
        sizes.remember(reference, warped, sources, valid)
    check_photometric_weights("photometric_error", ssim_weight, l1_weight, c1, c2)
    implementation = OP.implementation(backend, warped)
    with no_autocast(warped.device.type):
        return PhotometricErrorResult(
            *implementation(
                reference,
                warped,
                sources.detach(),
                valid=valid,
                ssim_weight=ssim_weight,
                l1_weight=l1_weight,
                c1=c1,
                c2=c2,
            )
        )


def check_image_size(name: str, sizes: Shapes) -> None:
    if sizes["H"] < 4 or sizes["W"] < 4:
        raise ValueError(f"{name}: images are {sizes['H']}x{sizes['W']}, SSIM needs at least 4x4")
    if sizes["S"] < 1:
        raise ValueError(f"{name}: no source image (S = 0), at least one is needed")
