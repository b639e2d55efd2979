"""Operators that are no losses as modules: their options and backend are bound once, when the module is built.

What each computes, and the shapes that it takes, stand with the operator of its name in `mcd.ops`. The losses are
modules in `mcd.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mcd.losses import Bound
from mcd.ops.align_scale import AlignScaleResult, align_scale
from mcd.ops.backward_warp import BackwardWarpResult, backward_warp
from mcd.ops.forward_warp import ForwardWarpResult, forward_warp
from mcd.ops.fuse_depth import FuseDepthResult, fuse_depth
from mcd.ops.instance_stats import InstanceStats, instance_stats
from mcd.ops.instances import Instances

__all__ = ["AlignScale", "BackwardWarp", "ForwardWarp", "FuseDepth", "InstanceStatistics"]


class BackwardWarp(Bound):
    """`mcd.ops.backward_warp`: the source image as seen from the reference camera, where it looked, and whether there
    was an image."""

    def __init__(self, *, backend: str | None = None):
        super().__init__(backend=backend)

    def forward(
        self, source: Tensor, depth: Tensor, K: Tensor, T_src_ref: Tensor, motion: Tensor | None = None
    ) -> BackwardWarpResult:
        return backward_warp(source, depth, K, T_src_ref, motion, return_coords=True, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class ForwardWarp(Bound):
    """`mcd.ops.forward_warp`: depth pushed into another frame, and an attribute looked up from there."""

    def __init__(self, *, upscale: int = 3, backend: str | None = None):
        super().__init__(upscale=upscale, backend=backend)

    def forward(
        self, attribute: Tensor, depth: Tensor, K: Tensor, T_dst_ref: Tensor, motion: Tensor | None = None
    ) -> ForwardWarpResult:
        return forward_warp(attribute, depth, K, T_dst_ref, motion, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class InstanceStatistics(Bound):
    """`mcd.ops.instance_stats`: count, mean, extremes and quantiles of the values under each mask."""

    def __init__(self, *, quantiles: Sequence[float] = (), interpolation: str = "linear", backend: str | None = None):
        super().__init__(quantiles=tuple(quantiles), interpolation=interpolation, backend=backend)

    def forward(self, values: Tensor, instances: Instances) -> InstanceStats:
        return instance_stats(values, instances, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class AlignScale(Bound):
    """`mcd.ops.align_scale`: each object's depth at its scale in the scene, and how far off it is."""

    def __init__(self, *, delta: float = 0.005, backend: str | None = None):
        super().__init__(delta=delta, backend=backend)

    def forward(
        self, object_depth: Tensor, target_depth: Tensor, instances: Instances, scale: Tensor | None = None
    ) -> AlignScaleResult:
        return align_scale(object_depth, target_depth, instances, scale, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward


class FuseDepth(Bound):
    """`mcd.ops.fuse_depth`: objects over the background, the nearest in front."""

    def __init__(self, *, backend: str | None = None):
        super().__init__(backend=backend)

    def forward(self, background: Tensor, object_depth: Tensor, instances: Instances) -> FuseDepthResult:
        return fuse_depth(background, object_depth, instances, **self.options)

    if TYPE_CHECKING:  # torch types the call of a module as Any
        __call__ = forward
