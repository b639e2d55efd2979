"""Statistics of the values under each instance mask: count, mean, extremes and exact quantiles.

    mean      = Σ values / count
    "lower"   = sorted[⌊q · (count - 1)⌋]                                           torch.median's, for q = 0.5
    "linear"  = sorted at q · (count - 1), between neighbours by their distance      NumPy's

Units are the values'. An empty instance has count 0 and NaN for the rest; a NaN makes everything but the count NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcd.ops import native
from mcd.ops.contract import Shapes, computed, no_autocast
from mcd.ops.instances import Instances, check_instances
from mcd.ops.registered import differentiate
from mcd.ops.registry import Operator, Sample, register

INTERPOLATIONS = ("lower", "linear")


class InstanceStats(NamedTuple):
    """Of N instances; NaN for an empty one, but its count."""

    count: Tensor  # type: ignore[assignment]  # it takes the place of tuple.count
    """[N] int32"""
    mean: Tensor
    """[N], like the rest in the values' dtype"""
    min: Tensor
    max: Tensor
    quantiles: Tensor
    """[N,Q]"""


def instance_stats_reference(
    values: Tensor, instances: Instances, quantiles: Sequence[float] = (), interpolation: str = "linear"
) -> InstanceStats:
    if values.dim() == 4:
        values = instances.gather(values)
    instance, count = instances.instance, instances.count
    empty = count == 0
    mean = values.new_zeros(count.shape).index_add(0, instance, values) / count

    with torch.no_grad():
        least, largest = (
            values.new_zeros(count.shape)
            .scatter_reduce(0, instance, values, reduction, include_self=False)
            .masked_fill(empty, torch.nan)
            for reduction in ("amin", "amax")
        )
        positions = torch.tensor(tuple(quantiles), dtype=torch.float64, device=values.device) * (count[:, None] - 1)
        low = positions.floor()
        ordered = sorted_by_instance(values, instance)
        at_low = element_of_rank(ordered, instances.offset, low)
        if interpolation == "linear":
            at_high = element_of_rank(ordered, instances.offset, positions.ceil())
            between = torch.lerp(at_low, at_high, (positions - low).to(values.dtype))
            # Equal neighbours may be infinite, and an infinite one above must not reach a rank that is met exactly.
            at_low = torch.where((at_low == at_high) | (positions == low), at_low, between)
        at_low = at_low.masked_fill(largest.isnan()[:, None], torch.nan)
    return InstanceStats(count, mean, least, largest, at_low)


def sorted_by_instance(values: Tensor, instance: Tensor) -> Tensor:
    """Values ascending within each instance, instance after instance, and a NaN at the end."""
    order = values.argsort(stable=True)
    order = order[instance[order].argsort(stable=True)]
    return torch.cat((values[order], values.new_full((1,), torch.nan)))


def element_of_rank(ordered: Tensor, offset: Tensor, rank: Tensor) -> Tensor:
    """[N,Q] elements of each instance by rank; an empty instance, whose ranks are below 0, gets the NaN at the end."""
    index = offset[:-1, None] + rank.long()
    return ordered[torch.where((offset[1:] > offset[:-1])[:, None], index, ordered.shape[0] - 1)]


def _allocate_fwd(
    values: Tensor, pixel: Tensor, offset: Tensor, frame: Tensor, quantiles: Sequence[float], linear: bool
) -> tuple[Tensor, ...]:
    instances = frame.shape[0]
    mean, least, largest = (values.new_empty(instances) for _ in range(3))
    return torch.empty_like(frame), mean, least, largest, values.new_empty(instances, len(quantiles))


def _allocate_bwd(grad_mean: Tensor, values: Tensor, *instances: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


_fwd = native.define(
    "instance_stats_fwd(Tensor values, Tensor pixel, Tensor offset, Tensor frame, float[] quantiles, bool linear)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _allocate_fwd,
)
_bwd = native.define(
    "instance_stats_bwd(Tensor grad_mean, Tensor values, Tensor pixel, Tensor offset, Tensor frame) -> Tensor",
    _allocate_bwd,
)


def differentiable(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its gradients, from two registered ones that have none."""

    def save(ctx: Any, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
        count, _, *order_statistics = outputs
        ctx.save_for_backward(*inputs[:4])
        ctx.mark_non_differentiable(count, *order_statistics)

    def gradients(ctx: Any, _: Any, grad_mean: Tensor, *__: Any) -> tuple[Tensor | None, ...]:
        return bwd(grad_mean, *ctx.saved_tensors), *[None] * 5

    forward = differentiate(fwd, save, gradients)

    def implementation(
        values: Tensor, instances: Instances, quantiles: Sequence[float], interpolation: str
    ) -> tuple[Tensor, ...]:
        ragged = (instances.pixel, instances.offset, instances.frame)
        return forward(values, *ragged, list(quantiles), interpolation == "linear")

    return implementation


def _sample_inputs(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Iterable[Sample]:
    for label, (size, counts, quantiles, interpolation) in {
        "overlapping masks, an empty one, a median": ((2, 5, 7), ([3, 0], [4]), (0.5,), "lower"),
        "one pixel": ((1, 1, 1), ([1],), (0.5, 0.9), "linear"),
        "three quantiles of more pixels than a CUDA block": ((1, 40, 51), ([2000, 700],), (0, 0.37, 1), "linear"),
        "no quantile": ((1, 4, 4), ([5],), (), "linear"),
        "no instance": ((2, 3, 3), ([], []), (0.5,), "linear"),
        "no frame": ((0, 3, 3), (), (0.5,), "lower"),
    }.items():
        instances = random_instances(size, counts, generator).to(device)
        shape = (len(instances.pixel),) if interpolation == "linear" else (size[0], 1, *size[1:])
        yield Sample((distinct(shape, generator).to(device, dtype), instances, quantiles, interpolation), {}, label)


def random_instances(
    size: tuple[int, int, int], counts: Sequence[Sequence[int]], generator: torch.Generator
) -> Instances:
    """Masks of the given numbers of pixels in each frame, anywhere."""
    _, height, width = size
    masks = [torch.zeros(len(frame), height * width, dtype=torch.bool) for frame in counts]
    for frame, frame_counts in zip(masks, counts, strict=True):
        for mask, count in zip(frame, frame_counts, strict=True):
            mask[torch.randperm(height * width, generator=generator)[:count]] = True
    return Instances.from_masks([mask.reshape(-1, height, width) for mask in masks], (height, width))


def distinct(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Values in [1, 3), no two of them close: their order is the same in every precision."""
    count = torch.Size(shape).numel()
    return (1 + 2 * torch.randperm(count, generator=generator).double() / max(count, 1)).reshape(shape)


def _bytes_moved(sample: Sample) -> int:
    values, instances = sample.args[:2]
    pixels = instances.pixel.numel()
    # Values of the whole image are found through the pixels' addresses.
    return pixels * (values.element_size() + (4 if values.dim() == 4 else 0))


OP = register(
    Operator(
        "instance_stats",
        reference=instance_stats_reference,
        native=differentiable(_fwd, _bwd),
        triton="mcd.kernels.instance_stats:instance_stats",
        sample_inputs=_sample_inputs,
        bytes_moved=_bytes_moved,
    )
)


def instance_stats(
    values: Tensor,
    instances: Instances,
    quantiles: Sequence[float] = (),
    interpolation: str = "linear",
    *,
    backend: str | None = None,
) -> InstanceStats:
    """Count, mean, min, max [N] and quantiles [N,Q] of the values under each mask, exact.

    Args:
        values: [P], one for each of the instances' pixels, or [B,1,H,W].
        instances: N masks.
        quantiles: Q numbers in [0, 1].
        interpolation: "lower" or "linear".
        backend: see `mcd.backend`.

    Nothing waits for the device. The mean alone has a gradient. An empty instance has NaN for all but its count.

    Raises:
        TypeError, ValueError: an argument that is wrong, named.
    """
    sizes = Shapes("instance_stats", values, instances)
    if not sizes.known:
        (values,) = computed(values)
        check_instances(sizes, instances)
        sizes.tensor("values", values, "B 1 H W" if isinstance(values, Tensor) and values.dim() == 4 else "P")
        sizes.remember(values, instances)
    quantiles = tuple(float(quantile) for quantile in quantiles)
    if not all(0 <= quantile <= 1 for quantile in quantiles):
        raise ValueError(f"instance_stats: quantiles are {quantiles}, they should lie in [0, 1]")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"instance_stats: interpolation is {interpolation!r}, it should be 'lower' or 'linear'")
    implementation = OP.implementation(backend, values)
    with no_autocast(values.device.type):
        return InstanceStats(*implementation(values, instances, quantiles, interpolation))
