"""Operators as modules: the same results, options that are bound and shown, and types that a checker infers."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_same
from harness import call, leaves, samples
from torch import nn
from torch.utils._pytree import tree_leaves

import mcd
from mcd import losses, modules, ops
from mcd.ops.registry import OPERATORS

MODULES: dict[str, Any] = {
    "view_synthesis_loss": losses.ViewSynthesisLoss,
    "photometric_error": losses.PhotometricError,
    "smoothness_loss": losses.SmoothnessLoss,
    "motion_sparsity": losses.MotionSparsity,
    "scale_invariant_loss": losses.ScaleInvariantLoss,
    "backward_warp": modules.BackwardWarp,
    "forward_warp": modules.ForwardWarp,
    "instance_stats": modules.InstanceStatistics,
    "align_scale": modules.AlignScale,
    "fuse_depth": modules.FuseDepth,
}

USER = """
from typing import assert_type

import torch
from torch import Tensor

import mcd
from mcd import geometry, losses, modules, ops

image, depth, K, T = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8), torch.eye(3), torch.eye(4)
instances = mcd.Instances.from_masks([torch.ones(1, 8, 8, dtype=torch.bool)])
flag = bool(torch.rand(()) > 0.5)

assert_type(ops.backward_warp(image, depth, K, T), Tensor)
assert_type(ops.backward_warp(image, depth, K, T, return_coords=True), ops.BackwardWarpResult)
assert_type(ops.backward_warp(image, depth, K, T, return_coords=flag), Tensor | ops.BackwardWarpResult)
assert_type(ops.backward_warp(image, depth, K, T, return_coords=True).valid, Tensor)
assert_type(ops.forward_warp(image, depth, K, T), ops.ForwardWarpResult)
assert_type(ops.photometric_error(image, image[None], image[None]), ops.PhotometricErrorResult)
assert_type(ops.view_synthesis_loss(image, image[None], [depth], K, T), ops.ViewSynthesisLossResult)
assert_type(ops.smoothness_loss([depth], [image]), Tensor)
assert_type(ops.motion_sparsity(image), Tensor)
assert_type(ops.instance_stats(depth, instances), ops.InstanceStats)
assert_type(ops.align_scale(torch.ones(64), depth, instances), ops.AlignScaleResult)
assert_type(ops.scale_invariant_loss(depth, depth, depth > 0), ops.ScaleInvariantLossResult)
assert_type(ops.fuse_depth(depth, torch.ones(64), instances), ops.FuseDepthResult)
assert_type(losses.ViewSynthesisLoss()(image, image[None], [depth], K, T).loss, Tensor)
assert_type(losses.SmoothnessLoss()([depth], [image]), Tensor)
assert_type(modules.BackwardWarp()(image, depth, K, T), ops.BackwardWarpResult)
assert_type(modules.InstanceStatistics(quantiles=[0.5])(depth, instances).quantiles, Tensor)
assert_type(geometry.backproject(depth, K), Tensor)
assert_type(geometry.project(geometry.backproject(depth, K), K), tuple[Tensor, Tensor])
"""


def test_every_operator_is_a_module() -> None:
    assert set(MODULES) == set(OPERATORS)
    listed = {getattr(room, name) for room in (losses, modules) for name in room.__all__}
    assert listed == set(MODULES.values())
    text = pydoc.render_doc(mcd)
    assert [module.__name__ for module in listed if module.__name__ not in text] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_what_its_operator_does_with_the_options_that_it_shows(name: str) -> None:
    build = MODULES[name]
    options = inspect.signature(build.__init__).parameters.keys() - {"self"}
    # Module and operator have the same options with the same defaults.
    known = inspect.signature(getattr(ops, name)).parameters
    assert {option: known[option].default for option in options} == {
        option: inspect.signature(build.__init__).parameters[option].default for option in options
    }
    for sample in samples(OPERATORS[name]):
        if not all(leaf.numel() for leaf in leaves(sample)):
            continue
        arguments = inspect.signature(getattr(ops, name)).bind(*sample.args, **sample.kwargs).arguments
        bound = {option: value for option, value in arguments.items() if option in options}
        given = {key: value for key, value in arguments.items() if key not in options and key != "return_coords"}
        module: nn.Module = build(**bound, backend="reference")
        assert "backend='reference'" in repr(module)
        assert all(f"{option}=" in repr(module) for option in options)
        actual = [leaf for leaf in tree_leaves(module(**given)) if isinstance(leaf, torch.Tensor)]
        expected = call(OPERATORS[name], sample, "reference")
        assert_same(actual[: len(expected)], expected, name)
        return
    raise AssertionError("no sample has pixels")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # without a cache it reads all of torch
def test_a_checker_infers_the_types_of_a_users_script(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    script = tmp_path / "user.py"
    script.write_text(USER)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    command += ["--ignore-missing-imports", f"--cache-dir={root / '.mypy_cache'}", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert found.returncode == 0, found.stdout + found.stderr
    script.write_text(USER.replace("T), Tensor)\n", "T), int)\n", 1))
    assert "assert-type" in subprocess.run(command, capture_output=True, text=True, cwd=root).stdout
