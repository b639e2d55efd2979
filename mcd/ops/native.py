"""The only caller of the compiled module `mcd._C`: it registers native operators and turns tensors into addresses.

An operator of the compiled module is registered by its schema and by a function that allocates its outputs:

    _fwd = native.define("scale_fwd(Tensor x, float factor) -> Tensor", lambda x, factor: x.new_empty(x.shape))

which makes `torch.ops.mcd.scale_fwd` and returns it. It calls `_C.scale_fwd(x, factor, *outputs, *workspace, where)`:
the arguments in the order of the schema, then what was allocated, then where to run. The same function allocates for
fake tensors, so shapes under torch.compile cannot disagree with the real ones. `registered.differentiate` gives an
operator its gradients.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch  # before _C: the process then has one OpenMP runtime, torch's
from torch import Tensor

from mcd import __version__
from mcd.ops import registered


def _load() -> tuple[Any, str | None]:
    """The compiled module, or None and why there is none."""
    try:
        module = importlib.import_module("mcd._C")
    except ImportError as error:
        return None, f"the compiled module mcd._C does not load ({error}); `make` or `pip install -e .` builds it"
    built = getattr(module, "version", "an older version")  # 0.1.0 had no stamp
    if built != __version__:
        return None, f"mcd._C was built for {built}, this is {__version__}: build again (`make` or `pip install -e .`)"
    return module, None


_C, _why_no_module = _load()
if _why_no_module:
    logging.getLogger("mcd").warning("mcd: %s; until then operators run as slow PyTorch", _why_no_module)


def why_not(device_type: str) -> str | None:
    """None if compiled operators run on this kind of device, else the reason."""
    if _C is None:
        return _why_no_module
    if device_type == "cuda" and not hasattr(_C, "cuda"):
        return "mcd._C was built without CUDA: no nvcc was found"
    if device_type not in ("cpu", "cuda"):
        return f"mcd._C runs on cpu and cuda, not on {device_type}"
    return None


def cpu_targets() -> list[str]:
    """The instruction sets that `_C` has been compiled for and this processor has, the best one last."""
    return [name for name in ("baseline", "avx2", "avx512") if hasattr(_C, name)]


def _cpu_module() -> Any:
    if _C is None:
        return None
    choice = os.environ.get("MCD_CPU") or cpu_targets()[-1]
    if choice not in cpu_targets():
        raise ValueError(f"MCD_CPU is {choice!r}, on this processor it should be one of {', '.join(cpu_targets())}")
    return getattr(_C, choice)


_cpu = _cpu_module()
_forked = False


def _threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    """OpenMP's threads stay behind in the parent process; a child that waits for them hangs."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def define(
    schema: str,
    allocate: Callable[..., Any],
    workspace: Callable[..., tuple[Tensor | None, ...]] | None = None,
    *,
    batched: bool = False,
) -> Callable[..., Any]:
    """Register `_C`'s function of this schema's name as `torch.ops.mcd.<name>` for CPU and CUDA, and return it.

    allocate: the schema's arguments -> its outputs (a tensor or a tuple), contiguous, uninitialised unless stated
        otherwise.
    workspace: the schema's arguments -> scratch tensors that live for the call only.
    batched: see `registered.register`.
    """
    name = schema.split("(")[0].strip()

    def launch_on_cpu(*arguments: Any) -> None:
        getattr(_cpu, name)(*arguments, (_threads(), 0))

    def launch_on_cuda(*arguments: Any) -> None:
        with torch.cuda.device(_device(arguments)):
            getattr(_C.cuda, name)(*arguments, (0, torch.cuda.current_stream().cuda_stream))

    _defined[name] = (schema[len(name) :], allocate, batched)
    launchers = {"cpu": launch_on_cpu, "cuda": launch_on_cuda}
    return _register(name, *_defined[name], workspace, launchers)


def define_launched(name: str, launch: Callable[..., None]) -> Callable[..., Any]:
    """Register `torch.ops.mcd.<name>_triton`, which is `torch.ops.mcd.<name>` with another launcher, and return it.

    launch: takes the schema's arguments and then the outputs that the native operator allocates.
    """

    def launch_on_cuda(*arguments: Any) -> None:
        with torch.cuda.device(_device(arguments)):
            launch(*arguments)

    return _register(f"{name}_triton", *_defined[name], None, {"cpu": launch, "cuda": launch_on_cuda})


def define_in_torch(schema: str, allocate: Callable[..., Any], launch: Callable[..., None]) -> Callable[..., Any]:
    """Register `torch.ops.mcd.<name>` whose outputs are written by torch's own operators, and return it."""
    name = schema.split("(")[0].strip()
    return _register(name, schema[len(name) :], allocate, False, None, {"cpu": launch, "cuda": launch})


def defined(name: str) -> tuple[str, Callable[..., Any]]:
    """The schema of a native operator after its name, and the function that allocates its outputs."""
    return _defined[name][:2]


_defined: dict[str, tuple[str, Callable[..., Any], bool]] = {}


def _register(
    name: str,
    arguments_and_outputs: str,
    allocate: Callable[..., Any],
    batched: bool,
    workspace: Callable[..., tuple[Tensor | None, ...]] | None,
    launchers: Mapping[str, Callable[..., None]],
) -> Callable[..., Any]:
    def runner(launch: Callable[..., None]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            outputs = allocate(*arguments)
            # Held here: copies must outlive the call.
            inputs = [arg.contiguous() if isinstance(arg, Tensor) else _dense(arg) for arg in arguments]
            written = outputs if isinstance(outputs, tuple) else (outputs,)
            launch(*inputs, *written, *(workspace(*arguments) if workspace is not None else ()))
            return outputs

        return run

    implementations = {device_type: runner(launch) for device_type, launch in launchers.items()}
    return registered.register(name, arguments_and_outputs, implementations, allocate, batched)


def _dense(argument: Any) -> Any:
    """A list of tensors, each dense; anything else as it is."""
    if isinstance(argument, list) and argument and isinstance(argument[0], Tensor):
        return [item.contiguous() for item in argument]
    return argument


def _device(arguments: Sequence[Any]) -> torch.device:
    """That of the first tensor, which may be the first of a list; every operator has one."""
    firsts = (argument[0] if isinstance(argument, list | tuple) and argument else argument for argument in arguments)
    return next(first.device for first in firsts if isinstance(first, Tensor))
