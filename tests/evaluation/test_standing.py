"""Standing points, on a street whose every height is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcd.config import parse_config
from mcd.data import EvaluationSet
from mcd.evaluation.protocol import evaluate_depth
from mcd.evaluation.row_median import row_median
from mcd.evaluation.scale import ScaleError, scale_of
from mcd.evaluation.standing import HIGHEST, LOWEST, standing_points

SIZE = (64, 160)
K = np.array([[90.0, 0, 80], [0, 90, 26], [0, 0, 1]])
HEIGHT = 1.65


def street(distance: float = 12.0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Depth of a road with a wall from the left edge to the middle of the picture, and the height of every point."""
    v = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    with np.errstate(divide="ignore"):
        depth = np.where(v > K[1, 2], HEIGHT * K[1, 1] / (v - K[1, 2]), 0)
    wall = np.zeros(SIZE, bool)
    wall[:, :80] = True
    behind = wall & ((depth > distance) | (depth == 0))
    depth[behind] = distance
    depth[depth > 80] = 0
    return depth.astype(np.float32), HEIGHT - depth * (v - K[1, 2]) / K[1, 1]


def test_points_between_the_two_heights_stand() -> None:
    depth, height = street()
    found = standing_points(depth, K)
    assert found is not None
    np.testing.assert_array_equal(found, (depth > 0) & (height >= LOWEST) & (height <= HIGHEST))
    assert 0.05 < found.mean() < 0.3


def test_a_truth_without_a_road_has_none() -> None:
    depth = np.random.default_rng(0).uniform(2, 80, SIZE).astype(np.float32)
    assert standing_points(depth, K) is None
    assert standing_points(np.zeros(SIZE, np.float32), K) is None


@pytest.fixture
def clip(tmp_path):
    """Walls that come nearer, so that no row has one depth."""
    from PIL import Image

    for folder in ("images", "depth"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        depth = street(30 - 4 * number)[0]
        Image.fromarray((depth * 256).astype(np.uint16)).save(tmp_path / "depth" / f"{number}.png")
    data = {
        "kind": "sequence", "root": str(tmp_path), "images": "images", "depth": "depth", "size": [64, 160],
        "workers": 0, "intrinsics": [90.0, 90.0, 80.0, 26.0], "train_frames": [0, 5], "eval_frames": [0, 5],
    }  # fmt: skip
    return parse_config({"data": data, "evaluation": {"protocol": "kitti"}})


def test_who_knows_rows_alone_is_found_out_on_what_stands(clip) -> None:
    rows = row_median(clip)
    found = evaluate_depth(lambda b: rows.expand(len(b["frame"]), -1, -1, -1), EvaluationSet(clip), clip.evaluation)
    assert set(found) == {"all", "standing"}
    assert found["standing"]["abs_rel"] > 2 * found["all"]["abs_rel"]

    def right(batch):
        return torch.stack([torch.from_numpy(np.where(t > 0, t, 80))[None] for t in batch["depth_gt"]])

    assert evaluate_depth(right, EvaluationSet(clip), clip.evaluation)["standing"]["abs_rel"] < 1e-6


def metric_config(clip, scale: str, **data):
    document = clip.model_dump(mode="json")
    document["data"] |= data
    document["evaluation"]["scale"] = scale
    return parse_config(document)


@pytest.mark.parametrize("unit", [1.0, 0.05])
def test_without_the_truths_medians_only_the_height_makes_metres(clip, unit: float) -> None:
    def right(batch):
        return torch.stack([torch.from_numpy(np.where(t > 0, t, 80) * unit)[None] for t in batch["depth_gt"]])

    def abs_rel(config):
        scale = scale_of(config, Path("weights"), "cpu")
        return evaluate_depth(right, EvaluationSet(config), config.evaluation, scale=scale)["all"]

    plain = abs_rel(metric_config(clip, "none"))
    assert plain["abs_rel"] == pytest.approx(1 - unit, abs=1e-6)
    by_height = abs_rel(metric_config(clip, "height", camera_height=HEIGHT))
    # Truth of 16 bits, cut off.
    assert by_height["abs_rel"] < 0.002
    assert by_height["scale"] == pytest.approx(1 / unit, rel=2e-3)
    assert by_height["scale_scatter"] < 0.002


def test_a_scale_without_its_measure_is_refused(clip) -> None:
    with pytest.raises(ScaleError, match="camera_height"):
        scale_of(metric_config(clip, "height"), Path("weights"), "cpu")
    with pytest.raises(ScaleError, match=r"data\.poses"):
        scale_of(metric_config(clip, "poses"), Path("weights"), "cpu")
