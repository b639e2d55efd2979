"""Object masks of a batch as ragged pixels: storage and work grow with what the masks cover, not with their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcd.ops.contract import Shapes

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Instances:
    """N masks over the B frames of a batch. They may overlap, be empty, and stand in any order.

    Making one checks it, which waits for the device once; operators rely on that and do not look again.

    Raises:
        TypeError, ValueError: a field that is wrong, named.
    """

    pixel: Tensor
    """[P] int32, y·W + x of every pixel of every mask, mask after mask, ascending within each."""
    offset: Tensor
    """[N+1] int32, mask n is pixel[offset[n] : offset[n + 1]]."""
    frame: Tensor
    """[N] int32, the frame of each mask."""
    size: tuple[int, int, int]
    """(B, H, W)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_size(self.size))
        sizes = Shapes("Instances")
        for name, shape in (("pixel", "P"), ("offset", "M"), ("frame", "N")):
            sizes.tensor(name, getattr(self, name), shape, dtype=torch.int32)
        if sizes["M"] != sizes["N"] + 1:
            raise ValueError(
                f"Instances: offset has {sizes['M']} entries, it should have one more than frame, {sizes['N'] + 1}"
            )
        batch, height, width = self.size
        steps = self.offset[1:] - self.offset[:-1]
        problems = {
            f"offset should run from 0 to {sizes['P']}, the number of pixels": torch.stack(
                (self.offset[0] != 0, self.offset[-1] != sizes["P"])
            ),
            "offset should not decrease": steps < 0,
            f"frame should lie in [0, {batch})": (self.frame < 0) | (self.frame >= batch),
            f"pixel should lie in [0, {height * width})": (self.pixel < 0) | (self.pixel >= height * width),
            "pixel should ascend within each mask": self._descends(),
        }
        found = torch.stack([wrong.any() for wrong in problems.values()]).tolist()
        for problem, is_wrong in zip(problems, found, strict=True):
            if is_wrong:
                raise ValueError(f"Instances: {problem}")

    def _descends(self) -> Tensor:
        """[P] bool: pixels that do not come after the one before them, though that is of the same mask."""
        begins = torch.zeros(self.pixel.shape[0] + 1, dtype=torch.bool, device=self.device)
        begins[self.offset.long().clamp(0, self.pixel.shape[0])] = True
        return (self.pixel.diff(prepend=self.pixel[:1]) <= 0) & ~begins[:-1]

    @staticmethod
    def from_masks(masks: Sequence[Tensor], size: tuple[int, int] | None = None) -> Instances:
        """Instances of B bool tensors [n_b,H,W], one per frame, in their order; `size` (H,W) is for B = 0."""
        sizes = Shapes("Instances.from_masks")
        for b, mask in enumerate(masks):
            sizes.tensor(f"masks[{b}]", mask, f"n{b} H W", dtype=torch.bool)
        if not masks and size is None:
            raise ValueError("Instances.from_masks: without frames, size (H, W) should be given")
        height, width = size if size is not None else masks[0].shape[-2:]
        if masks and (height, width) != (sizes["H"], sizes["W"]):
            raise ValueError(
                f"Instances.from_masks: masks are {sizes['H']}x{sizes['W']}, they should be size, {height}x{width}"
            )
        every = torch.cat(list(masks)) if masks else torch.zeros(0, height, width, dtype=torch.bool)
        every = every.reshape(len(every), height * width)
        counts = torch.tensor([len(mask) for mask in masks], dtype=torch.int64, device=every.device)
        frames = torch.arange(len(masks), device=every.device)
        frame = frames.repeat_interleave(counts, output_size=len(every))
        return _ragged(every.nonzero()[:, 1], every.sum(1), frame, (len(masks), height, width))

    @staticmethod
    def from_labels(labels: Tensor, background: int = 0) -> Instances:
        """An instance for every other value than `background` in each frame of `labels` [B,H,W], any integer type.

        Frame after frame, in the order of the values.
        """
        integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        Shapes("Instances.from_labels").tensor("labels", labels, "B H W", dtype=integers)
        batch, height, width = labels.shape
        at_frame, at_pixel = (labels.long() != background).reshape(batch, height * width).nonzero().unbind(1)
        values, which = labels.reshape(batch, height * width)[at_frame, at_pixel].unique(return_inverse=True)
        keys, counts = (at_frame * len(values) + which).unique(return_counts=True)
        order = (at_frame * len(values) + which).argsort(stable=True)
        return _ragged(at_pixel[order], counts, keys // max(len(values), 1), (batch, height, width))

    def to_masks(self) -> list[Tensor]:
        """B bool tensors [n_b,H,W]: the masks of each frame, in their order."""
        batch, height, width = self.size
        masks = torch.zeros(len(self), height * width, dtype=torch.bool, device=self.device)
        masks[self.instance, self.pixel.long()] = True
        order = self.frame.argsort(stable=True)
        counts = torch.bincount(self.frame, minlength=batch).tolist()
        return list(masks[order].reshape(len(self), height, width).split(counts)) if batch else []

    def __len__(self) -> int:
        return self.frame.shape[0]

    @property
    def device(self) -> torch.device:
        return self.pixel.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, N, B, H, W)"""
        return self.pixel.shape[0], self.frame.shape[0], *self.size

    @property
    def dtype(self) -> torch.dtype:
        """torch.int32, of all fields"""
        return self.pixel.dtype

    @property
    def count(self) -> Tensor:
        """[N] int32, pixels of each mask."""
        return self.offset[1:] - self.offset[:-1]

    @property
    def instance(self) -> Tensor:
        """[P] int64, the mask that each pixel belongs to."""
        every = torch.arange(self.frame.shape[0], device=self.device)
        return every.repeat_interleave(self.count, output_size=self.pixel.shape[0])

    @property
    def address(self) -> Tensor:
        """[P] int64, where each pixel lies among all B·H·W of the batch."""
        _, height, width = self.size
        return self.frame.long()[self.instance] * (height * width) + self.pixel

    def gather(self, values: Tensor) -> Tensor:
        """`values` [B,1,H,W] at the masks' pixels [P], with their gradient."""
        sizes = Shapes("Instances.gather")
        check_instances(sizes, self)
        sizes.tensor("values", values, "B 1 H W", dtype=values.dtype if isinstance(values, Tensor) else None)
        return values.reshape(-1)[self.address]

    def to(self, device: torch.device | str) -> Instances:
        return _unchecked(self.pixel.to(device), self.offset.to(device), self.frame.to(device), self.size)


def check_instances(sizes: Shapes, instances: Instances) -> None:
    """Check an operator's argument `instances`; its sizes are P, N, B, H and W in the checks that follow."""
    if not isinstance(instances, Instances):
        raise TypeError(f"{sizes.operator}: instances should be mcd.Instances, not {type(instances).__name__}")
    sizes.sizes.update(zip("BHW", instances.size, strict=True))
    sizes.tensor("instances.pixel", instances.pixel, "P", dtype=torch.int32)
    sizes.tensor("instances.frame", instances.frame, "N", dtype=torch.int32)


def _checked_size(size: tuple[int, int, int]) -> tuple[int, int, int]:
    size = tuple(size)  # type: ignore[assignment]
    if len(size) != 3 or any(not isinstance(extent, int) or extent < 0 for extent in size):
        raise ValueError(f"Instances: size is {size}, it should be (B, H, W), integers that are not negative")
    if size[1] * size[2] > _INT32_MAX:
        raise ValueError(f"Instances: an image of {size[1]}x{size[2]} has more pixels than int32 counts")
    return size


def _ragged(pixel: Tensor, count: Tensor, frame: Tensor, size: tuple[int, int, int]) -> Instances:
    if pixel.shape[0] > _INT32_MAX:
        raise ValueError(f"Instances: {pixel.shape[0]} pixels are more than int32 counts")
    offset = torch.zeros(len(count) + 1, dtype=torch.int32, device=pixel.device)
    torch.cumsum(count, 0, dtype=torch.int32, out=offset[1:])
    return _unchecked(pixel.int(), offset, frame.int(), _checked_size(size))


def _unchecked(pixel: Tensor, offset: Tensor, frame: Tensor, size: tuple[int, int, int]) -> Instances:
    """Fields that are right by construction: without the check's wait for the device."""
    instances = object.__new__(Instances)
    for name, value in (("pixel", pixel), ("offset", offset), ("frame", frame), ("size", size)):
        object.__setattr__(instances, name, value)
    return instances
