"""Temporal consistency on a plane that is driven over, whose depth is known in every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcd.config import Config, parse_config
from mcd.evaluation import consistency as module
from mcd.evaluation.consistency import Change, consistency, disagreement, pair_figures
from mcd.files import DataError

SIZE = (64, 96)
K = torch.tensor([[[60.0, 0, 47.5], [0, 60.0, 31.5], [0, 0, 1]]])
STEP = 0.4


def wall(distance: float) -> Tensor:
    """A wall that leans towards the camera's right, [1,1,H,W]: on it z + 0.2 x = distance."""
    x = (torch.arange(SIZE[1]).float() - 47.5) / 60
    return (distance / (1 + 0.2 * x)).expand(1, 1, *SIZE).contiguous()


def forward() -> Tensor:
    T = torch.eye(4)[None].clone()
    T[0, 2, 3] = -STEP
    return T


def figures(first: Tensor, second: Tensor) -> dict[str, float]:
    images = (torch.full((1, 3, *SIZE), 0.5),) * 2
    change = Change(wall(10), forward(), K)
    found = pair_figures(*disagreement(change, images, (first, second)))
    assert found is not None
    return found


@pytest.mark.parametrize("scale", [1.0, 0.03, 20.0])
def test_the_true_depth_is_consistent_at_any_scale(scale: float) -> None:
    found = figures(scale * wall(10), scale * wall(10 - STEP))
    # Bilinear interpolation of the logarithm of a hyperbola.
    assert max(found.values()) < 1e-3


def test_a_jump_of_the_whole_frame_is_a_jump() -> None:
    found = figures(wall(10), 1.05 * wall(10 - STEP))
    assert found["jump"] == pytest.approx(100 * np.log(1.05), abs=0.01)
    assert found["drift"] == pytest.approx(found["jump"], abs=0.01)
    assert found["wobble"] < 1e-3


def test_what_moves_against_the_rest_is_wobble() -> None:
    other = wall(10 - STEP).clone()
    other[..., ::2] *= 1.1  # columns in turn: interpolation brings half of them nearer
    found = figures(wall(10), other)
    assert found["wobble"] > 1
    # Without the motion, what comes nearer by driving is no error of it.
    assert figures(wall(10), wall(10))["drift"] == pytest.approx(100 * np.log(10 / (10 - STEP)), rel=0.05)


def test_pixels_that_are_not_found_again_do_not_count() -> None:
    images = torch.full((1, 3, *SIZE), 0.2), torch.full((1, 3, *SIZE), 0.9)
    e, counted = disagreement(Change(wall(10), forward(), K), images, (wall(10), wall(10 - STEP)))
    assert not counted.any()
    assert pair_figures(e, counted) is None


class Nets:
    """The true depth of each frame, and the true motion."""

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Nets:
        return cls()

    def __call__(self, image: Tensor, after: Tensor | None = None) -> Tensor:
        return forward() if after is not None else wall(10 - STEP * round(float(image.mean()) * 255 - 100))


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Six frames, a gap after the third; a frame's grey says its number."""
    for number in (0, 1, 2, 5, 6, 7):
        Image.fromarray(np.full((*SIZE, 3), 100 + number, np.uint8)).save(tmp_path / f"{number:03d}.png")
    monkeypatch.setattr(module, "DepthPredictor", Nets)
    monkeypatch.setattr(module, "CameraMotion", Nets)
    data = {"kind": "sequence", "root": str(tmp_path), "size": SIZE, "intrinsics": [60.0, 60.0, 47.5, 31.5]}
    return parse_config({"data": data})


def right(batch: dict[str, Any]) -> Tensor:
    return torch.cat([wall(10 - STEP * int(frame)) for frame in batch["frame"]])


@pytest.mark.filterwarnings("ignore:the numbers of the frames")
def test_pairs_are_neighbours_and_masks_are_left_out(clip: Config, tmp_path: Path) -> None:
    found = consistency(clip, right, Path("unused"))
    assert list(found) == ["000", "001", "005", "006"]
    assert max(pair["drift"] for pair in found.values()) < 1e-3

    def left_half_flickers(batch: dict[str, Any]) -> Tensor:
        depths = right(batch).clone()
        for depth, frame in zip(depths, batch["frame"], strict=True):
            depth[..., : SIZE[1] * 3 // 4] *= 1 + 0.1 * (int(frame) % 2)
        return depths

    assert consistency(clip, left_half_flickers, Path("unused"))["000"]["drift"] > 5
    mask = np.zeros(SIZE, np.uint8)
    mask[:, : SIZE[1] * 3 // 4 + 4] = 3
    (tmp_path / "moving").mkdir()
    Image.fromarray(mask).save(tmp_path / "moving" / "000.png")
    masked = clip.model_copy(update={"evaluation": clip.evaluation.model_copy(update={"masks": Path("moving")})})
    assert consistency(masked, left_half_flickers, Path("unused"))["000"]["drift"] < 1e-3


def test_other_data_are_named() -> None:
    with pytest.raises(DataError, match="kind sequence, not triplets"):
        consistency(parse_config({}), right, Path("unused"))
