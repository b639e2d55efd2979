"""What every operator checks of its arguments, and makes of them, before any backend sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

REAL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)
IMAGE = (*REAL, *HALF)


_known: set[Any] = set()
_MOST_KNOWN = 4096


def _signature(operator: str, tensors: tuple[Any, ...]) -> Any:
    """What checks look at; None where an argument is no tensor."""
    try:
        return (operator, *[None if t is None else (type(t), t.shape, t.dtype, t.device) for t in tensors])
    except AttributeError:
        return None


class Shapes:
    """Checks the arguments of one call and remembers the named sizes.

        sizes = Shapes("backward_warp")
        sizes.tensor("source", source, "B C H W", image=True)
        sizes.tensor("K", K, "B 3 3")
        sizes["H"]

    A shape is a row of names, numbers and, at its start only, `...` for any leading dimensions. A name stands for the
    same size wherever it appears. Float tensors that are no images share one dtype, float32 or float64; images share
    one dtype too, which is that same dtype or, beside float32, bfloat16 or float16. All tensors lie on one device.

    Tensors of the same shapes, dtypes and devices need no second check, which would take longer than all else that
    happens around a small operator: `known` says that the given ones have passed all of it as they are. It is false in
    compiled code, where checks cost nothing.
    """

    __slots__ = ("_device", "_image", "_real", "_signature", "known", "operator", "sizes")

    def __init__(self, operator: str, *tensors: Any):
        self.operator = operator
        self._signature = _signature(operator, tensors) if tensors and not torch.compiler.is_compiling() else None
        try:
            self.known = self._signature in _known
        except TypeError:  # sizes that are symbols have no hash
            self._signature, self.known = None, False
        self.sizes: dict[str, int] = {}
        self._device: tuple[str, torch.device] | None = None
        self._real: tuple[str, torch.dtype] | None = None
        self._image: tuple[str, torch.dtype] | None = None

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]

    def remember(self, *tensors: Any) -> None:
        """The tensors have passed. If they are still as they were given, the next such ones are `known`."""
        if self._signature is not None and _signature(self.operator, tensors) == self._signature:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known.add(self._signature)

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
        device = value.device
        if self._device is None:
            self._device = (name, device)
        elif device != self._device[1]:
            raise ValueError(
                f"{self.operator}: {name} is on {device}, but {self._device[0]} is on {self._device[1]}; "
                "they should be on one device"
            )
        self._check_shape(name, value.shape, shape)

    def _check_dtype(
        self, name: str, dtype: torch.dtype, image: bool, expected: torch.dtype | tuple[torch.dtype, ...] | None
    ) -> None:
        allowed: Any = expected if expected is not None else IMAGE if image else REAL
        if dtype is not allowed and (isinstance(allowed, torch.dtype) or dtype not in allowed):
            allowed = (allowed,) if isinstance(allowed, torch.dtype) else allowed
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
        elif dtype != peer[1]:
            raise TypeError(f"{self.operator}: {name} is {dtype}, but {peer[0]} is {peer[1]}; they should be the same")
        if self._real is not None and self._image is not None:
            (real_name, real), (image_name, image_dtype) = self._real, self._image
            if image_dtype != real and not (real == torch.float32 and image_dtype not in REAL):
                raise TypeError(
                    f"{self.operator}: {image_name} is {image_dtype} and {real_name} is {real}; they should be "
                    "the same, or the image bfloat16 or float16 beside float32"
                )

    def _check_shape(self, name: str, actual: torch.Size, shape: str) -> None:
        axes = shape.split()
        found = actual
        if axes[0] == "...":
            axes = axes[1:]
            found = actual[max(len(actual) - len(axes), 0) :]
        sizes = self.sizes
        right = len(found) == len(axes)
        if right:
            for axis, size in zip(axes, found):  # noqa: B905  their lengths are equal
                if (int(axis) if axis.isdigit() else sizes.setdefault(axis, size)) != size:
                    right = False
                    break
        if not right:
            known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
            same_rank = len(found) == len(axes)
            raise ValueError(
                f"{self.operator}: {name} has shape {list(actual)}, it should be [{', '.join(shape.split())}]"
                + (f" with {known}" if known and same_rank else "")
            )
        if "H" in sizes and "W" in sizes and sizes["H"] * sizes["W"] > 2**31 - 1:
            raise ValueError(
                f"{self.operator}: {name} has {sizes['H']}x{sizes['W']} pixels, it should have no more than 2^31 - 1"
            )


def computed(*tensors: Any, beside: Any = None) -> Any:
    """The float tensors among these in the dtype that is computed in, the rest as it is.

    That is float32 for bfloat16 and float16, and float64 for all of them where the image `beside` them is float64.
    """
    double = isinstance(beside, Tensor) and beside.dtype == torch.float64
    return [
        (tensor.double() if double else tensor.float())
        if isinstance(tensor, Tensor) and (tensor.dtype in HALF or (double and tensor.dtype == torch.float32))
        else tensor
        for tensor in tensors
    ]


def for_each(tensor: Any, *batch: int) -> Any:
    """A matrix [...,r,c], given with the sizes of `batch` before it, with 1 in their place, or without them: as
    [*batch,r,c]. Any other shape is returned unchanged, for the shape check that follows to report."""
    if not isinstance(tensor, Tensor) or tensor.shape[:-2] == batch or not 2 <= tensor.dim() <= 2 + len(batch):
        return tensor
    missing = 2 + len(batch) - tensor.dim()
    if any(size not in (1, whole) for size, whole in zip(tensor.shape[:-2], batch[missing:], strict=True)):
        return tensor
    return tensor.expand(*batch, *tensor.shape[-2:])


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Around a computation: keeps autocast from rounding the operators' own matrix products."""
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
