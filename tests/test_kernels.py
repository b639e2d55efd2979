"""What Triton kernels cannot serve is refused before they are launched."""

from __future__ import annotations

import pytest

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
