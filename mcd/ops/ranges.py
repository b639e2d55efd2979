"""Named ranges for profilers: off, and then free, unless somebody listens.

`MCD_NVTX=1` sends them to NVTX (domain `mcd`): `backward_warp.forward` and `backward_warp.backward` are the passes of
an operator, whichever backend serves it. Inside compiled code there are none.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

DOMAIN = "mcd"


End = Callable[[], None]


sinks: list[Callable[[str], End]] = []
"""Each begins a range of a name and returns what ends it."""


def nvtx_range(name: str) -> End:
    """A range of NVTX that may end on another thread, as the backward pass of CUDA tensors runs on one of its own."""
    import nvtx

    begun = nvtx.start_range(name, domain=DOMAIN)
    return lambda: nvtx.end_range(begun)


def torch_range(name: str) -> End:
    """A range in the trace of torch.profiler."""
    begun = torch.profiler.record_function(name)
    begun.__enter__()
    return lambda: begun.__exit__(None, None, None)


def begin(name: str) -> End:
    ends = [sink(name) for sink in sinks]

    def end() -> None:
        for one in reversed(ends):
            one()

    return end


@contextmanager
def range_of(name: str) -> Iterator[None]:
    end = begin(name)
    try:
        yield
    finally:
        end()


def ranged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with ranges around its forward pass and around the backward pass of what it returns.

    The backward range begins with the first gradient of an output and ends when those of all inputs are there.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        open_ranges: list[End] = []

        def enter(gradients: Any) -> None:
            if not open_ranges:
                open_ranges.append(begin(f"{name}.backward"))

        def leave() -> None:
            if open_ranges:
                open_ranges.pop()()

        flat, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if places and torch.is_grad_enabled():
            for place, tensor in zip(places, _LastOfBackward.apply(leave, *(flat[i] for i in places)), strict=True):
                flat[place] = tensor
        args, kwargs = tree_unflatten(flat, spec)
        with range_of(f"{name}.forward"):
            outputs = function(*args, **kwargs)
        for output in tree_flatten(outputs)[0]:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                output.grad_fn.register_prehook(enter)
        return outputs

    return run


class _LastOfBackward(torch.autograd.Function):
    """Passes tensors on as they are; calls `leave` in the backward pass, when the gradients of all have arrived."""

    @staticmethod
    def forward(ctx: Any, leave: End, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.leave = leave
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.leave()
        return None, *gradients


if os.environ.get("MCD_NVTX") == "1":
    if importlib.util.find_spec("nvtx"):
        sinks.append(nvtx_range)
    else:
        logging.getLogger("mcd").warning(
            "mcd: MCD_NVTX=1 needs nvtx: pip install 'mcd-depth[profile]'; until then there are no ranges"
        )
