"""Losses as modules: an operator whose options and backend are bound once, when the module is built.

What each computes, and the shapes that it takes, stand with the operator of its name in `mcd.ops`. The other operators
are modules in `mcd.modules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mcd.ops.motion_sparsity import motion_sparsity
from mcd.ops.photometric_error import C1, C2, L1_WEIGHT, SSIM_WEIGHT, PhotometricErrorResult, photometric_error
from mcd.ops.scale_invariant_loss import ScaleInvariantLossResult, scale_invariant_loss
from mcd.ops.smoothness_loss import smoothness_loss
from mcd.ops.view_synthesis_loss import ViewSynthesisLossResult, view_synthesis_loss

__all__ = ["MotionSparsity", "PhotometricError", "ScaleInvariantLoss", "SmoothnessLoss", "ViewSynthesisLoss"]


class Bound(nn.Module):
    """An operator with its options; they are shown where the module is printed."""

    def __init__(self, **options: Any):
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class ViewSynthesisLoss(Bound):
    """`mcd.ops.view_synthesis_loss`: a reference image rebuilt from its neighbours, at every scale."""

    def __init__(
        self,
        *,
        scale_weights: Sequence[float] | None = None,
        mask_invalid: bool = True,
        ssim_weight: float = SSIM_WEIGHT,
        l1_weight: float = L1_WEIGHT,
        c1: float = C1,
        c2: float = C2,
        backend: str | None = None,
    ):
        super().__init__(
            scale_weights=scale_weights,
            mask_invalid=mask_invalid,
            ssim_weight=ssim_weight,
            l1_weight=l1_weight,
            c1=c1,
            c2=c2,
            backend=backend,
        )

    def forward(
        self,
        reference: Tensor,
        sources: Tensor,
        depths: Sequence[Tensor],
        K: Tensor,
        T_src_ref: Tensor,
        motion: Tensor | None = None,
    ) -> ViewSynthesisLossResult:
        return view_synthesis_loss(reference, sources, depths, K, T_src_ref, motion, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class PhotometricError(Bound):
    """`mcd.ops.photometric_error`: how badly the best of the warped sources explains each pixel."""

    def __init__(
        self,
        *,
        ssim_weight: float = SSIM_WEIGHT,
        l1_weight: float = L1_WEIGHT,
        c1: float = C1,
        c2: float = C2,
        backend: str | None = None,
    ):
        super().__init__(ssim_weight=ssim_weight, l1_weight=l1_weight, c1=c1, c2=c2, backend=backend)

    def forward(
        self, reference: Tensor, warped: Tensor, sources: Tensor, valid: Tensor | None = None
    ) -> PhotometricErrorResult:
        return photometric_error(reference, warped, sources, valid=valid, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class SmoothnessLoss(Bound):
    """`mcd.ops.smoothness_loss`: edge-aware with images, inside objects with masks."""

    def __init__(self, *, backend: str | None = None):
        super().__init__(backend=backend)

    def forward(
        self,
        disparities: Sequence[Tensor],
        images: Sequence[Tensor] | None = None,
        *,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        return smoothness_loss(disparities, images, masks=masks, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class MotionSparsity(Bound):
    """`mcd.ops.motion_sparsity`: few large residual motions rather than many small ones."""

    def __init__(self, *, backend: str | None = None):
        super().__init__(backend=backend)

    def forward(self, motion: Tensor) -> Tensor:
        return motion_sparsity(motion, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class ScaleInvariantLoss(Bound):
    """`mcd.ops.scale_invariant_loss`: depth against a label that is right up to one factor per sample."""

    def __init__(self, *, backend: str | None = None):
        super().__init__(backend=backend)

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> ScaleInvariantLossResult:
        return scale_invariant_loss(prediction, target, mask, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward
