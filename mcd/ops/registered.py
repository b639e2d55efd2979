"""Registers operators with torch: what autograd, `torch.func`, `torch.export` and `torch.compile` need of them.

    forward = register("scale_fwd", "(Tensor x, float factor) -> Tensor", {"cpu": ...}, fake)
    scale = differentiate(forward, save, gradients)

`torch.library.register_autograd` serves neither `torch.func.grad` nor functions that look at which inputs need a
gradient before the forward pass, so operators have an autograd kernel of their own. It runs at the level of whatever
transform is active and hands the call on to the next one. Gradients are once differentiable: a second derivative raises
an error that names the reference backend, which has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.utils._pytree import tree_map

_library = torch.library.Library("mcd", "FRAGMENT")


@dataclass
class _Formula:
    """How an operator is differentiated; `differentiate` replaces the one that refuses."""

    save: Callable[..., None]
    gradients: Callable[..., Any]
    prepare: Callable[..., Sequence[Any]]


_formulas: dict[str, _Formula] = {}


def register(
    name: str,
    arguments_and_outputs: str,
    implementations: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    batched: bool = False,
) -> Callable[..., Any]:
    """Register `torch.ops.mcd.<name>`, and return it.

    implementations: by kind of device.
    fake: allocates the outputs, for tensors without data.
    batched: all tensors begin with the batch, whose samples do not see each other. `torch.vmap` then makes a larger
        batch; for the others it is a loop.
    """
    _library.define(name + arguments_and_outputs)
    for device_type, implementation in implementations.items():
        _library.impl(name, implementation, device_type.upper())
    torch.library.register_fake(f"mcd::{name}", fake, lib=_library)
    op = getattr(torch.ops.mcd, name).default
    stem, _, backend = name.replace("_fwd", "_bwd").partition("_bwd")

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"{stem}: the {backend.lstrip('_') or 'native'} backend has first derivatives only; backend='reference' has"
            " derivatives of any order"
        )

    _formulas[name] = _Formula(lambda ctx, inputs, outputs: None, refuse, lambda arguments: arguments)
    _library.impl(name, _autograd_kernel(name, op), "Autograd", with_keyset=True)
    torch.library.register_vmap(f"mcd::{name}", _vmap_batch(op) if batched else _vmap_loop(op), lib=_library)
    return op


def differentiate(
    op: Any,
    save: Callable[..., None],
    gradients: Callable[..., Any],
    prepare: Callable[..., Sequence[Any]] = lambda arguments: arguments,
) -> Callable[..., Any]:
    """Give a registered operator its gradients, and return a function that calls it.

    save: (ctx, inputs, outputs) saves tensors and marks outputs; it saves no more than `gradients` cannot do without.
    gradients: (ctx, *grad_outputs) -> a gradient or None for each input, a list for a list of tensors. It computes by
        registered operators, or it could be differentiated a second time without any error.
    prepare: the inputs -> the inputs to go on with, where one of them says whether gradients are needed.
    """
    _formulas[op._schema.name.removeprefix("mcd::")] = _Formula(save, gradients, prepare)

    def call(*arguments: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            or (torch.is_grad_enabled() and _any_requires_grad(arguments))
        ):
            return op(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # spares the call two passages between Python and C++
            return op(*arguments)

    return call


@dataclass
class _Call:
    """What goes with the tensors of one differentiable call: lists of tensors are spliced, as autograd wants them."""

    keyset: Any
    counts: Sequence[int | None]
    """Of each argument: how many tensors its list has, None if it is no list of tensors."""
    output_counts: Sequence[int | None] = ()


def _autograd_kernel(name: str, op: Any) -> Callable[..., Any]:
    """What runs where autograd is on, at each level of transforms."""
    lists = [_is_list_of_tensors(argument) for argument in op._schema.arguments]
    output_lists = [_is_list_of_tensors(output) for output in op._schema.returns]
    single = len(output_lists) == 1

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            *leaves, call = flat
            inputs = _nested(leaves, call.counts)
            with ExitStack() as stack:
                if torch._C._are_functorch_transforms_active():  # the next one may differentiate too
                    stack.enter_context(torch.enable_grad())
                outputs = _below_autograd(op, call.keyset, inputs)
            _formulas[name].save(ctx, inputs, outputs)
            ctx.call = call
            flat_outputs, call.output_counts = _flat((outputs,) if single else outputs, output_lists)
            return tuple(flat_outputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            found = _formulas[name].gradients(ctx, *_nested(grads, ctx.call.output_counts))
            return *_flat(found, lists)[0], None

    # Not Gradient.apply: it would start again from the outermost transform, and this level is being handled already.
    apply = super(torch.autograd.Function, Gradient).apply

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if not (torch.is_grad_enabled() and _any_requires_grad(arguments)):
            return _below_autograd(op, keyset, arguments)
        leaves, counts = _flat(_formulas[name].prepare(arguments), lists)
        call = _Call(keyset, counts)
        with enable_single_level_autograd_function():
            outputs = _nested(apply(*leaves, call), call.output_counts)
        return outputs[0] if single else tuple(outputs)

    return kernel


def _below_autograd(op: Any, keyset: Any, arguments: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _vmap_loop(op: Any) -> Callable[..., Any]:
    """A call for each row of the dimension that is mapped over."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        def row(argument: Any, dim: Any, index: int) -> Any:
            if isinstance(argument, list | tuple):
                dims = dim if isinstance(dim, list | tuple) else [dim] * len(argument)
                return [row(*one, index) for one in zip(argument, dims, strict=True)]
            if dim is None or not isinstance(argument, Tensor):
                return argument
            if info.batch_size == 0:  # the shapes of the outputs come from a call all the same
                return argument.movedim(dim, 0).new_zeros(argument.movedim(dim, 0).shape[1:])
            return argument.select(dim, index)

        rows = [
            op(*(row(*one, index) for one in zip(arguments, in_dims, strict=True)))
            for index in range(max(info.batch_size, 1))
        ]
        outputs = tree_map(lambda *parts: torch.stack(parts)[: info.batch_size], rows[0], *rows[1:])
        return outputs, tree_map(lambda _: 0, outputs)

    return rule


def _vmap_batch(op: Any) -> Callable[..., Any]:
    """One call, the dimension that is mapped over being a part of the batch."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        def folded(argument: Any, dim: Any) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            if dim is None:
                return argument.expand(info.batch_size, *argument.shape).flatten(0, 1)
            return argument.movedim(dim, 0).flatten(0, 1)

        def unfolded(output: Tensor) -> Tensor:
            if output.dim() == 1:  # not asked for, and so without elements
                return output.new_empty(info.batch_size, 0)
            return output.unflatten(0, (info.batch_size, batch))

        folded_arguments = [folded(*one) for one in zip(arguments, in_dims, strict=True)]
        first, dim = arguments[0], in_dims[0]
        batch = first.shape[0] if dim is None else first.movedim(dim, 0).shape[1]
        outputs = tree_map(unfolded, op(*folded_arguments))
        return outputs, tree_map(lambda _: 0, outputs)

    return rule


def _any_requires_grad(arguments: Sequence[Any]) -> bool:
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.requires_grad:
                return True
        elif isinstance(argument, list | tuple) and _any_requires_grad(argument):
            return True
    return False


def _is_list_of_tensors(of_schema: Any) -> bool:
    return bool(of_schema.type.isSubtypeOf(torch.ListType.ofTensors()))


def _flat(arguments: Sequence[Any], lists: Sequence[bool]) -> tuple[list[Any], list[int | None]]:
    """The arguments with their lists of tensors spliced, and the lengths of these lists."""
    flat: list[Any] = []
    counts: list[int | None] = []
    for argument, is_list in zip(arguments, lists, strict=True):
        if is_list:
            flat.extend(argument)
            counts.append(len(argument))
        else:
            flat.append(argument)
            counts.append(None)
    return flat, counts


def _nested(flat: Sequence[Any], counts: Sequence[int | None]) -> list[Any]:
    leaves = iter(flat)
    return [next(leaves) if count is None else [next(leaves) for _ in range(count)] for count in counts]
