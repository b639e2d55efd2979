"""Which implementation serves an operator: names, availability, precedence.

Precedence: the operator's `backend` argument, then `use_backend`, then `set_backend` (config, `--backend`), then the
environment variable `MCD_BACKEND`, then `auto`. A choice is one name for all operators, or a map {operator: name}.
`auto` takes the first of `native`, `triton`, `reference` that can serve. What is named for one operator (argument or
map entry) must be served or `BackendUnavailable` is raised; a name for all holds for the operators that have it, the
others take `auto`.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

BACKENDS = ("native", "triton", "reference")
EVERY = "*"
OLDEST_CAPABILITY = (8, 0)
"""Of the GPUs that kernels are compiled for: see `setup.py`."""

Choice = str | Mapping[str, str]


class BackendUnavailable(RuntimeError):  # noqa: N818
    """The backend asked for is unknown or cannot serve here; the message names those that can."""


class _Scoped(threading.local):
    """What `use_backend` has put in force on this thread. Dynamo guards attributes of a threading.local, so compiled
    code is compiled again when the choice changes; a ContextVar would be neither traced nor guarded."""

    def __init__(self) -> None:
        self.choice: dict[str, str] = {}


_scoped = _Scoped()
served: dict[tuple[Any, ...], Callable[..., Any]] = {}
"""What `Operator.implementation` has found, by operator, choice and device; forgotten with every `set_backend`, as
what can serve may have changed."""
_process: dict[str, str] = {}
_environment = os.environ.get("MCD_BACKEND", "")


def entries_of(choice: Choice, origin: str) -> dict[str, str]:
    """A choice as {operator or "*": backend}; raises BackendUnavailable for an unknown backend."""
    if not isinstance(choice, str | Mapping):
        raise TypeError(f"{origin}: a backend is a name or a map {{operator: name}}, not {type(choice).__name__}")
    entries = {EVERY: choice} if isinstance(choice, str) else dict(choice)
    for name in entries.values():
        if name != "auto" and name not in BACKENDS:
            raise BackendUnavailable(f"{origin}: unknown backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    return entries


class use_backend:
    """`with use_backend("reference"):` or `with use_backend({"backward_warp": "native"}):`, on this thread.

    Nests (a map adds to what is in force around it, a name replaces it) and restores the outer choice on exceptions.
    It works inside and around compiled code.
    """

    def __init__(self, choice: Choice):
        self._entries = entries_of(choice, "use_backend")
        self._outer: list[dict[str, str]] = []

    def __enter__(self) -> None:
        self._outer.append(_scoped.choice)
        _scoped.choice = self._entries if EVERY in self._entries else {**_scoped.choice, **self._entries}

    def __exit__(self, *exception: object) -> None:
        _scoped.choice = self._outer.pop()


def set_backend(choice: Choice) -> None:
    """Choose for the whole process, in all its threads; `use_backend` and arguments beat it."""
    global _process
    served.clear()
    if _environment:  # even where it is overruled, a mistake in it is said
        entries_of(_environment, "MCD_BACKEND")
    _process = entries_of(choice, "set_backend")


def chosen(operator: str) -> tuple[str, bool]:
    """The backend in force for an operator, and whether it was named for this operator alone."""
    for entries in (_scoped.choice, _process):
        if operator in entries:
            return entries[operator], True
        if EVERY in entries:
            return entries[EVERY], False
    if _environment:
        return entries_of(_environment, "MCD_BACKEND")[EVERY], False
    return "auto", False


def constant_when_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo calls such a function while it traces, and takes the result for a constant. The decorator of this effect,
    `torch.compiler.assume_constant_result`, would import the whole compiler with every `import mcd`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def why_not(backend: str, device: str | torch.device) -> str | None:
    """None if the backend can run on this device (or the current one of a kind), else the reason in words."""
    device = torch.device(device)
    reason = None
    if backend == "native":
        from mcd.ops import native

        reason = native.why_not(device.type)
    elif backend == "triton":
        reason = _why_no_triton(device.type)
    if reason is None and device.type == "cuda":
        reason = _why_no_cuda(device, compiled=backend != "reference")
    return reason


@constant_when_traced
def _why_no_cuda(device: torch.device, compiled: bool) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if compiled and capability < OLDEST_CAPABILITY:
        return (
            f"this GPU has compute capability {capability[0]}.{capability[1]}, and there is no kernel image for less "
            f"than {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
        )
    return None


@constant_when_traced
def _why_no_triton(device_type: str) -> str | None:
    for module, lack in (
        ("triton", "the package triton is not installed"),
        ("mcd.kernels", "mcd.kernels is not installed; `make` or `pip install -e .` does that"),
    ):
        if importlib.util.find_spec(module) is None:
            return lack
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on CPU triton runs only in its interpreter (TRITON_INTERPRET=1)"
    if device_type not in ("cpu", "cuda"):
        return f"triton kernels run on cuda, not on {device_type}"
    return None


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """{backend: None if it can run on `device`, else why not}; an operator may have fewer than these."""
    return {backend: why_not(backend, device) for backend in BACKENDS}
