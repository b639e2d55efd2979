"""The scene stage's loss and gradients against the published formulas, composed in float64 without any operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from published_loss import euler_matrix, scene_loss
from torch import Tensor, nn

from mcd.config import parse_config
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.scene import SceneStage

BATCH, HEIGHT, WIDTH, SCALES = 2, 64, 96, 4


class Fixed(nn.Module):
    """A network that returns what it is given."""

    def __init__(self, *outputs: Any):
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: Tensor) -> Any:
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


def smooth(generator: torch.Generator, *shape: int, cells: int = 8) -> Tensor:
    """Random values in [0,1] that change over many pixels."""
    coarse = torch.rand(*shape[:-2], shape[-2] // cells + 2, shape[-1] // cells + 2, generator=generator).double()
    return F.interpolate(coarse, shape[-2:], mode="bicubic", align_corners=True).clamp(0, 1)


def inputs(dtype: torch.dtype) -> dict[str, Any]:
    """A batch, and what the networks say of it as leaves."""
    generator = torch.Generator().manual_seed(1)
    images = smooth(generator, BATCH * 3, 3, HEIGHT, WIDTH, cells=5).view(BATCH, 3, 3, HEIGHT, WIDTH)
    K = torch.tensor([[60.0, 0, 47.2], [0, 58.0, 31.9], [0, 0, 1]]).double().repeat(BATCH, 1, 1)
    depths = [
        2 + 6 * smooth(generator, BATCH, 1, HEIGHT >> s, WIDTH >> s, cells=max(16 >> s, 4)) for s in range(SCALES)
    ]
    angles = 0.02 * (torch.rand(2 * BATCH, 3, generator=generator).double() - 0.5)
    translation = 0.3 * (torch.rand(2 * BATCH, 3, generator=generator).double() - 0.5)
    motion = 8 * (smooth(generator, BATCH * 2, 2, HEIGHT, WIDTH, cells=16) - 0.5)

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_()

    return {
        "reference": images[:, 0].to(dtype),
        "sources": images[:, 1:].to(dtype),
        "K": K.to(dtype),
        "depths": [leaf(depth) for depth in depths],
        "angles": leaf(angles),
        "translation": leaf(translation),
        "motion": leaf(motion),
    }


def leaves(given: dict[str, Any]) -> list[Tensor]:
    return [*given["depths"], given["angles"], given["translation"], given["motion"]]


def staged(context: Context, given: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Loss and gradients of the stage as it trains, its networks returning what is given."""
    stage = SceneStage(context)
    stage.nets = {
        "depth": Fixed(given["depths"]),
        "pose": Fixed(given["angles"], given["translation"]),
        "motion": Fixed(given["motion"]),
    }
    loss = stage.loss(given, stage.forward(given, 2), 2)["total"]
    return loss.detach(), torch.autograd.grad(loss, leaves(given))


def composed(given: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    poses = euler_matrix(given["angles"], given["translation"])
    T = torch.stack((torch.linalg.inv(poses[:BATCH]), poses[BATCH:]), 1)
    motions = given["motion"].unflatten(0, (BATCH, 2))
    loss = scene_loss(
        given["reference"],
        given["sources"],
        given["K"],
        given["depths"],
        T,
        lambda warped, source, s: motions[:, s],
    )
    return loss.detach(), torch.autograd.grad(loss, leaves(given))


@pytest.fixture
def context(tmp_path) -> Context:
    settings = {"runs": str(tmp_path), "data": {"size": (HEIGHT, WIDTH)}}
    config = parse_config(settings | {"scene": {"steps": 3, "batch": BATCH, "motion_from": 0, "joint_from": 1}})
    return Context(config, Run(config), torch.device("cpu"))


def relative(actual: Tensor, expected: Tensor, flips: float = 0.0) -> float:
    """Norm of the difference over the norm, without the share ``flips`` of entries that differ most."""
    error = (actual.double() - expected).flatten().abs().sort().values
    return float(error[: len(error) - int(flips * len(error))].norm() / expected.norm())


def test_float64_is_the_written_formula(context):
    given = inputs(torch.float64)
    loss, gradients = staged(context, given)
    expected, written = composed(given)
    assert abs(loss.item() / expected.item() - 1) < 1e-9
    for gradient, truth in zip(gradients, written, strict=True):
        assert truth.norm() > 0
        assert relative(gradient, truth) < 1e-9


def test_float32_differs_by_rounding(context):
    expected, written = composed(inputs(torch.float64))
    loss, gradients = staged(context, inputs(torch.float32))
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    for gradient, truth in zip(gradients, written, strict=True):
        # Where rounding turns a decision (mask, minimum, nearest, border of a pixel) the derivative jumps: of a map,
        # one entry in a thousand may. The twelve numbers of the poses are sums over all pixels.
        assert relative(gradient, truth, flips=1e-3) < 1e-4
