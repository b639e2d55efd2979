"""The photometric error against loops over windows, and its edges: ties, validity, NaN, smallest image."""

from math import inf

import pytest
import torch
from harness import serving

from mcd.ops.photometric_error import photometric_error, photometric_error_reference

CONSTANTS = [(inf, 9e-6), (1e-4, 9e-4), (1e-4, inf)]


def images(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loop_pair_error(reference, image, ssim_weight=3.0, l1_weight=2.0, c1=inf, c2=9e-6):
    """The error of one image [3,H,W], from the covariance form of SSIM, pixel by pixel."""
    _, height, width = reference.shape
    ssim = torch.zeros(height - 2, width - 2, dtype=torch.float64)
    for row in range(height - 2):
        for column in range(width - 2):
            for x, y in zip(image, reference, strict=True):
                x, y = (z[row : row + 3, column : column + 3].reshape(-1) for z in (x, y))
                luminance = (
                    1.0 if c1 == inf else float((2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1))
                )
                covariance = (x * y).mean() - x.mean() * y.mean()
                variances = x.var(correction=0) + y.var(correction=0)
                contrast = 1.0 if c2 == inf else float((2 * covariance + c2) / (variances + c2))
                ssim[row, column] += min(max((1 - luminance * contrast) / 2, 0), 1) / 3
    error = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            mirrored = [
                abs(i - 1) if i - 1 < size else 2 * (size - 1) - (i - 1)
                for i, size in zip((row, column), ssim.shape, strict=True)
            ]
            difference = (image[:, row, column] - reference[:, row, column]).abs().mean()
            error[row, column] = ssim_weight * ssim[mirrored[0], mirrored[1]] + l1_weight * difference
    return error


@pytest.mark.parametrize("c1, c2", CONSTANTS)
@pytest.mark.parametrize("size", [(4, 4), (5, 8)], ids=["smallest: every inner pixel is mirrored", "has an interior"])
def test_agrees_with_a_loop_over_windows(size, c1, c2):
    reference, warped, sources = images(2, 3, *size), images(2, 2, 3, *size, seed=1), images(2, 2, 3, *size, seed=2)
    error, auto_mask = photometric_error_reference(reference, warped, sources, c1=c1, c2=c2)
    for b in range(2):
        expected = torch.stack([loop_pair_error(reference[b], image, c1=c1, c2=c2) for image in warped[b]]).amin(0)
        identity = torch.stack([loop_pair_error(reference[b], image, c1=c1, c2=c2) for image in sources[b]]).amin(0)
        torch.testing.assert_close(error[b], expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(auto_mask[b], expected < identity)
    assert auto_mask.any() and not auto_mask.all()


def test_equal_images_have_no_error_and_a_shift_costs_l1_only():
    reference = images(1, 3, 6, 6)
    shifted = (reference + 0.25).unsqueeze(1)
    error, auto_mask = photometric_error(reference, shifted, reference.unsqueeze(1))
    # Var(x - y) = 0, so the contrast term vanishes and 2 · 0.25 remains.
    torch.testing.assert_close(error, torch.full_like(error, 0.5), rtol=0, atol=1e-9)
    assert not auto_mask.any()


def test_opposite_checkerboards_reach_the_largest_contrast_error():
    # Windows of ±1: Var(x - y) = 4 Var x, so b = 4v / 2v = 2 up to c2, and (1 - SSIM) / 2 = 1.
    board = ((torch.arange(6).view(6, 1) + torch.arange(6)) % 2).double().expand(1, 3, 6, 6)
    error, _ = photometric_error(board, (1 - board).unsqueeze(1), board.unsqueeze(1), l1_weight=0, ssim_weight=1)
    torch.testing.assert_close(error, torch.ones_like(error), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", serving("photometric_error", "reference", "native"))
@pytest.mark.parametrize("contrast", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.99])
def test_flat_patches_keep_their_digits_in_float32(backend, level, contrast):
    # A mean of squares less the square of a mean is off by 6e-8 near 1; against c2 = 9e-6 that would be 0.7 %.
    noise = 2 * images(4, 3, 16, 40) - 1
    reference, *others = (level + contrast * noise).float().unsqueeze(1)
    found = {}
    for dtype in (torch.float64, torch.float32):
        inputs = [image.to(dtype).requires_grad_() for image in (reference, torch.stack(others[:2], 1))]
        error, _ = photometric_error(
            *inputs, others[2].to(dtype).unsqueeze(1).expand_as(inputs[1]), l1_weight=0, backend=backend
        )
        found[dtype] = [error.detach(), *torch.autograd.grad(error.sum(), inputs)]
    for actual, truth in zip(found[torch.float32], found[torch.float64], strict=True):
        assert (actual - truth).norm() <= 2e-5 * truth.norm()
    assert ((found[torch.float32][0] - found[torch.float64][0]).abs() <= 1e-4 * found[torch.float64][0]).all()


@pytest.mark.parametrize("backend", serving("photometric_error", "reference", "native"))
def test_contrast_keeps_its_digits_beside_a_difference_in_brightness(backend):
    # d = x - y is 0.09 everywhere: the variance of d may not be found from its mean square either.
    noise = 1e-3 * (2 * images(2, 3, 16, 40) - 1)
    reference, warped = (0.9 + noise[:1]).float(), (0.99 + noise[1:]).float().unsqueeze(1)
    error, truth = (
        photometric_error(*(image.to(dtype) for image in (reference, warped, warped)), l1_weight=0, backend=backend)[0]
        for dtype in (torch.float32, torch.float64)
    )
    assert ((error - truth).abs() <= 1e-4 * truth).all()


@pytest.mark.parametrize("c1, c2", CONSTANTS)
def test_gradients_of_warped_and_reference(c1, c2):
    reference, warped, sources = images(1, 3, 4, 5), images(1, 2, 3, 4, 5, seed=1), images(1, 2, 3, 4, 5, seed=2)
    valid = images(1, 2, 4, 5, seed=3) > 0.3
    torch.autograd.gradcheck(
        lambda reference, warped: photometric_error_reference(reference, warped, sources, valid=valid, c1=c1, c2=c2)[0],
        (reference.requires_grad_(), warped.requires_grad_()),
    )


def test_ties_go_to_the_first_source_undivided():
    reference, image = images(1, 3, 5, 5), images(1, 1, 3, 5, 5, seed=1)
    warped = image.repeat(1, 2, 1, 1, 1).requires_grad_()
    photometric_error(reference, warped, image.expand_as(warped))[0].sum().backward()
    alone = image.clone().requires_grad_()
    photometric_error(reference, alone, image)[0].sum().backward()
    assert torch.equal(warped.grad[:, 0], alone.grad[:, 0])
    assert not warped.grad[:, 1].any()


def test_auto_mask_is_strict():
    reference, sources = images(1, 3, 5, 5), images(1, 2, 3, 5, 5, seed=1)
    assert not photometric_error(reference, sources, sources)[1].any()


def test_an_invalid_source_is_left_out_of_the_minimum_only():
    reference, sources = images(1, 3, 5, 6), images(1, 2, 3, 5, 6, seed=2)
    warped = torch.stack((reference, images(1, 3, 5, 6, seed=1)), 1).requires_grad_()
    valid = torch.ones(1, 2, 5, 6, dtype=torch.bool)
    valid[:, 0, :, :3] = False
    valid[:, :, 2, 0] = False
    error, auto_mask = photometric_error(reference, warped, sources, valid=valid)
    second = photometric_error(reference, warped[:, 1:], sources[:, 1:])[0]
    expected = torch.where(valid[:, 0], 0.0, second)
    expected[:, 2, 0] = 0
    torch.testing.assert_close(error, expected, rtol=0, atol=1e-12)
    assert not auto_mask[:, 2, 0].any()
    error[:, 2, 0].sum().backward()
    assert not warped.grad.any()


def test_nan_spoils_the_pixels_whose_window_reads_it_and_nothing_else():
    reference, sources = images(1, 3, 9, 10), images(1, 2, 3, 9, 10, seed=1)
    warped = images(1, 2, 3, 9, 10, seed=2)
    clean = photometric_error(reference, warped, sources)[0]
    warped[0, 1, 2, 4, 5] = torch.nan
    warped.requires_grad_()
    error, auto_mask = photometric_error(reference, warped, sources)
    spoiled = torch.zeros(1, 9, 10, dtype=torch.bool)
    spoiled[:, 3:6, 4:7] = True
    assert torch.equal(error.isnan(), spoiled)
    assert torch.equal(error[~spoiled], clean[~spoiled])
    assert not auto_mask[spoiled].any()
    torch.where(auto_mask, error, 0.0).sum().backward()
    assert warped.grad.isfinite().all()


def test_nan_in_a_corner_spoils_its_own_pixel_and_the_window_around_its_neighbour():
    # Reflection: the corner's own SSIM is that of the window centred on (2, 2), which does not read the corner.
    reference, sources = images(1, 3, 8, 8), images(1, 1, 3, 8, 8, seed=1)
    warped = images(1, 1, 3, 8, 8, seed=2)
    warped[..., 0, 0] = torch.nan
    error, _ = photometric_error(reference, warped, sources)
    assert error[0].isnan().nonzero().tolist() == [[0, 0], [1, 1]]


def test_half_precision_images_are_computed_in_float32():
    reference, warped, sources = images(1, 3, 6, 6), images(1, 2, 3, 6, 6, seed=1), images(1, 2, 3, 6, 6, seed=2)
    halves = [image.to(torch.bfloat16) for image in (reference, warped, sources)]
    halves[1].requires_grad_()
    error, _ = photometric_error(*halves)
    assert error.dtype == torch.float32
    assert torch.equal(error, photometric_error(*(half.float() for half in halves))[0])
    error.sum().backward()
    assert halves[1].grad.dtype == torch.bfloat16


def test_tiles_of_the_native_error_join_without_a_seam():
    # Two CPU tiles and five CUDA tiles in each direction, of unequal size.
    reference = images(1, 3, 73, 261)
    warped, sources = images(1, 2, 3, 73, 261, seed=1), images(1, 2, 3, 73, 261, seed=2)
    upstream, valid = images(1, 73, 261, seed=3), images(1, 2, 73, 261, seed=4) > 0.2
    found = {}
    for backend in ("native", "reference"):
        inputs = reference.clone().requires_grad_(), warped.clone().requires_grad_()
        error, auto_mask = photometric_error(*inputs, sources, valid=valid, backend=backend)
        found[backend] = [error.detach(), auto_mask, *torch.autograd.grad(error, inputs, upstream)]
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-9, atol=1e-12)


def test_no_frames_give_empty_maps():
    error, auto_mask = photometric_error(images(0, 3, 4, 4), images(0, 2, 3, 4, 4), images(0, 2, 3, 4, 4))
    assert error.shape == auto_mask.shape == (0, 4, 4)


@pytest.mark.parametrize(
    "changes, exception, message",
    [
        ({"warped": images(1, 2, 3, 5, 6)}, ValueError, "warped"),
        (
            {"reference": images(1, 3, 3, 5), "warped": images(1, 2, 3, 3, 5), "sources": images(1, 2, 3, 3, 5)},
            ValueError,
            "4x4",
        ),
        ({"sources": images(1, 2, 3, 5, 5).float()}, TypeError, "sources"),
        ({"valid": torch.ones(1, 2, 5, 5)}, TypeError, "valid"),
        ({"c1": inf, "c2": inf}, ValueError, "c1"),
        ({"c2": 0.0}, ValueError, "c2"),
        ({"l1_weight": -1.0}, ValueError, "l1_weight"),
        ({"warped": images(1, 0, 3, 5, 5), "sources": images(1, 0, 3, 5, 5)}, ValueError, "source"),
        ({"reference": None}, TypeError, "reference"),
    ],
)
def test_bad_arguments_are_named(changes, exception, message):
    arguments = {"reference": images(1, 3, 5, 5), "warped": images(1, 2, 3, 5, 5), "sources": images(1, 2, 3, 5, 5)}
    with pytest.raises(exception, match=message):
        photometric_error(**(arguments | changes))
