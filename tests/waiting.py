"""What a step asks of the device: its operators are counted, and a wait of the host for a value is refused."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parents[1] / "mcd")
aten = torch.ops.aten

# Their result, or its size, is known to the host only when the device has computed it.
WAITING = {
    aten._local_scalar_dense.default,
    aten.lift_fresh.default,  # a value of the host, which is copied before the host goes on
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.equal.default,
    aten._linalg_check_errors.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TO_THE_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__array__}


class Waits(TorchDispatchMode):
    """Counts operators that launch something, and lists the lines of ``mcd/`` where the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.operators: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self._python = _Python(self)

    def __enter__(self) -> Waits:
        self._python.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._python.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not _is_free(func):
            self.count += 1
            self.operators[str(func)] += 1
        if func in WAITING or _waits(func, args, kwargs or {}):
            self.note(str(func))
        return func(*args, **kwargs or {})

    def note(self, what: str) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT)]
        place = f"{Path(stack[-1].filename).relative_to(ROOT)}:{stack[-1].lineno}" if stack else "outside"
        self.lines[f"{place} {what}"] += 1


class _Python(TorchFunctionMode):
    """On a CPU these are no operators."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_THE_HOST:
            self._waits.note(func.__name__)
        return func(*args, **kwargs or {})


def _is_free(func: Any) -> bool:
    """Views and empty tensors: nothing is launched for them."""
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
    return views or func.overloadpacket in (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty)


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operator waits because of what it is given."""
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    masked = func in INDEXING and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    # One value of the host is written by masked_fill, which does not look for the places.
    return masked and not (func is not aten.index.Tensor and args[2].numel() == 1)
