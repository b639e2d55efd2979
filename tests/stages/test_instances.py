"""Which masks are dynamic, and what is kept of residual motion: hand-made cases."""

import numpy as np
import pytest
import torch

from mcd.config import InstancesStage
from mcd.masks.instances import FrameInstances, middle_band
from mcd.scene.residual import fast_flow, keep, moving_pixels
from mcd.stages.instances import classify

SIZE = (16, 80)


def box(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


def test_the_middle_band_is_the_published_one():
    assert middle_band(512, 20) == (243, 268)


def test_a_mask_is_dynamic_when_enough_of_it_moves_or_it_is_straight_ahead():
    half, quarter = box(slice(0, 8), slice(0, 8)), box(slice(0, 8), slice(60, 68))
    ahead, empty = box(slice(2, 4), slice(39, 41)), torch.zeros(1, *SIZE, dtype=torch.bool)
    moving = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
    moving[0, 0, 0:4, 0:8] = True
    moving[0, 0, 0:2, 60:68] = True
    coverage, dynamic = classify(InstancesStage(), [torch.cat((half, quarter, ahead)), empty], moving)
    assert coverage.tolist() == [0.5, 0.25, 0.0, 0.0]
    assert dynamic.tolist() == [True, False, True, False]
    _, without_middle = classify(InstancesStage(middle=None), [torch.cat((half, quarter, ahead)), empty], moving)
    assert without_middle.tolist() == [True, False, False, False]


def test_the_mean_motion_is_taken_over_seen_pixels_only():
    # Three of four pixels are holes. The published code counts them, so that the mean is 0.25 and 0.5 is kept.
    motion = torch.zeros(1, 2, 1, 6)
    motion[0, 0, 0] = torch.tensor([1.0, 0.5, 9.0, 9.0, 9.0, 9.0])
    depth = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 6)
    assert keep(motion, depth, filtered=True, floor=1e-5).flatten().tolist() == [
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert keep(motion, depth, filtered=False, floor=1e-5).flatten().tolist() == [True, True] + [False] * 4


def test_what_moves_fast_enough_moves_whatever_the_size_of_the_image():
    # One pixel at a width of 512 is a quarter at 128. Towards one source alone it has to be twice as fast.
    flow = torch.zeros(1, 2, 2, 1, 128)
    flow[0, :, 0, 0, 0] = 0.25
    flow[0, :, 0, 0, 1] = 0.24
    flow[0, 0, :, 0, 2] = torch.tensor([0.25, -0.25])
    flow[0, 0, 0, 0, 3] = 0.3
    assert moving_pixels(flow, 1.0).flatten()[:5].tolist() == [True, False, True, False, False]
    assert not moving_pixels(flow, 1.0)[..., 5:].any()
    fast = fast_flow(flow, 1.0)
    assert torch.equal(fast[..., 0], flow[..., 0]) and not fast[..., 1].any()
    assert torch.equal(fast[0, 0, :, 0, 2:4], flow[0, 0, :, 0, 2:4]) and not fast[0, 1, :, 0, 2:].any()


def test_an_image_of_holes_moves_nowhere():
    nothing = keep(torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), filtered=True, floor=1e-5)
    assert not nothing.any()


@pytest.mark.parametrize("count", [0, 3])
def test_instances_of_a_frame_come_back_from_disk(tmp_path, count):
    draw = np.random.default_rng(0)
    found = FrameInstances(
        ids=np.arange(count),
        dynamic=draw.random(count) > 0.5,
        coverage=draw.random(count).astype(np.float32),
        large=draw.random(count) > 0.5,
        triplet=draw.random(count) > 0.5,
        masks=draw.random((count, 3, 5, 7)) > 0.5,  # 105 bits a mask: not a multiple of a byte
    )
    found.save(tmp_path / "city" / "frame.npz")
    back = FrameInstances.load(tmp_path / "city" / "frame.npz")
    for name in ("ids", "dynamic", "coverage", "large", "triplet", "masks"):
        assert np.array_equal(getattr(found, name), getattr(back, name)), name
