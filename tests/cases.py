"""Inputs for every operator, of any size: what property tests spoil and lay out anew, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcd import Instances
from mcd.ops.registry import Sample


@dataclass
class Case:
    """Frames of one size. `spoil` replaces some of the numbers that stand for geometry."""

    generator: torch.Generator
    batch: int
    height: int
    width: int
    sources: int = 2
    scales: int = 2
    motion: int = 0
    """Channels of the residual motion that `backward_warp` gets; whether the others get one."""
    dtype: torch.dtype = torch.float64
    image_dtype: torch.dtype = torch.float64
    spoil: Callable[[Tensor], Tensor] = lambda geometry: geometry
    distance: float = 0.5
    """How far the camera moves at most; depths are 4 to 6."""

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.dtype)

    def images(self, *lead: int, channels: int = 3) -> Tensor:
        return self.uniform(0, 1, self.batch, *lead, channels, self.height, self.width).to(self.image_dtype)

    def depth(self, scale: int = 0) -> Tensor:
        height, width = max(self.height >> scale, 1), max(self.width >> scale, 1)
        depth = self.uniform(4, 6, self.batch, 1, height, width)
        # Not a small depth: rounding decides which of its pixels has the weight 0 that infinity would turn into NaN.
        return (depth if scale else self.spoil(depth)).requires_grad_()

    def residual(self, channels: int, *lead: int) -> Tensor:
        motion = self.uniform(-0.5, 0.5, self.batch, *lead, channels, self.height, self.width)
        return self.spoil(motion).requires_grad_()

    def intrinsics(self) -> Tensor:
        width, height = self.width, self.height
        K = torch.tensor([[0.8 * width, 0.1, 0.48 * width], [0, 0.9 * width, 0.52 * height], [0, 0, 1]])
        return K.to(self.dtype).repeat(self.batch, 1, 1)

    def pose(self, *lead: int) -> Tensor:
        count = self.batch * (lead[0] if lead else 1)
        skew = torch.zeros(count, 3, 3, dtype=torch.float64)
        angles = self.uniform(-0.05, 0.05, count, 3).double()
        skew[:, [0, 2, 1], [1, 0, 2]], skew[:, [1, 0, 2], [0, 2, 1]] = angles, -angles
        T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
        T[:, :3, :3] = torch.linalg.matrix_exp(skew)
        T[:, :3, 3] = self.uniform(-self.distance, self.distance, count, 3).double()
        return T.reshape(self.batch, *lead, 4, 4).to(self.dtype).requires_grad_()

    def instances(self, most: int = 4) -> Instances:
        """Up to `most` masks in a frame, of any coverage: empty, overlapping, of a whole frame."""
        masks = []
        for _ in range(self.batch):
            count = int(torch.randint(0, most + 1, (), generator=self.generator))
            chance = torch.rand(count, 1, 1, generator=self.generator) * 1.4 - 0.2
            masks.append(torch.rand(count, self.height, self.width, generator=self.generator) < chance)
        return Instances.from_masks(masks, (self.height, self.width))


def backward_warp(case: Case) -> Sample:
    motion = case.residual(case.motion) if case.motion else None
    args = (
        case.images().requires_grad_(),
        case.depth(case.scales - 1),
        case.intrinsics().requires_grad_(),
        case.pose(),
        motion,
    )
    return Sample(args, {"return_coords": True})


def photometric_error(case: Case) -> Sample:
    valid = torch.rand(case.batch, case.sources, case.height, case.width, generator=case.generator) > 0.2
    reference, sources = case.spoil(case.images()), case.images(case.sources)
    warped = case.spoil(case.images(case.sources))
    return Sample((reference.requires_grad_(), warped.requires_grad_(), sources), {"valid": valid})


def view_synthesis_loss(case: Case) -> Sample:
    depths = [case.depth(scale) for scale in range(case.scales)]
    motion = case.residual(2, case.sources) if case.motion else None
    args = (
        case.images(),
        case.images(case.sources),
        depths,
        case.intrinsics().requires_grad_(),
        case.pose(case.sources),
        motion,
    )
    return Sample(args)


def forward_warp(case: Case) -> Sample:
    motion = case.residual(3) if case.motion else None
    args = (case.images(channels=case.sources).requires_grad_(), case.depth(), case.intrinsics(), case.pose(), motion)
    return Sample(args, {"upscale": 1 + case.scales})


def smoothness_loss(case: Case) -> Sample:
    disparities = [case.depth(scale) for scale in range(case.scales)]
    if case.motion:
        masks = [torch.rand(one.shape, generator=case.generator) > 0.3 for one in disparities]
        return Sample((disparities,), {"masks": masks})
    images = [case.uniform(0, 1, *one.shape).to(case.image_dtype) for one in disparities]
    return Sample((disparities, images))


def motion_sparsity(case: Case) -> Sample:
    return Sample((case.residual(2, case.sources),))


def instance_stats(case: Case) -> Sample:
    instances = case.instances()
    values = case.depth() if case.motion else case.spoil(case.uniform(1, 3, len(instances.pixel))).requires_grad_()
    return Sample((values, instances, (0.0, 0.5, 0.9, 1.0), "linear" if case.scales > 1 else "lower"))


def align_scale(case: Case) -> Sample:
    instances = case.instances()
    depth = case.spoil(case.uniform(1, 3, len(instances.pixel))).requires_grad_()
    scale = case.uniform(4, 6, len(instances)).requires_grad_() if case.motion else None
    return Sample((depth, case.depth().detach(), instances, scale))


def scale_invariant_loss(case: Case) -> Sample:
    prediction, target = case.depth(), case.spoil(case.uniform(2, 8, case.batch, 1, case.height, case.width))
    return Sample((prediction, target, torch.rand(target.shape, generator=case.generator) > 0.3))


def fuse_depth(case: Case) -> Sample:
    instances = case.instances()
    depth = case.spoil(case.uniform(3, 7, len(instances.pixel))).requires_grad_()
    return Sample((case.depth(), depth, instances))


CASES: dict[str, Callable[[Case], Sample]] = {
    make.__name__: make
    for make in (
        backward_warp,
        photometric_error,
        view_synthesis_loss,
        forward_warp,
        smoothness_loss,
        motion_sparsity,
        instance_stats,
        align_scale,
        scale_invariant_loss,
        fuse_depth,
    )
}
