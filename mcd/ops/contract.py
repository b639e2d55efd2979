"""What every operator checks of its arguments before any backend sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

REAL = (torch.float32, torch.float64)
IMAGE = (*REAL, torch.bfloat16, torch.float16)


class Shapes:
    """Checks the arguments of one call and remembers the named sizes.

        sizes = Shapes("backward_warp")
        sizes.tensor("source", source, "B C H W", image=True)
        sizes.tensor("K", K, "B 3 3")
        sizes["H"]

    A shape is a row of names, numbers and, at its start only, `...` for any leading dimensions. A name stands for the
    same size wherever it appears. Float tensors that are no images share one dtype, float32 or float64; images share
    one dtype too, which is that same dtype or, beside float32, bfloat16 or float16. All tensors lie on one device.
    """

    def __init__(self, operator: str):
        self.operator = operator
        self.sizes: dict[str, int] = {}
        self._first: tuple[str, torch.device] | None = None
        self._real: tuple[str, torch.dtype] | None = None
        self._image: tuple[str, torch.dtype] | None = None

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]

    def at_least(self, **smallest: int) -> None:
        """Raise ValueError where a named size is smaller than it may be: `sizes.at_least(H=4, W=4)`."""
        for axis, size in smallest.items():
            if self.sizes[axis] < size:
                raise ValueError(f"{self.operator}: {axis} is {self.sizes[axis]}, it should be at least {size}")

    def tensor(
        self,
        name: str,
        value: Tensor,
        shape: str,
        *,
        image: bool = False,
        dtype: torch.dtype | tuple[torch.dtype, ...] | None = None,
    ) -> None:
        """Raise TypeError (no tensor, wrong dtype) or ValueError (rank, size, device) naming the argument."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.operator}: {name} should be a tensor [{shape}], not {type(value).__name__}")
        self._check_dtype(name, value.dtype, image, dtype)
        self._check_device(name, value.device)
        self._check_shape(name, value, shape)
        if self.sizes.get("H", 0) * self.sizes.get("W", 0) > 2**31 - 1:
            raise ValueError(
                f"{self.operator}: {name} has {self['H']}x{self['W']} pixels, it should have no more than 2^31 - 1"
            )

    def _check_dtype(
        self, name: str, dtype: torch.dtype, image: bool, expected: torch.dtype | tuple[torch.dtype, ...] | None
    ) -> None:
        allowed: tuple[torch.dtype, ...]
        if expected is not None:
            allowed = (expected,) if isinstance(expected, torch.dtype) else expected
        else:
            allowed = IMAGE if image else REAL
        if dtype not in allowed:
            raise TypeError(f"{self.operator}: {name} is {dtype}, it should be {' or '.join(map(str, allowed))}")
        if expected is not None:
            return
        peer = self._image if image else self._real
        if peer is None:
            peer = (name, dtype)
            if image:
                self._image = peer
            else:
                self._real = peer
        if dtype != peer[1]:
            raise TypeError(f"{self.operator}: {name} is {dtype}, but {peer[0]} is {peer[1]}; they should be the same")
        if self._real and self._image:
            (real_name, real), (image_name, image_dtype) = self._real, self._image
            if image_dtype != real and not (real == torch.float32 and image_dtype not in REAL):
                raise TypeError(
                    f"{self.operator}: {image_name} is {image_dtype} and {real_name} is {real}; they should be "
                    "the same, or the image bfloat16 or float16 beside float32"
                )

    def _check_device(self, name: str, device: torch.device) -> None:
        if self._first is None:
            self._first = (name, device)
        if device != self._first[1]:
            raise ValueError(
                f"{self.operator}: {name} is on {device}, but {self._first[0]} is on {self._first[1]}; "
                "they should be on one device"
            )

    def _check_shape(self, name: str, value: Tensor, shape: str) -> None:
        axes = shape.split()
        leading = value.dim() - len(axes) + 1 if axes[0] == "..." else 0
        axes = axes[1:] if axes[0] == "..." else axes
        if leading < 0 or value.dim() != len(axes) + leading:
            raise ValueError(
                f"{self.operator}: {name} has shape {list(value.shape)}, it should be [{', '.join(shape.split())}]"
            )
        for axis, size in zip(axes, value.shape[leading:], strict=True):
            expected = int(axis) if axis.isdigit() else self.sizes.setdefault(axis, size)
            if size != expected:
                known = ", ".join(f"{axis} = {self.sizes[axis]}" for axis in axes if axis in self.sizes)
                raise ValueError(
                    f"{self.operator}: {name} has shape {list(value.shape)}, it should be "
                    f"[{', '.join(shape.split())}]" + (f" with {known}" if known else "")
                )


def upcast(*tensors: Any) -> tuple[Any, ...]:
    """Under autocast, the float tensors among these as float32 (float64 stays); otherwise these as they are."""
    return tuple(
        tensor.float()
        if isinstance(tensor, Tensor)
        and tensor.dtype in (torch.bfloat16, torch.float16)
        and torch.is_autocast_enabled(tensor.device.type)
        else tensor
        for tensor in tensors
    )


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Around a computation: keeps autocast from rounding the operators' own matrix products."""
    return torch.autocast(device_type, enabled=False) if device_type in ("cpu", "cuda") else nullcontext()
