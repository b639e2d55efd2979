"""The learned camera: its bounds, what it remembers, and that it finds a focal length that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mcd import ops
from mcd.nets import build_camera
from mcd.nets.camera import LAST_STEPS, LearnedCamera, apply_changes
from mcd.streets.ray_caster import NoiseTexture, render
from mcd.streets.street import StreetParameters, make_street
from mcd.training.nan_guard import NanGuard

SIZE = (64, 160)
NOT_FLIPPED = torch.tensor([False])


def start(factor: float) -> Tensor:
    return torch.tensor([[[100.0 * factor, 0, 79.5], [0, 100 * factor, 31.5], [0, 0, 1]]])


def test_it_starts_at_the_camera_that_it_is_given() -> None:
    camera = LearnedCamera()
    torch.testing.assert_close(camera(start(1), NOT_FLIPPED), start(1))
    torch.testing.assert_close(camera.eval()(start(1), NOT_FLIPPED), start(1))
    with pytest.raises(ValueError, match="there is pinhole"):
        build_camera("fisheye")


def test_it_stays_within_its_bounds() -> None:
    camera = LearnedCamera()
    for parameter in camera.parameters():
        parameter.data.fill_(1e6)
    K = camera(start(1), NOT_FLIPPED)[0].detach()
    assert 1 < K[0, 0] / 100 <= 2.5 * 1.0001
    assert K[1, 1] / K[0, 0] == pytest.approx(np.exp(0.1), rel=1e-4)
    assert K[0, 2] - 79.5 == pytest.approx(10, rel=1e-4)


def test_of_a_flipped_picture_the_centre_is_on_the_other_side() -> None:
    changes = torch.tensor([0.1, 0.1, 0.03, 0.02])
    straight = apply_changes(start(1), changes, NOT_FLIPPED)[0]
    flipped = apply_changes(start(1), changes, torch.tensor([True]))[0]
    assert flipped[0, 2] == pytest.approx(159 - float(straight[0, 2]))
    torch.testing.assert_close(flipped[1:], straight[1:])
    assert flipped[0, 0] == straight[0, 0]


def test_it_settles_at_the_mean_of_its_last_steps_and_says_their_spread() -> None:
    camera = LearnedCamera()
    values = []
    for step in range(LAST_STEPS + 20):
        camera.focal.data.fill_(0.001 * step)
        values.append(camera.changes().detach())
        camera(start(1), NOT_FLIPPED)
    last = torch.stack(values[-LAST_STEPS:])
    torch.testing.assert_close(camera.settled(), last.mean(0))
    torch.testing.assert_close(camera.spread(), last.std(0, correction=0))
    again = LearnedCamera()
    again.load_state_dict(camera.state_dict())
    torch.testing.assert_close(again.settled(), camera.settled())


def test_a_step_that_is_left_out_is_not_remembered() -> None:
    camera, guard = LearnedCamera(), NanGuard("skip", torch.device("cpu"))
    for step in range(3):
        camera.focal.data.fill_(0.1 + step)
        guard.remember({"camera": camera})
        camera(start(1), NOT_FLIPPED)
        guard.check(torch.tensor(torch.nan if step == 1 else 1.0), [])
        if step == 0:
            first = camera.changes().detach()
    torch.testing.assert_close(camera.settled(), (first + camera.changes().detach()) / 2)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_with_depth_and_motion_known_it_finds_the_focal_length(factor: float) -> None:
    """A street in a curve, seen by a camera of 100 pixels; the start is 30 % off."""
    rng = np.random.default_rng(2)
    street = make_street(rng, 3, StreetParameters(yaw_rate=(0.03, 0.03), lead_probability=0, oncoming_probability=0))
    texture, K = NoiseTexture(rng), start(1)[0].double().numpy()
    views = [render(street.boxes.at(0), texture, street.light, K, SIZE, pose) for pose in street.T_world_cam]
    images = torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(np.where(views[1].depth > 0, views[1].depth, 1000))[None, None].float()
    poses = [np.linalg.inv(street.T_world_cam[source]) @ street.T_world_cam[1] for source in (0, 2)]
    T_src_ref = torch.from_numpy(np.stack(poses))[None].float()
    camera = LearnedCamera()
    optimizer = torch.optim.Adam(camera.parameters(), lr=1e-3)
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / 160)
        learned = camera(start(factor), NOT_FLIPPED)
        loss = ops.view_synthesis_loss(images[1:2], images[[0, 2]][None], [depth], learned, T_src_ref)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = camera.eval()(start(factor), NOT_FLIPPED)[0]
    assert float(found[0, 0]) == pytest.approx(100, rel=0.03)
    assert float(found[1, 1]) == pytest.approx(100, rel=0.04)
