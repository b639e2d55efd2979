"""The operators by name: what they are made of, and which of their implementations runs.

Tests and benchmarks go through `OPERATORS`, so an operator that registers itself is tested and timed with the others.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mcd.ops import backend as backends
from mcd.ops import ranges
from mcd.ops.backend import BACKENDS, BackendUnavailable


@dataclass(frozen=True)
class Sample:
    """Arguments for one call of an operator, and what they stand for.

    detached: the operator takes a part of its formula for a constant here, so finite differences see another gradient.
    """

    args: tuple
    kwargs: dict = field(default_factory=dict)
    label: str = ""
    detached: bool = False


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator and its implementations, which all take the same arguments.

    name: the stem.
    reference: plain PyTorch; it defines the others.
    native: the compiled implementation with its autograd, or None.
    triton: "module:function", imported when first used, or None.
    sample_inputs: (device, dtype, generator) -> samples: small, off the discontinuities, float inputs in `dtype`.
    bytes_moved: sample -> compulsory bytes of one forward pass, each tensor touched once.
    """

    name: str
    reference: Callable[..., Any]
    sample_inputs: Callable[[torch.device, torch.dtype, torch.Generator], Iterable[Sample]]
    native: Callable[..., Any] | None = None
    triton: str | None = None
    bytes_moved: Callable[[Sample], int] | None = None

    def why_not(self, backend: str, device: str | torch.device) -> str | None:
        """None if this operator can run with `backend` on this device (or kind of device), else the reason."""
        if getattr(self, backend) is None:
            return f"{self.name} has no {backend} implementation"
        return backends.why_not(backend, device)

    def backend(self, backend: str | None, device: str | torch.device) -> str:
        """The name of the backend that serves; `backend` is the call's own argument."""
        return self._serving(*self._choice(backend), device)

    def _choice(self, backend: str | None) -> tuple[str, bool]:
        return (backend, True) if backend is not None else backends.chosen(self.name)

    def _serving(self, name: str, named_for_it: bool, device: str | torch.device) -> str:
        if name != "auto" and name in BACKENDS:
            reason = self.why_not(name, device)
            if reason is None:
                return name
        else:
            reason = f"unknown backend {name!r}"
        usable = [known for known in BACKENDS if self.why_not(known, device) is None]
        if name != "auto" and named_for_it:
            raise BackendUnavailable(
                f"{self.name}: backend {name!r} cannot serve {device}: {reason}; "
                f"available: {', '.join(usable) or 'none'}"
            )
        return usable[0]

    def implementation(self, backend: str | None, tensor: Tensor) -> Callable[..., Any]:
        """The function that serves tensors like this one."""
        if torch.compiler.is_compiling():  # found anew: what is found would be guarded by all that is remembered
            return self._function(*self._choice(backend), tensor.device)
        choice = self._choice(backend)
        place = (self, choice, tensor.device)
        function = backends.served.get(place)
        if function is None:
            function = backends.served[place] = self._function(*choice, tensor.device)
        return ranges.ranged(self.name, function) if ranges.sinks else function

    def _function(self, name: str, named_for_it: bool, device: torch.device) -> Callable[..., Any]:
        served = self._serving(name, named_for_it, device)
        return _imported(str(self.triton)) if served == "triton" else getattr(self, served)


OPERATORS: dict[str, Operator] = {}
_triton_functions: dict[str, Callable[..., Any]] = {}


def register(operator: Operator) -> Operator:
    if operator.name in OPERATORS:
        raise ValueError(f"operator {operator.name!r} is registered already")
    backends.served.clear()
    OPERATORS[operator.name] = operator
    return operator


def check_choice(choice: backends.Choice, origin: str) -> None:
    """Raise BackendUnavailable where a choice names a backend or an operator that does not exist."""
    for name in backends.entries_of(choice, origin):
        if name != backends.EVERY and name not in OPERATORS:
            near = difflib.get_close_matches(name, OPERATORS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(OPERATORS)}"
            raise BackendUnavailable(f"{origin}: unknown operator {name!r}{hint}")


def backend_summary(device: str | torch.device = "cpu") -> str:
    """One line for the start of a run: which backend serves which operator on `device`."""
    served: dict[str, list[str]] = {}
    for operator in OPERATORS.values():
        served.setdefault(operator.backend(None, torch.device(device).type), []).append(operator.name)
    return "; ".join(f"{backend}: {', '.join(names)}" for backend, names in served.items())


def _imported(path: str) -> Callable[..., Any]:
    _import(path)
    return _triton_functions[path]


@backends.constant_when_traced
def _import(path: str) -> None:
    if path not in _triton_functions:
        module, function = path.split(":")
        _triton_functions[path] = getattr(importlib.import_module(module), function)
