"""The view-synthesis loss against the pair of operators it fuses, its symmetries, its masks and its edges."""

import pytest
import torch
from harness import serving

from mcd.ops.backward_warp import backward_warp
from mcd.ops.photometric_error import photometric_error
from mcd.ops.view_synthesis_loss import OP, view_synthesis_loss, view_synthesis_loss_reference


def scene(batch=2, count=2, height=8, width=12, scales=3, moving=False, seed=0):
    """Smooth images (so that a pixel moved by rounding changes little), depth near 5 and cameras a step apart."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    K = torch.tensor([[0.9 * width, 0, 0.47 * width], [0, 1.2 * height, 0.56 * height], [0, 0, 1]]).double()
    T = torch.eye(4, dtype=torch.float64).repeat(batch, count, 1, 1)
    T[..., :3, 3] = uniform(-0.4, 0.4, batch, count, 3)
    T[..., :3, :3] += uniform(-0.02, 0.02, batch, count, 3, 3)
    depths = [uniform(4, 6, batch, 1, max(height >> s, 1), max(width >> s, 1)) for s in range(scales)]
    motion = uniform(-2, 2, batch, count, 2, height, width) if moving else None
    images = uniform(0, 1, batch, count + 1, 3, height, width)
    return images[:, 0], images[:, 1:], depths, K.repeat(batch, 1, 1), T, motion


@pytest.mark.parametrize("mask_invalid", [True, False])
@pytest.mark.parametrize("moving", [True, False])
def test_is_warp_followed_by_photometric_error_at_every_scale(moving, mask_invalid):
    reference, sources, depths, K, T, motion = scene(moving=moving)
    weights = [0.5, 0.3, 0.2]
    loss, losses, auto_mask = view_synthesis_loss(
        reference, sources, depths, K, T, motion, scale_weights=weights, mask_invalid=mask_invalid
    )
    expected = []
    for s, depth in enumerate(depths):
        pairs = [
            backward_warp(sources[:, i], depth, K, T[:, i], motion[:, i] if moving else None, return_coords=True)
            for i in range(2)
        ]
        valid = torch.cat([pair[2] for pair in pairs], 1) if mask_invalid else None
        error, mask = photometric_error(reference, torch.stack([pair[0] for pair in pairs], 1), sources, valid=valid)
        expected.append(error[mask].sum() / (mask.double() + 1e-10).sum())
        if s == 0:
            assert torch.equal(mask, auto_mask)
            assert mask.any() and not mask.all() and (valid is None or not valid.all())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, sum(w * e for w, e in zip(weights, expected, strict=True)), rtol=1e-10, atol=0)
    assert not losses.requires_grad


@pytest.mark.parametrize("backend", serving("view_synthesis_loss", "reference", "native"))
def test_flat_bright_images_keep_their_digits_in_float32(backend):
    reference, sources, depths, K, T, _ = scene(height=24, width=40)
    images = [(0.9 + 1e-3 * (2 * image - 1)).float() for image in (reference, sources)]
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [depth.float().to(dtype).requires_grad_() for depth in depths]
        cameras = [camera.float().to(dtype) for camera in (K, T)]
        _, losses, _ = view_synthesis_loss(
            *(image.to(dtype) for image in images), inputs, *cameras, l1_weight=0, backend=backend
        )
        found.append(losses)
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-4, atol=0)


def test_the_mirrored_sample_has_the_same_loss():
    """Images, depth and motion mirrored left-right, cx -> W - 1 - cx, and the camera's motion seen in the mirror."""
    reference, sources, depths, K, T, motion = scene(moving=True)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    mirrored_K = K.clone()
    mirrored_K[:, 0, 2] = reference.shape[-1] - 1 - K[:, 0, 2]
    flipped_motion = motion.flip(-1) * torch.tensor([-1.0, 1]).view(1, 1, 2, 1, 1)
    plain = view_synthesis_loss(reference, sources, depths, K, T, motion)
    flipped = view_synthesis_loss(
        reference.flip(-1),
        sources.flip(-1),
        [d.flip(-1) for d in depths],
        mirrored_K,
        mirror @ T @ mirror,
        flipped_motion,
    )
    # The 1e-5 in the divisor pulls coordinates towards 0, whichever side that is: 12 · 1e-5 / 5 pixels.
    torch.testing.assert_close(flipped[:2], plain[:2], rtol=3e-5, atol=0)
    assert torch.equal(flipped[2], plain[2].flip(-1))


def test_true_depth_and_pose_explain_a_moved_camera():
    # A plane at depth 5 seen after a step of one pixel: the sources are shifted copies, so warping explains them.
    image = torch.rand(1, 3, 8, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference, sources = image[..., 1:-1], torch.stack((image[..., :-2], image[..., 2:]), 1)
    K = torch.tensor([[[10.0, 0, 5], [0, 10, 4], [0, 0, 1]]]).double()
    T = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    T[0, :, 0, 3] = torch.tensor([0.5, -0.5])  # 10 · 0.5 / 5 = 1 pixel
    depth = torch.full((1, 1, 8, 12), 5.0).double()
    loss, _, auto_mask = view_synthesis_loss(reference, sources, [depth], K, T)
    assert loss < 1e-3 and auto_mask.double().mean() > 0.9  # 1e-5 in the divisor moves the look-up by 2e-6 pixels
    assert view_synthesis_loss(reference, sources, [depth * 2], K, T)[0] > 100 * loss


@pytest.mark.parametrize("moving", [True, False])
def test_gradients(moving):
    reference, sources, depths, K, T, motion = scene(1, 2, 5, 6, 2, moving=moving)
    inputs = [tensor.requires_grad_() for tensor in (K, T, *depths, *([motion] if moving else []))]

    def loss(K, T, first, second, motion=None):
        return view_synthesis_loss_reference(reference, sources, [first, second], K, T, motion)[0]

    torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_images_are_constants():
    reference, sources, depths, K, T, _ = scene()
    reference.requires_grad_()
    sources.requires_grad_()
    assert not view_synthesis_loss(reference, sources, depths, K, T)[0].requires_grad


def test_pixels_behind_the_camera_count_only_in_the_published_form():
    reference, sources, depths, K, T, _ = scene()
    T[..., 2, 3] = -50
    loss, losses, auto_mask = view_synthesis_loss(reference, sources, depths, K, T)
    assert loss == 0 and not losses.any() and not auto_mask.any()
    assert view_synthesis_loss(reference, sources, depths, K, T, mask_invalid=False)[2].any()


@pytest.mark.parametrize("mask_invalid", [True, False])
def test_a_masked_nan_poisons_neither_loss_nor_gradients(mask_invalid):
    reference, sources, depths, K, T, motion = scene(moving=True)
    depths[0][0, 0, 3, 4] = torch.nan
    motion[1, 0, 1, 2, 2] = torch.inf
    inputs = [tensor.requires_grad_() for tensor in (K, T, motion, *depths)]
    loss, losses, auto_mask = view_synthesis_loss(reference, sources, depths, K, T, motion, mask_invalid=mask_invalid)
    assert not auto_mask[0, 3, 4]
    loss.backward()
    assert loss.isfinite() and losses.isfinite().all() and all(tensor.grad.isfinite().all() for tensor in inputs)


def test_a_nan_pose_silences_its_sample():
    reference, sources, depths, K, T, _ = scene(scales=1)
    alone = view_synthesis_loss(reference[1:], sources[1:], [depths[0][1:]], K[1:], T[1:])
    T[0] = torch.nan
    loss, _, auto_mask = view_synthesis_loss(reference, sources, depths, K, T)
    assert not auto_mask[0].any()
    torch.testing.assert_close(loss, alone[0], rtol=1e-8, atol=0)  # 1e-10 a pixel in the denominator


def test_no_frames_cost_nothing():
    reference, sources, depths, K, T, _ = scene(batch=0)
    depths[0].requires_grad_()
    loss, losses, auto_mask = view_synthesis_loss(reference, sources, depths, K, T)
    loss.backward()
    assert loss == 0 and losses.tolist() == [0, 0, 0] and auto_mask.shape == (0, 8, 12)


def test_half_precision_images_and_autocast_compute_in_float32():
    reference, sources, depths, K, T, _ = scene()
    halves = reference.bfloat16(), sources.bfloat16()
    depths, K, T = [depth.float() for depth in depths], K.float(), T.float()
    loss = view_synthesis_loss(*halves, depths, K, T)[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, view_synthesis_loss(*(image.float() for image in halves), depths, K, T)[0])
    rounded = [depth.bfloat16() for depth in depths]
    with torch.autocast("cpu", torch.bfloat16):
        cast = view_synthesis_loss(*halves, rounded, K, T)[0]
    assert torch.equal(cast, view_synthesis_loss(*halves, [depth.float() for depth in rounded], K, T)[0])


def bad(**changes):
    names = ("reference", "sources", "depths", "K", "T_src_ref", "motion")
    return dict(zip(names, scene(scales=1), strict=True)) | changes


@pytest.mark.parametrize(
    "changes, exception, message",
    [
        ({"depths": []}, ValueError, "depths"),
        ({"depths": torch.ones(2, 1, 8, 12)}, TypeError, "depths"),
        ({"depths": [torch.ones(2, 1, 9, 12).double()]}, ValueError, r"depths\[0\]"),
        ({"depths": [torch.ones(2, 1, 8, 12).long()]}, TypeError, r"depths\[0\]"),
        ({"T_src_ref": torch.eye(4).double().expand(2, 3, 4, 4)}, ValueError, "T_src_ref"),
        ({"motion": torch.zeros(2, 2, 3, 8, 12).double()}, ValueError, "motion"),
        ({"scale_weights": [0.5, 0.5]}, ValueError, "scale_weights"),
        ({"reference": torch.zeros(2, 3, 8, 12, dtype=torch.uint8)}, TypeError, "reference"),
    ],
)
def test_bad_arguments_are_named(changes, exception, message):
    with pytest.raises(exception, match=message):
        view_synthesis_loss(**bad(**changes))


@pytest.mark.parametrize("moving", [True, False])
def test_tiles_of_the_native_loss_join_without_a_seam(moving):
    # Two CPU tiles and five CUDA tiles in each direction, of unequal size; depths of sizes that divide neither.
    reference, sources, depths, K, T, motion = scene(1, 2, 73, 261, 3, moving=moving)
    depths[2] = depths[2][..., :17, :50].contiguous()
    inputs = [tensor.requires_grad_() for tensor in (K, T, *depths, *([motion] if moving else []))]
    found = {}
    for backend in ("native", "reference"):
        loss, losses, auto_mask = view_synthesis_loss(reference, sources, depths, K, T, motion, backend=backend)
        found[backend] = [loss.detach(), losses, auto_mask, *torch.autograd.grad(loss, inputs)]
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-9, atol=1e-12)


def test_samples_have_live_gradients():
    """What the harness compares must not be zero by accident."""
    samples = OP.sample_inputs(torch.device("cpu"), torch.float64, torch.Generator().manual_seed(0))
    for sample in samples:
        loss, _, auto_mask = view_synthesis_loss_reference(*sample.args, **sample.kwargs)
        assert auto_mask.numel() == 0 or auto_mask.any()
        loss.backward()
