"""What is particular to Triton kernels: the sizes that they refuse, sums over many programs."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close_in_float64
from harness import serving
from torch import Tensor

from mcd import ops

pytest.importorskip("triton")

from mcd.kernels.common import check_plane
from mcd.kernels.instances import check_entries


def test_a_plane_that_32_bit_offsets_do_not_reach_is_refused() -> None:
    check_plane("backward_warp", 2**15, 2**15)
    with pytest.raises(ValueError, match=r"backward_warp: 32768x65536 is 2147483648, .* 2\^31"):
        check_plane("backward_warp", 2**15, 2**16)


def test_more_entries_than_32_bit_offsets_reach_are_refused() -> None:
    check_entries("fuse_depth", 2**30)
    with pytest.raises(ValueError, match=r"fuse_depth: instances have 2147483647 pixels"):
        check_entries("fuse_depth", 2**31 - 1)


def gradients(size: tuple[int, int], backend: str) -> list[Tensor]:
    """Of backward_warp's sum, to depth and T_src_ref: a camera that moves by fractions of a pixel."""
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(1, 1, *size, generator=generator, dtype=torch.float64)
    depth = 2 + torch.rand(1, 1, *size, generator=generator, dtype=torch.float64)
    K = torch.tensor([[[6.0, 0, size[1] / 2], [0, 6, size[0] / 2], [0, 0, 1]]], dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64)[None]
    T[:, :2, 3] = torch.tensor([0.11, 0.07])
    leaves = [depth.requires_grad_(), T.requires_grad_()]
    return list(torch.autograd.grad(ops.backward_warp(source, depth, K, T, backend=backend).sum(), leaves))


@pytest.mark.parametrize("backend", serving("backward_warp", "triton"))
def test_camera_gradients_add_up_more_programs_than_are_read_at_once(backend: str) -> None:
    size = (3, 2800)  # 33 programs of 256 pixels
    assert_close_in_float64(gradients(size, backend), gradients(size, "reference"))
