"""Backward warp against a loop over pixels, and its edges."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest
import torch
from compare import assert_close_in_float64, assert_same
from harness import results, samples, serving
from torch import Tensor

import mcd
from mcd.ops import OPERATORS, backward_warp, native

needs_native = pytest.mark.skipif(
    OPERATORS["backward_warp"].why_not("native", "cpu") is not None, reason="mcd._C is not built"
)


@pytest.fixture(params=serving("backward_warp", "reference", "native", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def camera(height: int, width: int, batch: int = 1) -> Tensor:
    K = torch.tensor([[0.8 * width, 0.1, 0.45 * width], [0, 1.1 * width, 0.55 * height], [0, 0, 1]])
    return K.double().repeat(batch, 1, 1)


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0, batch: int = 1) -> Tensor:
    T = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    T[:, :3, 3] = torch.tensor([x, y, z])
    return T


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high)


def loop(
    source: Tensor, depth: Tensor, K: Tensor, T: Tensor, motion: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One pixel at a time, as a reader would do it by hand."""
    batch, _, height, width = source.shape
    _, _, rows, columns = depth.shape
    warped, coords = torch.empty_like(source), torch.empty(batch, 2, height, width, dtype=source.dtype)
    valid = torch.empty(batch, 1, height, width, dtype=torch.bool)

    def between(i: int, size: int, small: int) -> tuple[int, int, float]:
        at = max((i + 0.5) * small / size - 0.5, 0)
        return int(at), min(int(at) + 1, small - 1), at - int(at)

    for b in range(batch):
        for y in range(height):
            for x in range(width):
                top, bottom, v = between(y, height, rows)
                left, right, u = between(x, width, columns)
                d = depth[b, 0]
                z = (1 - v) * ((1 - u) * d[top, left] + u * d[top, right]) + v * (
                    (1 - u) * d[bottom, left] + u * d[bottom, right]
                )
                point = T[b, :3, :3] @ (z * torch.linalg.solve(K[b], torch.tensor([x, y, 1.0]).double())) + T[b, :3, 3]
                if motion is not None and motion.shape[1] == 3:
                    point = point + motion[b, :, y, x]
                q = K[b] @ point
                if motion is not None and motion.shape[1] == 2:
                    q[:2] += motion[b, :, y, x]
                px, py = (float(value) for value in q[:2] / (q[2] + 1e-5))
                valid[b, 0, y, x] = bool(q[2] > 1e-3) and 0 <= px <= width - 1 and 0 <= py <= height - 1
                px, py = min(max(px, 0), width - 1), min(max(py, 0), height - 1)
                coords[b, :, y, x] = torch.tensor([px, py], dtype=source.dtype)
                x0, y0 = int(px), int(py)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                u, v = px - x0, py - y0
                image = source[b]
                warped[b, :, y, x] = (1 - v) * ((1 - u) * image[:, y0, x0] + u * image[:, y0, x1]) + v * (
                    (1 - u) * image[:, y1, x0] + u * image[:, y1, x1]
                )
    return warped, coords, valid


@pytest.mark.parametrize("motion", [None, 2, 3])
@pytest.mark.parametrize("small", [(5, 7), (2, 3), (1, 1)])
def test_is_the_loop_over_pixels(backend: str, motion: int | None, small: tuple[int, int]) -> None:
    source, depth = uniform(0, 1, 2, 3, 5, 7), uniform(2, 4, 2, 1, *small)
    T = pose(0.2, -0.3, 0.5, batch=2)
    T[:, 0, 1], T[:, 1, 0] = 0.05, -0.05
    args = (source, depth, camera(5, 7, 2), T, None if motion is None else uniform(-3, 3, 2, motion, 5, 7))
    expected = loop(*args)
    assert not expected[2].all()
    assert expected[2].any()
    assert_close_in_float64(backward_warp(*args, return_coords=True, backend=backend), expected, relative=1e-12)


def test_a_camera_that_does_not_move_sees_the_same_image(backend: str) -> None:
    source = uniform(0, 1, 1, 3, 6, 8)
    same = backward_warp(source, uniform(5, 9, 1, 1, 6, 8), camera(6, 8), pose(), backend=backend)
    # The divisor's 1e-5 draws each pixel towards the origin by 1e-5 / depth of its coordinate.
    torch.testing.assert_close(same, source, rtol=0, atol=4e-5)


def test_outside_the_image_stands_its_border_without_gradient(backend: str) -> None:
    source = uniform(0, 1, 1, 2, 4, 6)
    depth = torch.ones(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    T = pose(x=100).requires_grad_()
    warped, coords, valid = backward_warp(source, depth, camera(4, 6), T, return_coords=True, backend=backend)
    assert (coords[:, 0] == 5).all()
    assert not valid.any()
    warped.sum().backward()
    # y still moves, x does not: a shift along x changes nothing.
    assert T.grad is not None
    assert T.grad[0, 0, 3] == 0


def test_behind_the_camera_nothing_is_valid(backend: str) -> None:
    args = uniform(0, 1, 1, 1, 4, 6), uniform(1, 2, 1, 1, 4, 6), camera(4, 6), pose(z=-5)
    warped, _, valid = backward_warp(*args, return_coords=True, backend=backend)
    assert not valid.any()
    assert warped.isfinite().all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["depth", "motion"])
def test_what_is_not_finite_spoils_the_pixels_that_read_it_and_no_gradient(
    backend: str, where: str, wrong: float
) -> None:
    source = uniform(0, 1, 1, 2, 6, 8).requires_grad_()
    depth, motion = uniform(2, 3, 1, 1, 6, 8), uniform(-1, 1, 1, 2, 6, 8)
    (depth if where == "depth" else motion)[0, 0, 2, 3] = wrong
    K, T = camera(6, 8).requires_grad_(), pose(0.1).requires_grad_()
    depth.requires_grad_()
    motion.requires_grad_()
    warped, coords, valid = backward_warp(source, depth, K, T, motion, return_coords=True, backend=backend)
    spoiled = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    spoiled[0, 0, 2, 3] = True
    assert_same([warped.isnan(), coords.isnan()], [spoiled.expand(1, 2, 6, 8)] * 2)
    assert not valid[0, 0, 2, 3]
    gradients = torch.autograd.grad(warped.masked_select(~spoiled).sum(), (source, depth, K, T, motion))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0, 0, 2, 3] == 0


def test_a_small_depth_spoils_its_whole_footprint(backend: str) -> None:
    depth = uniform(2, 3, 1, 1, 3, 4)
    depth[0, 0, 1, 1] = math.nan
    warped = backward_warp(uniform(0, 1, 1, 1, 6, 8), depth, camera(6, 8), pose(), backend=backend)
    rows, columns = torch.where(warped[0, 0].isnan())
    # Pixels whose upsampling has (1, 1) among its four corners: the first row's and column's with weight 0.
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_a_nan_in_the_source_spoils_its_four_readers(backend: str) -> None:
    source = uniform(0, 1, 1, 1, 6, 8)
    source[0, 0, 2, 3] = math.nan
    depth = torch.full((1, 1, 6, 8), 2.0, dtype=torch.float64)
    K = camera(6, 8)
    # At depth 2 this moves by half a pixel.
    warped = backward_warp(source, depth, K, pose(x=1 / K[0, 0, 0], y=1 / K[0, 1, 1]), backend=backend)
    assert warped[0, 0].isnan().nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_a_nan_in_the_source_reaches_only_the_depths_that_read_it(backend: str) -> None:
    source = torch.ones(1, 1, 8, 16, dtype=torch.float64)
    source[..., 3, 5] = math.nan

    def gradients(backend: str) -> tuple[Tensor, ...]:
        depth = torch.full((1, 1, 4, 8), 2.5, dtype=torch.float64, requires_grad=True)
        T = pose(0.11, 0.07).requires_grad_()
        return torch.autograd.grad(backward_warp(source, depth, camera(8, 16), T, backend=backend).sum(), (depth, T))

    (depth, T), (expected, _) = gradients(backend), gradients("reference")
    assert 0 < expected.isnan().sum() < 16
    assert torch.equal(depth.isnan(), expected.isnan())
    assert not T[:, 3].any()  # where the reference has zeros, whatever there is to read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_16_bits_are_rounded_once(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("triton's interpreter cuts bfloat16 off where a GPU rounds it")
    source = uniform(-2, 2, 1, 3, 9, 35).to(dtype)
    args = uniform(2, 3, 1, 1, 9, 35).float(), camera(9, 35).float(), pose(0.2).float()
    warped = backward_warp(source, *args, backend=backend)
    exact = backward_warp(source.float(), *args, backend=backend)
    assert_same([warped], [exact.to(dtype)])
    gradients = [
        torch.autograd.grad(backward_warp(image, depth, *args[1:], backend=backend).float().sum(), depth)[0]
        for image in (source, source.float())
        for depth in [args[0].clone().requires_grad_()]
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@needs_native
def test_every_16_bit_number_is_read_and_written_as_torch_does() -> None:
    """One pixel per image, one image per bit pattern: there is no neighbour to blend with."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        source = patterns.view(dtype).reshape(1, 2**16, 1, 1)
        one = torch.ones(1, 1, 1, 1)
        warped = backward_warp(source, one, torch.eye(3)[None], torch.eye(4)[None], backend="native")
        finite = source.isfinite()
        assert_same([warped[finite]], [source[finite]])
        assert_same([warped.isnan()], [~finite])  # inf - inf in the blend


@needs_native
@pytest.mark.parametrize("target", native.cpu_targets() if native.why_not("cpu") is None else [])
def test_every_instruction_set_computes_the_same(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = OPERATORS["backward_warp"]
    monkeypatch.setattr(native, "_cpu", getattr(native._C, target))
    for ours, theirs in zip(samples(operator), samples(operator), strict=True):
        assert_close_in_float64(results(operator, ours, "native"), results(operator, theirs, "reference"), ours.label)


@needs_native
@pytest.mark.parametrize("seed", range(60))
def test_any_geometry_of_any_shape_agrees_with_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, channels, height, width = draw.randint(0, 2), draw.randint(1, 4), draw.randint(1, 40), draw.randint(1, 40)
    small = draw.randint(1, height), draw.randint(1, width)
    components = draw.choice([0, 2, 3])
    extreme = draw.choice([1.0, 1e3, 1e12])
    far = draw.choice([1.0, -1.0, 1e20, 0.0])
    source, depth = uniform(0, 1, batch, channels, height, width), far * uniform(0.1, 3, batch, 1, *small)
    T = torch.eye(4, dtype=torch.float64) + uniform(-1, 1, batch, 4, 4) * extreme
    motion = (uniform(-1, 1, batch, components, height, width) * extreme,) if components else ()
    args = (source, depth, camera(height, width, batch), T, *motion)
    outputs = [backward_warp(*args, return_coords=True, backend=name) for name in ("native", "reference")]
    # A pixel on a border may fall to either side of it by rounding: its neighbours' difference times that rounding.
    for ours, theirs in zip(*(output[:2] for output in outputs), strict=True):
        assert_close_in_float64([ours], [theirs], relative=1e-9)
    disagreeing = outputs[0][2] != outputs[1][2]
    assert disagreeing.sum() <= 0.01 * disagreeing.numel() + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": torch.zeros(1, 4, 4, 6)}, "motion has 4 components, it should have 2 or 3"),
        ({"depth": torch.ones(1, 1, 5, 6)}, "depth is 5x6, it should not be larger than source, 4x6"),
        ({"depth": torch.ones(1, 1, 0, 6)}, "h is 0, it should be at least 1"),
        ({"K": torch.eye(3).repeat(2, 1, 1)}, r"K has shape \[2, 3, 3\], it should be \[B, 3, 3\] with B = 1"),
        ({"T_src_ref": torch.eye(3)[None]}, r"T_src_ref has shape \[1, 3, 3\], it should be \[B, 4, 4\]"),
    ],
)
def test_wrong_sizes_are_named(change: dict[str, Tensor], message: str) -> None:
    right = {
        "source": torch.rand(1, 3, 4, 6),
        "depth": torch.ones(1, 1, 4, 6),
        "K": torch.eye(3)[None],
        "T_src_ref": torch.eye(4)[None],
    }
    with pytest.raises(ValueError, match=message):
        backward_warp(**{**right, **change})


def test_images_beyond_32_bit_offsets_are_refused() -> None:
    source = torch.zeros(()).expand(1, 1, 2**16, 2**15)
    with pytest.raises(ValueError, match="source has 65536x32768 pixels"):
        backward_warp(source, torch.ones(1, 1, 1, 1), torch.eye(3)[None], torch.eye(4)[None])


def test_dtypes_do_not_mix() -> None:
    args = torch.rand(1, 3, 4, 6), torch.ones(1, 1, 4, 6), torch.eye(3)[None], torch.eye(4)[None]
    with pytest.raises(TypeError, match=r"K is torch.float64, but depth is torch.float32"):
        backward_warp(args[0], args[1], args[2].double(), args[3])
    with pytest.raises(TypeError, match=r"source is torch.float32 and depth is torch.float64"):
        backward_warp(args[0], *(arg.double() for arg in args[1:]))
    with pytest.raises(TypeError, match=r"depth is torch.int64, it should be torch.float32 or torch.float64"):
        backward_warp(args[0], args[1].long(), *args[2:])


def test_an_explicit_backend_that_cannot_serve_is_an_error() -> None:
    args = torch.rand(1, 3, 4, 6), torch.ones(1, 1, 4, 6), torch.eye(3)[None], torch.eye(4)[None]
    with pytest.raises(mcd.BackendUnavailable, match="backward_warp.*available: .*reference"):
        backward_warp(*args, backend="fastest")


@needs_native
def test_the_cpu_loops_run_on_as_many_threads_as_torch_is_given() -> None:
    """In a process of its own: threads are made at the first parallel loop, and there is one OpenMP runtime."""
    code = """
import os, torch
from mcd.ops import backward_warp
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
args = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64), torch.eye(3)[None], torch.eye(4)[None]
backward_warp(*args, backend="native")
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line}
print(len(os.listdir("/proc/self/task")) - before, len(runtimes))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2", "1"]
