"""Sparsity of residual motion: a square-root penalty that favours few large motions over many small ones.

    a    = |motion|,  μ = mean of a over H, W, detached, per leading index and channel
    loss = mean 2 μ sqrt(a / (μ + 1e-24) + 1)

Units are the motion's. Motion that is zero everywhere costs 0; motion over nothing costs 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register


def motion_sparsity_reference(motion: Tensor) -> Tensor:
    size = motion.abs()
    mean = size.detach().mean((-2, -1), keepdim=True)
    cost = 2 * mean * torch.sqrt(size / (mean + 1e-24) + 1)
    return cost.sum() / max(cost.numel(), 1)


def _planes(motion: Tensor) -> Tensor:
    """A number for each leading index and channel."""
    return motion.new_empty(motion.shape[:-2].numel())


_fwd = native.define(
    "motion_sparsity_fwd(Tensor motion) -> (Tensor, Tensor)",
    lambda motion: (motion.new_empty(()), _planes(motion)),
    lambda motion: (_planes(motion),),
)
_bwd = native.define(
    "motion_sparsity_bwd(Tensor grad_loss, Tensor motion, Tensor means) -> Tensor",
    lambda grad_loss, motion, means: motion.new_empty(motion.shape),
)


def _save(ctx: Any, inputs: Sequence[Tensor], outputs: tuple[Tensor, Tensor]) -> None:
    """The input and the mean of each plane."""
    ctx.save_for_backward(inputs[0], outputs[1])
    ctx.mark_non_differentiable(outputs[1])


_differentiable = differentiate(_fwd, _save, lambda ctx, grad_loss, _: (_bwd(grad_loss, *ctx.saved_tensors),))


def _native(motion: Tensor) -> Tensor:
    return _differentiable(motion.flatten(end_dim=-3))[0]


def _sample_inputs(device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    def sample(label: str, *shape: int) -> Sample:
        motion = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        return Sample((motion.requires_grad_(),), {}, label, detached=True)

    yield sample("two sources", 2, 2, 2, 5, 19)
    yield sample("one pixel", 3, 1, 1)
    yield sample("no frames", 0, 2, 4, 4)


def _bytes_moved(sample: Sample) -> int:
    return sample.args[0].numel() * sample.args[0].element_size()


OP = register(
    Operator(
        "motion_sparsity",
        reference=motion_sparsity_reference,
        native=_native,
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def motion_sparsity(motion: Tensor, *, backend: str | None = None) -> Tensor:
    """Scalar sparsity of `motion` [...,C,H,W]; the gradient treats the mean magnitude as a constant.

    Raises:
        ValueError, TypeError: fewer than three dimensions, or not a float tensor.

    Li et al., "Unsupervised Monocular Depth Learning in Dynamic Scenes", CoRL 2020.
    """
    sizes = Shapes("motion_sparsity", motion)
    if not sizes.known:
        (motion,) = computed(motion)
        sizes.tensor("motion", motion, "... C H W")
        sizes.remember(motion)
    implementation = OP.implementation(backend, motion)
    with no_autocast(motion.device.type):
        loss: Tensor = implementation(motion)
    return loss
