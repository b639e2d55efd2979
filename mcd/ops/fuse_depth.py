"""Depth fusion: objects put over the background, the nearest in front.

    winner(x) = the instance whose depth at x is smallest, the first among equals; -1 where none has a depth at x
    fused(x)  = the winner's depth, or the background

All depths in one unit. An object's depth that is not positive or not finite is no depth; the published code let a
negative one win. The background passes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.instance_stats import distinct, random_instances
from mcd.ops.instances import Instances, check_instances
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register


class FuseDepthResult(NamedTuple):
    fused: Tensor
    """[B,1,H,W] depth"""
    winner: Tensor
    """[B,H,W] int32, the instance seen at each pixel, -1 for the background"""


def fuse_depth_reference(background: Tensor, object_depth: Tensor, instances: Instances) -> tuple[Tensor, Tensor]:
    batch, _, height, width = background.shape
    count = object_depth.shape[0]
    entry = torch.arange(count, device=background.device)
    with torch.no_grad():
        address = instances.address
        depth = torch.where((object_depth > 0) & object_depth.isfinite(), object_depth, torch.inf)
        nearest = depth.new_full((background.numel(),), torch.inf).scatter_reduce(0, address, depth, "amin")
        # The first entry with the nearest depth belongs to the smallest instance that has it.
        wins = depth.isfinite() & (depth == nearest[address])
        first = torch.full_like(nearest, count, dtype=torch.int64)
        first = first.scatter_reduce(0, address, torch.where(wins, entry, count), "amin")
        occupied = first < count
        instance = torch.cat((instances.instance.int(), instances.frame.new_full((1,), -1)))
    extended = torch.cat((object_depth, object_depth.new_zeros(1)))
    fused = torch.where(occupied, extended[first], background.reshape(-1))
    return fused.reshape(background.shape), instance[first].reshape(batch, height, width)


def _allocate_fwd(background: Tensor, object_depth: Tensor, *instances: Tensor) -> tuple[Tensor, Tensor]:
    batch, _, height, width = background.shape
    return background.new_empty(background.shape), background.new_empty((batch, height, width), dtype=torch.int32)


def _allocate_bwd(grad_fused: Tensor, winner: Tensor, pixel: Tensor, *instances: Tensor) -> tuple[Tensor, Tensor]:
    return grad_fused.new_empty(grad_fused.shape), grad_fused.new_empty(pixel.shape)


_fwd = native.define(
    "fuse_depth_fwd(Tensor background, Tensor object_depth, Tensor pixel, Tensor offset, Tensor frame)"
    " -> (Tensor, Tensor)",
    _allocate_fwd,
)
_bwd = native.define(
    "fuse_depth_bwd(Tensor grad_fused, Tensor winner, Tensor pixel, Tensor offset, Tensor frame) -> (Tensor, Tensor)",
    _allocate_bwd,
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Tensor], outputs: tuple[Tensor, Tensor]) -> None:
        """The masks and the winner that is returned."""
        ctx.save_for_backward(outputs[1], *inputs[2:])
        ctx.mark_non_differentiable(outputs[1])

    def gradients(ctx: Any, grad_fused: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return *bwd(grad_fused, *ctx.saved_tensors), None, None, None

    forward = differentiate(fwd, save, gradients)

    def implementation(background: Tensor, object_depth: Tensor, instances: Instances) -> tuple[Tensor, Tensor]:
        return forward(background, object_depth, instances.pixel, instances.offset, instances.frame)

    return implementation


def _sample_inputs(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    for label, (size, counts) in {
        "three masks over each other, an empty one": ((2, 4, 5), ([12, 0, 13], [15])),
        "more pixels than a CUDA block": ((1, 40, 51), ([2000, 700, 1500],)),
        "one pixel": ((1, 1, 1), ([1],)),
        "no instance": ((2, 3, 3), ([], [])),
        "no frame": ((0, 3, 3), ()),
    }.items():
        instances = random_instances(size, counts, generator).to(device)
        background = distinct((size[0], 1, *size[1:]), generator).to(device, dtype)
        object_depth = distinct((len(instances.pixel),), generator).to(device, dtype)
        object_depth[::5] -= 4
        yield Sample((background, object_depth, instances), {}, label)


def _bytes_moved(sample: Sample) -> int:
    background, object_depth, _ = sample.args
    size = background.element_size()
    return background.numel() * (2 * size + 4) + object_depth.numel() * (size + 4)


OP = register(
    Operator(
        "fuse_depth",
        reference=fuse_depth_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.fuse_depth:fuse_depth",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def fuse_depth(
    background: Tensor, object_depth: Tensor, instances: Instances, *, backend: str | None = None
) -> FuseDepthResult:
    """Objects over the background, the nearest in front.

    Args:
        background: [B,1,H,W] depth of the scene.
        object_depth: [P], depth at the instances' pixels, in the unit of the scene (`align_scale` gives it).
        instances: N masks, which may overlap.
        backend: see `mcd.backend`.

    Returns:
        `fused` [B,1,H,W] and `winner` [B,H,W] int32, the instance seen at each pixel or -1 for the background.

    Gradients reach background and object_depth where they are seen. Nguyen et al., CVPR 2024.

    Raises:
        TypeError, ValueError: an argument that is wrong, named.
    """
    sizes = Shapes("fuse_depth", background, object_depth, instances)
    if not sizes.known:
        background, object_depth = computed(background, object_depth)
        check_instances(sizes, instances)
        sizes.tensor("background", background, "B 1 H W")
        sizes.tensor("object_depth", object_depth, "P")
        sizes.remember(background, object_depth, instances)
    implementation = OP.implementation(backend, background)
    with no_autocast(background.device.type):
        return FuseDepthResult(*implementation(background, object_depth, instances))
