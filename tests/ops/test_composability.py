"""Every operator inside what torch builds around functions: transforms, export, second derivatives, mixed dtypes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compare import assert_close_in_float64, assert_same
from harness import call, leaves, mapped, results, samples
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mcd import ops
from mcd.ops.registry import OPERATORS, Operator, Sample

Function = Callable[..., tuple[Tensor, ...]]


def pairs(*backends: str) -> list:
    return [
        pytest.param(operator, backend, id=f"{name}-{backend}")
        for backend in backends
        for name, operator in OPERATORS.items()
        if operator.why_not(backend, "cpu") is None
    ]


NATIVE = pairs("native")
EVERY = pairs("reference", "native")


def function_of(operator: Operator, backend: str) -> tuple[Function, list[Tensor]]:
    """The outputs that have gradients, as a function of the leaves that take them; and these leaves."""
    sample = next(sample for sample in samples(operator) if all(leaf.numel() for leaf in leaves(sample)))
    flat, spec = tree_flatten((sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]
    kept = [i for i, output in enumerate(call(operator, sample, backend)) if output.requires_grad]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        filled = list(flat)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        args, kwargs = tree_unflatten(filled, spec)
        outputs = call(operator, Sample(args, kwargs), backend)
        return tuple(outputs[i].nan_to_num() for i in kept)

    return function, [flat[place].detach() for place in places]


def loss_of(function: Function) -> Callable[..., Tensor]:
    return lambda *values: torch.stack([output.square().sum() for output in function(*values)]).sum()


def gradients_of(loss: Callable[..., Tensor], values: list[Tensor]) -> list[Tensor]:
    values = [value.clone().requires_grad_() for value in values]
    return list(torch.autograd.grad(loss(*values), values))


def rows(values: list[Tensor]) -> list[list[Tensor]]:
    """Three inputs that differ."""
    return [[value * factor for value in values] for factor in (1.0, 1.003, 0.998)]


@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_torch_func_grad_finds_the_gradients_of_autograd(operator: Operator, backend: str) -> None:
    function, values = function_of(operator, backend)
    loss = loss_of(function)
    actual = torch.func.grad(loss, tuple(range(len(values))))(*values)
    assert_close_in_float64(actual, gradients_of(loss, values), relative=1e-12)


@pytest.mark.parametrize("in_dim", [0, -1])
@pytest.mark.parametrize(("operator", "backend"), NATIVE)
def test_vmap_is_a_call_for_each_row(operator: Operator, backend: str, in_dim: int) -> None:
    function, values = function_of(operator, backend)
    several = rows(values)
    stacked = [torch.stack(parts, in_dim) for parts in zip(*several, strict=True)]
    expected = [torch.stack(outputs) for outputs in zip(*(function(*one) for one in several), strict=True)]
    assert_same(torch.vmap(function, in_dims=in_dim)(*stacked), expected)
    # One input is mapped over, the others are the same for all rows.
    alone = torch.vmap(function, in_dims=(in_dim, *[None] * (len(values) - 1)))(stacked[0], *values[1:])
    expected = [torch.stack(parts) for parts in zip(*(function(one[0], *values[1:]) for one in several), strict=True)]
    assert_same(alone, expected)
    # No rows at all, and rows of rows.
    assert [len(output) for output in torch.vmap(function)(*(stack.movedim(in_dim, 0)[:0] for stack in stacked))] == [
        0
    ] * len(expected)
    twice = torch.vmap(torch.vmap(function))(*(torch.stack(parts).unsqueeze(0) for parts in zip(*several, strict=True)))
    assert_same([output.squeeze(0) for output in twice], torch.vmap(function, in_dims=in_dim)(*stacked))


@pytest.mark.parametrize(("operator", "backend"), NATIVE)
def test_gradients_of_vmap_and_vmap_of_gradients(operator: Operator, backend: str) -> None:
    function, values = function_of(operator, backend)
    loss, several, every = loss_of(function), rows(values), tuple(range(len(values)))
    stacked = [torch.stack(parts) for parts in zip(*several, strict=True)]
    expected = [torch.stack(parts) for parts in zip(*(gradients_of(loss, one) for one in several), strict=True)]
    per_row = torch.vmap(torch.func.grad(loss, every))(*stacked)
    assert_close_in_float64(per_row, expected, "of each row", 1e-12)
    of_the_sum = torch.func.grad(lambda *stacks: torch.vmap(loss)(*stacks).sum(), every)(*stacked)
    assert_close_in_float64(of_the_sum, expected, "of the sum", 1e-12)


@pytest.mark.parametrize(("operator", "backend"), NATIVE)
def test_a_second_derivative_names_the_backend_that_has_it(operator: Operator, backend: str) -> None:
    function, values = function_of(operator, backend)
    loss = loss_of(function)
    inputs = [value.clone().requires_grad_() for value in values]
    grads = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{operator.name}: the native backend .*backend='reference'"):
        torch.autograd.grad(torch.stack([grad.square().sum() for grad in grads]).sum(), inputs)

    def slope(*values: Tensor) -> Tensor:
        return torch.stack([g.square().sum() for g in torch.func.grad(loss, tuple(range(len(values))))(*values)]).sum()

    with pytest.raises(RuntimeError, match=rf"{operator.name}: the native backend"):
        torch.func.grad(slope)(*values)


@pytest.mark.parametrize("operator", [pytest.param(operator, id=name) for name, operator in OPERATORS.items()])
def test_the_reference_has_second_derivatives(operator: Operator) -> None:
    checked = 0
    for sample in samples(operator):
        entries = sum(leaf.numel() for leaf in leaves(sample) if leaf.requires_grad)
        if sample.detached or entries > 250 or not leaves(sample)[0].numel():
            continue
        if any(output.isnan().any() for output in call(operator, sample, "reference")):
            continue  # which has no finite difference
        flat, spec = tree_flatten((sample.args, sample.kwargs))
        places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]

        def function(*values: Tensor, flat: list = flat, spec: object = spec, places: list = places) -> tuple:
            filled = list(flat)
            for place, value in zip(places, values, strict=True):
                filled[place] = value
            args, kwargs = tree_unflatten(filled, spec)  # type: ignore[arg-type]
            outputs = call(operator, Sample(args, kwargs), "reference")
            return tuple(output for output in outputs if output.requires_grad)

        inputs = [flat[place] for place in places]
        checked += torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
        break  # one sample says it; the formula was checked with the first derivatives
    if not checked:
        pytest.skip("a part of its formula is detached")


class User(nn.Module):
    """A module with a parameter in front of an operator."""

    def __init__(self, function: Function):
        super().__init__()
        self.function = function
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.function(*(value * self.factor for value in values))


@pytest.mark.compiles
@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_a_module_is_exported_for_training_and_for_inference(operator: Operator, backend: str) -> None:
    function, values = function_of(operator, backend)
    user = User(function)
    expected = user.train()(*values)
    (grad,) = torch.autograd.grad(torch.stack([output.square().sum() for output in expected]).sum(), user.factor)

    exported = torch.export.export(user, tuple(values)).module()
    actual = exported(*values)
    assert_close_in_float64([output.detach() for output in actual], [output.detach() for output in expected])
    loss = torch.stack([output.square().sum() for output in actual]).sum()
    assert_close_in_float64(torch.autograd.grad(loss, list(exported.parameters())), [grad])

    with torch.no_grad():
        program = torch.export.export(user.eval(), tuple(values))
    if backend == "native":
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert f"mcd.{operator.name}_fwd.default" in called
    assert_close_in_float64([x.detach() for x in program.module()(*values)], [x.detach() for x in expected])


CAMERAS = {"backward_warp": "T_src_ref", "forward_warp": "T_dst_ref", "view_synthesis_loss": "T_src_ref"}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", CAMERAS)
def test_cameras_may_be_those_of_all_samples(name: str, backend: str) -> None:
    operator = OPERATORS[name]
    sample = samples(operator)[0]
    place = 3 if name == "view_synthesis_loss" else 2
    K, T = (sample.args[at].detach()[:1] for at in (place, place + 1))
    batch = len(sample.args[0])
    assert batch > 1
    for shared in ((K, T), (K[0], T[0])):
        wants = [camera.clone().requires_grad_() for camera in shared]
        whole = [
            camera.expand(batch, *camera.shape[-len(own.shape[1:]) :])
            for camera, own in zip(wants, (K, T), strict=True)
        ]
        found = []
        for cameras in (wants, whole):
            args = (*sample.args[:place], *cameras, *sample.args[place + 2 :])
            outputs = call(operator, replace(sample, args=args), backend)
            reached = [output for output in outputs if output.requires_grad]
            grads = torch.autograd.grad(reached, wants, [torch.ones_like(o) for o in reached], allow_unused=True)
            found.append([*(output.detach() for output in outputs), *grads])
        assert_same(*found, what=name)
    with pytest.raises(ValueError, match=rf"{name}: K has shape"):
        wrong = (*sample.args[:place], K.expand(batch + 1, 3, 3), *sample.args[place + 1 :])
        call(operator, replace(sample, args=wrong), backend)


def images_of(operator: Operator, sample: Sample) -> list[Tensor]:
    """The arguments that are images, whose dtype warped images keep."""
    if operator.name == "view_synthesis_loss":
        return list(sample.args[:2])
    if operator.name == "photometric_error":
        return list(sample.args[:3])
    if operator.name == "smoothness_loss":
        return list(sample.args[1]) if len(sample.args) > 1 else []
    return [sample.args[0]] if operator.name in ("backward_warp", "forward_warp") else []


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("operator", "backend"), EVERY)
def test_geometry_of_half_precision_is_computed_in_float32(operator: Operator, backend: str, half: torch.dtype) -> None:
    sample = samples(operator, dtype=torch.float32)[0]
    low = mapped(sample, lambda leaf: leaf.to(half) if leaf.is_floating_point() else leaf)
    images = {image.data_ptr() for image in images_of(operator, low)}
    # What the low precision stands for, images aside, which every backend reads as they are.
    exact = mapped(
        low, lambda leaf: leaf.float() if leaf.is_floating_point() and leaf.data_ptr() not in images else leaf
    )
    actual, expected = results(operator, low, backend), results(operator, exact, backend)
    for ours, theirs in zip(actual, expected, strict=True):
        if ours is not None and theirs is not None and ours.is_floating_point():
            assert_same([ours.float()], [theirs.to(ours.dtype).float()], operator.name)
    if images and operator.name.endswith("warp"):
        assert actual[0] is not None
        assert actual[0].dtype == half


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", ["backward_warp", "forward_warp", "view_synthesis_loss", "smoothness_loss"])
def test_a_float64_image_beside_float32_geometry_is_computed_in_float64(name: str, backend: str) -> None:
    operator = OPERATORS[name]
    exact = samples(operator)[0]
    images = {image.data_ptr() for image in images_of(operator, exact)}
    single = mapped(exact, lambda leaf: leaf if leaf.data_ptr() in images else leaf.float())
    double = mapped(single, lambda leaf: leaf.double())
    outputs, expected = call(operator, single, backend), call(operator, double, backend)
    assert outputs[0].dtype == torch.float64
    assert_same([output.detach() for output in outputs], [output.detach() for output in expected], name)


def test_the_fast_way_round_autograd_is_not_taken_where_a_gradient_is_needed() -> None:
    motion = torch.ones(1, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert not ops.motion_sparsity(motion).requires_grad
    assert ops.motion_sparsity(motion).requires_grad
    with torch.inference_mode():
        assert ops.motion_sparsity(motion).is_inference()
