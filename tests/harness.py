"""Calls operators on their own samples: inputs, outputs and gradients as flat lists of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mcd import Instances, ops
from mcd.ops.registry import OPERATORS, Operator, Sample

CPU = torch.device("cpu")


def serving(name: str, *backends: str) -> list[Any]:
    """Those of these backends that serve this operator here, as parameters; Triton's are marked."""
    operator = OPERATORS[name]
    return [
        pytest.param(backend, marks=pytest.mark.triton if backend == "triton" else ())
        for backend in backends
        if operator.why_not(backend, "cpu") is None
    ]


def samples(
    operator: Operator, device: torch.device = CPU, dtype: torch.dtype = torch.float64, seed: int = 7
) -> list[Sample]:
    """The operator's samples, the same every time. Leaves that take a gradient require it: those that the operator
    marks, else all of the sample's real tensors."""
    made = list(operator.sample_inputs(device, dtype, torch.Generator().manual_seed(seed)))
    for sample in made:
        tensors = leaves(sample)
        if not any(tensor.requires_grad for tensor in tensors):
            for tensor in tensors:
                tensor.requires_grad_(tensor.is_floating_point())
    return made


def leaves(sample: Sample) -> list[Tensor]:
    return [leaf for leaf in tree_flatten((sample.args, sample.kwargs))[0] if isinstance(leaf, Tensor)]


def mapped(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    """The sample with its tensors changed; each stays a leaf that requires a gradient if it did."""

    def changed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return change(leaf.detach()).detach().requires_grad_(leaf.requires_grad)

    args, kwargs = tree_map(changed, (sample.args, sample.kwargs))
    return replace(sample, args=args, kwargs=kwargs)


def call(operator: Operator, sample: Sample, backend: str | None) -> list[Tensor]:
    """The outputs of one call."""
    function = getattr(ops, operator.name)
    result = function(*sample.args, **sample.kwargs, backend=backend)
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def gradients(sample: Sample, outputs: list[Tensor]) -> list[Tensor | None]:
    """Of a fixed random functional of the outputs, to the leaves that require a gradient; None where there is none."""
    wanted = [leaf for leaf in leaves(sample) if leaf.requires_grad]
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs or not wanted:
        return [None] * len(wanted)
    generator = torch.Generator().manual_seed(11)
    weights = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
    # Not a product with the output: a NaN there would reach every gradient.
    return list(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))


def results(operator: Operator, sample: Sample, backend: str | None) -> list[Tensor | None]:
    """Outputs and gradients of one call."""
    outputs = call(operator, sample, backend)
    return [*(output.detach() for output in outputs), *gradients(sample, outputs)]


def spoiled_gradients(name: str, backend: str) -> list[Tensor]:
    """Gradients to the image of backward_warp or forward_warp, the upstream gradient being NaN where nothing can be
    reached; and then at one pixel more, which reaches up to four."""
    sample = CASES[name](Case(torch.Generator().manual_seed(0), 2, 6, 9))
    image, depth = sample.args[:2]
    depth.data[:, :, 0] = nan  # looks nowhere, or sends nothing
    output, _, rest = call(OPERATORS[name], sample, backend)
    reaches = output.isfinite() if name == "backward_warp" else (rest >= 0).unsqueeze(1).expand_as(output)
    assert not reaches.all()
    upstream = torch.where(reaches, 1.0, nan).double()
    spoiled = upstream.clone()
    spoiled[tuple(reaches.nonzero()[-1])] = nan
    return [torch.autograd.grad(output, image, grad, retain_graph=True)[0] for grad in (upstream, spoiled)]


def differentiable(operator: Operator, sample: Sample, backend: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """A function of the leaves that require a gradient alone, as gradcheck wants it, and these leaves."""
    flat, spec = tree_flatten((sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        filled = list(flat)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        args, kwargs = tree_unflatten(filled, spec)
        outputs = call(operator, Sample(args, kwargs), backend)
        # What is NaN has no finite difference.
        return tuple(output.nan_to_num() for output in outputs if output.requires_grad)

    return function, [flat[place] for place in places]


class RegisteredCalls(TorchDispatchMode):
    """Records the calls of `torch.ops.mcd.*` made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "mcd":
            self.calls.append((function, tree_map(lambda arg: arg.detach() if isinstance(arg, Tensor) else arg, args)))
        return function(*args, **(kwargs or {}))


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps inside: distinct storages that are no inputs, masks included."""

    def __init__(self, sample: Sample):
        masks = [argument for argument in sample.args if isinstance(argument, Instances)]
        inputs = [*leaves(sample), *(tensor for mask in masks for tensor in (mask.pixel, mask.offset, mask.frame))]
        self._known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self._kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            self._kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    def __enter__(self) -> SavedForBackward:
        super().__enter__()
        return self

    def bytes(self, outputs: list[Tensor]) -> int:
        known = self._known | {tensor.untyped_storage().data_ptr() for tensor in outputs}
        return sum(tensor.untyped_storage().nbytes() for at, tensor in self._kept.items() if at not in known)
