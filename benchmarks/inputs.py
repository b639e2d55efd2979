"""Inputs of training size for every operator: smooth random scenes, the same every time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd import Instances
from mcd.ops import Sample

Size = tuple[int, int, int]
"""B, H, W"""

SOURCES, SCALES = 2, 4
INSTANCES_PER_FRAME = 10


class Scene:
    """Tensors of a batch of `size`, drawn one after another."""

    def __init__(self, size: Size, device: torch.device):
        self.batch, self.height, self.width = size
        self.device = device
        self._generator = torch.Generator().manual_seed(23)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self._generator)).to(self.device)

    def smooth(self, low: float, high: float, channels: int, scale: int = 0) -> Tensor:
        """[B,channels,H,W], halved `scale` times, which changes over some eight pixels."""
        height, width = max(self.height >> scale, 1), max(self.width >> scale, 1)
        coarse = self.uniform(low, high, self.batch, channels, height // 8 + 2, width // 8 + 2)
        return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).clamp(low, high)

    def image(self, scale: int = 0) -> Tensor:
        fine = self.uniform(-0.02, 0.02, self.batch, 3, max(self.height >> scale, 1), max(self.width >> scale, 1))
        return (self.smooth(0.05, 0.95, 3, scale) + fine).clamp(0, 1)

    def images(self, count: int) -> Tensor:
        return torch.stack([self.image() for _ in range(count)], 1)

    def depth(self, scale: int = 0) -> Tensor:
        return self.smooth(4, 20, 1, scale)

    def camera(self) -> tuple[Tensor, Tensor]:
        """K [B,3,3] and a small forward motion T [B,4,4] with a turn of about a degree."""
        K = torch.tensor(
            [[0.9 * self.width, 0, 0.48 * self.width], [0, 0.9 * self.width, 0.52 * self.height], [0, 0, 1]]
        )
        angles = self.uniform(-0.02, 0.02, self.batch, 3)
        skew = angles.new_zeros(self.batch, 3, 3)
        skew[:, [0, 2, 1], [1, 0, 2]], skew[:, [1, 0, 2], [0, 2, 1]] = angles, -angles
        T = torch.eye(4, device=self.device).repeat(self.batch, 1, 1)
        T[:, :3, :3] = torch.linalg.matrix_exp(skew)
        T[:, :3, 3] = self.uniform(-0.05, 0.05, self.batch, 3) + T.new_tensor([0, 0, 0.5])
        return K.to(self.device).repeat(self.batch, 1, 1), T

    def instances(self) -> Instances:
        """Boxes of about 5 % of the image each, ten in a frame: 120 of 5k pixels for 12 frames of 192×512."""
        high, wide = max(self.height * 2 // 5, 1), max(self.width // 8, 1)
        masks = torch.zeros(self.batch, INSTANCES_PER_FRAME, self.height, self.width, dtype=torch.bool)
        for frame in masks:
            for mask in frame:
                top = int(torch.randint(self.height - high + 1, (), generator=self._generator))
                left = int(torch.randint(self.width - wide + 1, (), generator=self._generator))
                mask[top : top + high, left : left + wide] = True
        return Instances.from_masks(list(masks), (self.height, self.width)).to(self.device)


def _backward_warp(scene: Scene) -> Sample:
    K, T = scene.camera()
    motion = scene.smooth(-8, 8, 2)
    return Sample((scene.image(), scene.depth().requires_grad_(), K, T.requires_grad_(), motion.requires_grad_()))


def _photometric_error(scene: Scene) -> Sample:
    reference, sources = scene.image(), scene.images(SOURCES)
    warped = 0.8 * reference.unsqueeze(1) + 0.2 * scene.images(SOURCES)
    return Sample((reference, warped.requires_grad_(), sources))


def _view_synthesis_loss(scene: Scene) -> Sample:
    K, T = scene.camera()
    T = torch.stack((T, torch.linalg.inv(T)), 1).requires_grad_()
    depths = [scene.depth(scale).requires_grad_() for scale in range(SCALES)]
    return Sample((scene.image(), scene.images(SOURCES), depths, K, T, None))


def _forward_warp(scene: Scene) -> Sample:
    K, T = scene.camera()
    return Sample((scene.image(), scene.depth().requires_grad_(), K, T.requires_grad_(), None))


def _instance_stats(scene: Scene) -> Sample:
    return Sample((scene.depth().requires_grad_(), scene.instances(), (0.5, 0.9), "lower"))


def _align_scale(scene: Scene) -> Sample:
    instances = scene.instances()
    object_depth = instances.gather(scene.depth()).detach().requires_grad_()
    scale = scene.uniform(4, 20, len(instances)).requires_grad_()
    return Sample((object_depth, scene.depth(), instances, scale))


def _fuse_depth(scene: Scene) -> Sample:
    instances = scene.instances()
    object_depth = scene.uniform(3, 15, instances.pixel.shape[0]).requires_grad_()
    return Sample((scene.depth().requires_grad_(), object_depth, instances))


def _scale_invariant_loss(scene: Scene) -> Sample:
    shape = (scene.batch, 1, scene.height, scene.width)
    # Every pixel has a factor of its own: pixels of the same ratio would pass the gate together or not, by rounding.
    target = scene.depth() * scene.uniform(0.9, 1.1, *shape)
    return Sample((scene.depth().requires_grad_(), target, scene.uniform(0, 1, *shape) > 0.3))


def _smoothness_loss(scene: Scene) -> Sample:
    disparities = [(1 / scene.depth(scale)).requires_grad_() for scale in range(SCALES)]
    return Sample((disparities, [scene.image(scale) for scale in range(SCALES)]))


def _motion_sparsity(scene: Scene) -> Sample:
    return Sample((scene.smooth(-1, 1, 3).requires_grad_(),))


MAKE: dict[str, Callable[[Scene], Sample]] = {
    "align_scale": _align_scale,
    "backward_warp": _backward_warp,
    "forward_warp": _forward_warp,
    "fuse_depth": _fuse_depth,
    "instance_stats": _instance_stats,
    "motion_sparsity": _motion_sparsity,
    "photometric_error": _photometric_error,
    "scale_invariant_loss": _scale_invariant_loss,
    "smoothness_loss": _smoothness_loss,
    "view_synthesis_loss": _view_synthesis_loss,
}


def make(operator: str, size: Size, device: torch.device) -> Sample:
    """float32 arguments of one call, those requiring a gradient for which training needs one."""
    sample = MAKE[operator](Scene(size, device))
    return Sample(sample.args, sample.kwargs, "x".join(map(str, size)))
