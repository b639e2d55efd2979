"""Conventions and results against packages that others use, where these are installed (`make peers`)."""

import math
import sys
from pathlib import Path

import pytest
import torch

from mcd import geometry, ops

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import peers
from benchmarks.inputs import make

SIZE = (2, 24, 40)
CPU = torch.device("cpu")


def in_double(operator: str) -> tuple:
    """The operator's inputs of training kind, small and in float64."""
    return tuple(
        argument.detach().double() if isinstance(argument, torch.Tensor) and argument.is_floating_point() else argument
        for argument in make(operator, SIZE, CPU).args
    )


def test_euler_angles_are_those_of_pytorch3d():
    transforms = pytest.importorskip("pytorch3d.transforms", reason="pytorch3d is not installed")
    angles = torch.empty(50, 3, dtype=torch.float64).uniform_(-math.pi, math.pi)
    expected = transforms.euler_angles_to_matrix(angles, "XYZ")
    torch.testing.assert_close(geometry.euler_to_matrix(angles), expected, rtol=0, atol=1e-12)


def test_backward_warp_looks_where_kornia_looks():
    pytest.importorskip("kornia", reason="kornia is not installed (make peers)")
    arguments = in_double("backward_warp")
    # kornia guards its division with an epsilon of its own.
    torch.testing.assert_close(ops.backward_warp(*arguments), peers.kornia_warp(*arguments), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_nearest_ray_of_a_cell_is_the_maximum_of_torch_scatter(backend):
    pytest.importorskip("torch_scatter", reason="torch-scatter is not installed (make peers)")
    arguments = in_double("forward_warp")
    expected = peers.splat_by_torch_scatter(*arguments)[1]
    depth_dst = ops.forward_warp(*arguments, backend=backend)[1]
    torch.testing.assert_close(depth_dst, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_nearest_object_of_a_pixel_is_the_minimum_of_torch_scatter(backend):
    pytest.importorskip("torch_scatter", reason="torch-scatter is not installed (make peers)")
    arguments = in_double("fuse_depth")
    expected = peers.fuse_by_torch_scatter(*arguments)[0]
    assert torch.equal(ops.fuse_depth(*arguments, backend=backend)[0], expected)
