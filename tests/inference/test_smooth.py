"""Smoothing on a scene whose depth and motion are known: a wall, and before it a post."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcd.inference.motion import CameraMotion
from mcd.inference.predictor import DepthPredictor
from mcd.inference.smooth import SmoothPredictor
from mcd.visualize import RunningRange

SIZE = (64, 96)
FOCAL, STEP = 96 / 2 / np.tan(np.radians(30)), 0.05


def scene(number: int) -> tuple[Tensor, Tensor]:
    """Image [1,3,H,W] and depth [1,1,H,W] of frame ``number``, the camera moving ahead: a wall at 10 m with stripes,
    and a grey post at 4 m."""
    z = 10 - STEP * number
    x = (torch.arange(SIZE[1]).float() - 47.5) / FOCAL
    wall, post = x * z, (x * (4 - STEP * number)).abs() < 0.4
    grey = torch.where(post, 0.2, 0.6 + 0.2 * torch.sin(2 * wall))
    depth = torch.where(post, 4 - STEP * number, z)
    return grey.expand(1, 3, *SIZE).contiguous(), depth.expand(1, 1, *SIZE).contiguous()


class Flickering(nn.Module):
    """The true depth, times another factor in every frame and noise in every pixel."""

    def __init__(self, jump: float, noise: float):
        super().__init__()
        self.jump, self.noise, self.number = jump, noise, 0
        self.random = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> list[Tensor]:
        depth = scene(self.number)[1]
        self.number += 1
        jump, noise = torch.randn(1, generator=self.random), torch.randn(depth.shape, generator=self.random)
        return [depth * (self.jump * jump + self.noise * noise).exp()]


class Ahead(CameraMotion):
    def __init__(self, step: float = STEP) -> None:
        self.step = step

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        T = torch.eye(4)[None].clone()
        T[0, 2, 3] = -self.step
        return T


def errors(frames: int, jump: float, noise: float, **keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """ln of depth over truth [frames,H,W], without and with smoothing."""
    plain = DepthPredictor(Flickering(jump, noise), SIZE)
    steady = SmoothPredictor(DepthPredictor(Flickering(jump, noise), SIZE), Ahead(**keys), fov=60)
    found = []
    for net in (plain, steady):
        rows = [(net(scene(number)[0]) / scene(number)[1]).log()[0, 0].numpy() for number in range(frames)]
        found.append(np.stack(rows))
    return found[0], found[1]


def test_jumps_and_noise_become_less_and_nothing_drifts() -> None:
    before, after = errors(60, 0.03, 0.02)
    jumps = [np.abs(np.diff(np.median(e, axis=(1, 2)))).mean() for e in (before, after)]
    # A filter of weight w leaves (1 - w) / sqrt(1 + w) of the steps of white noise: 0.23.
    assert jumps[1] < 0.3 * jumps[0]
    noise = [(e - np.median(e, axis=(1, 2), keepdims=True))[20:].std() for e in (before, after)]
    assert noise[1] < 0.6 * noise[0]
    assert abs(after[20:].mean()) < 0.02


def test_edges_stay_where_they_are() -> None:
    _, after = errors(40, 0.0, 0.0)
    # Right depth stays right: at the edges of the post, too, where it is uncovered and covers.
    assert np.abs(after[-1]).max() < 0.03
    steps = [np.abs(np.diff(np.log(scene(39)[1][0, 0].numpy()) + e, axis=1)).max() for e in (np.zeros(SIZE), after[-1])]
    assert steps[1] > 0.97 * steps[0]


def test_another_scene_begins_anew() -> None:
    steady = SmoothPredictor(DepthPredictor(Flickering(0.0, 0.0), SIZE), Ahead(), fov=60)
    steady(scene(0)[0])
    other = 1 - scene(1)[0]
    assert torch.equal(steady(other), scene(1)[1])


def test_a_batch_is_its_frames_one_after_the_other() -> None:
    one, two = (SmoothPredictor(DepthPredictor(Batches(), SIZE), Ahead(), fov=60) for _ in range(2))
    images = torch.cat([scene(number)[0] for number in range(4)])
    together = one(images)
    apart = torch.cat([two(images[number : number + 1]) for number in range(4)])
    torch.testing.assert_close(together, apart)


class Batches(nn.Module):
    """A depth that depends on the image alone."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [5 + 3 * images[:, :1] + images.mean((1, 2, 3), keepdim=True)]


def test_colours_stay_when_something_comes_near() -> None:
    colours = RunningRange()
    far = torch.linspace(5, 50, 1000).reshape(20, 50)
    for _ in range(200):
        before = colours.update(far)
    near = far.clone()
    near[:, :10] = 1.0
    after = colours.update(near)
    assert abs(np.log(after[0] / before[0])) < 0.01
    assert after[1] == before[1]
    # As it stays, colours follow.
    for _ in range(2000):
        after = colours.update(near)
    assert after[0] < 1.1
