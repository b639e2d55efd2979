"""What a call costs that has next to nothing to compute: each operator on images of 4 x 4 pixels.

Beside it, in the same run, a plain operator of `torch.library` with the same arguments, which allocates the same
outputs and does nothing else. The difference is what checks, the choice of a backend and the way into the compiled
module take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcd import Instances, ops
from mcd.ops import native

ALLOWED = 15e-6
"""Seconds above the plain operator that a forward call may take."""
CALLS, ROUNDS = 20, 25
_plain: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Overhead:
    call: float
    plain: float

    @property
    def seconds(self) -> float:
        return self.call - self.plain


def smallest_arguments() -> dict[str, tuple[Any, ...]]:
    """Of each operator: batches of one sample, one source, one instance and one scale, 4 x 4 pixels."""
    image, map_, mask = torch.rand(1, 3, 4, 4), 1 + torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    K, T = torch.tensor([[[4.0, 0, 2], [0, 4, 2], [0, 0, 1]]]), torch.eye(4)[None]
    instances = Instances.from_masks([mask[0]])
    values = torch.rand(16)
    return {
        "backward_warp": (image, map_, K, T),
        "forward_warp": (image, map_, K, T),
        "photometric_error": (image, image[None], image[None]),
        "view_synthesis_loss": (image, image[None], [map_], K, T[None]),
        "smoothness_loss": ([map_], [image]),
        "motion_sparsity": (image,),
        "instance_stats": (values, instances),
        "align_scale": (values, map_, instances, torch.ones(1)),
        "scale_invariant_loss": (map_, map_, mask),
        "fuse_depth": (map_, values, instances),
    }


def measure(name: str, arguments: tuple[Any, ...], requires_grad: bool = False) -> Overhead:
    """Median seconds of processor time of a call and of the plain operator, taken in turns."""
    if requires_grad:
        leaves = [leaf for argument in arguments for leaf in (argument if isinstance(argument, list) else [argument])]
        next(leaf for leaf in leaves if isinstance(leaf, Tensor)).requires_grad_()
    function = getattr(ops, name)
    with _FirstCall() as first:
        function(*arguments)
    plain, values = _plain_operator(first.name), first.arguments
    calls: list[tuple[list[float], Callable[[], Any]]] = [
        ([], lambda: function(*arguments)),
        ([], lambda: plain(*values)),
    ]
    for _ in range(ROUNDS):
        for seconds, call in calls:
            begun = time.thread_time()
            for _ in range(CALLS):
                call()
            seconds.append((time.thread_time() - begun) / CALLS)
    return Overhead(*(median(seconds) for seconds, _ in calls))


class _FirstCall(TorchDispatchMode):
    """The first registered operator that is called inside."""

    name: str = ""
    arguments: tuple[Any, ...] = ()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "mcd" and not self.name:
            self.name, self.arguments = function._opname, args
        return function(*args, **(kwargs or {}))


def _plain_operator(name: str) -> Callable[..., Any]:
    if name not in _plain:
        schema, allocate = native.defined(name)
        torch.library.define(f"mcd_plain::{name}", schema)
        torch.library.impl(f"mcd_plain::{name}", "cpu", allocate)
        _plain[name] = getattr(torch.ops.mcd_plain, name).default
    return _plain[name]


def line(name: str, found: Overhead) -> str:
    call, plain, above = (1e6 * seconds for seconds in (found.call, found.plain, found.seconds))
    return f"{name:22} {call:6.1f} µs, plain {plain:5.1f}, above {above:5.1f}"


@pytest.mark.parametrize("name", smallest_arguments())
def test_overhead(name: str) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        found = measure(name, smallest_arguments()[name])
    verdict = "met" if found.seconds <= ALLOWED else "missed"
    print(f"\n{line(name, found)}: bar {1e6 * ALLOWED:.0f} µs above, {verdict}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, arguments in smallest_arguments().items():
            print(line(name, measure(name, arguments)), flush=True)
