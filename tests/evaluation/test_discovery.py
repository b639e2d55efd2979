"""Figures of what a run discovered, on drawn frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcd.config import parse_config
from mcd.evaluation.discovery import (
    Step,
    TrueInstances,
    evaluate_discovery,
    ground_iou,
    score_instances,
    true_instances,
    why_little_was_found,
)
from mcd.masks.instances import FrameInstances
from mcd.run.context import Context
from mcd.run.folder import Run

SIZE = (12, 40)
Box = tuple[slice, slice]
LEFT, RIGHT, SPECK = (slice(2, 8), slice(2, 12)), (slice(2, 8), slice(22, 34)), (slice(9, 10), slice(16, 18))


def drawn(*shapes: Box, size: tuple[int, int] = SIZE) -> Tensor:
    masks = torch.zeros(len(shapes), *size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, shapes, strict=True):
        mask[rows, columns] = True
    return masks


def test_precision_and_recall_count_over_all_frames() -> None:
    truth = [
        TrueInstances(drawn(LEFT, RIGHT), drawn()),
        TrueInstances(drawn(), drawn()),
        TrueInstances(drawn(LEFT), drawn()),
    ]
    found = [drawn(LEFT), drawn(RIGHT, LEFT), drawn(LEFT, RIGHT)]
    assert score_instances(found, truth) == {
        "found": 5,
        "moving": 3,
        "precision": pytest.approx(2 / 5),
        "recall": pytest.approx(2 / 3),
    }


def test_an_object_is_found_once_and_from_an_overlap_of_one_half() -> None:
    half = (slice(2, 8), slice(2, 7))  # exactly half of LEFT
    less = (slice(2, 8), slice(2, 6))
    truth = [TrueInstances(drawn(LEFT), drawn())]
    assert score_instances([drawn(half)], truth)["recall"] == 1.0
    assert score_instances([drawn(less)], truth)["recall"] == 0.0
    assert score_instances([drawn(LEFT, LEFT)], truth)["precision"] == 0.5


def test_small_objects_need_not_be_found_and_are_no_mistake() -> None:
    truth = [TrueInstances(drawn(LEFT), drawn(SPECK))]
    assert score_instances([drawn(LEFT)], truth)["recall"] == 1.0
    assert score_instances([drawn(LEFT, SPECK)], truth) == {"found": 1, "moving": 1, "precision": 1.0, "recall": 1.0}


def test_shares_of_nothing_are_left_out() -> None:
    nothing = TrueInstances(drawn(), drawn())
    assert score_instances([drawn()], [nothing]) == {"found": 0, "moving": 0}
    assert score_instances([drawn()], [TrueInstances(drawn(LEFT), drawn())]) == {"found": 0, "moving": 1, "recall": 0.0}
    assert score_instances([drawn(LEFT)], [nothing]) == {"found": 1, "moving": 0, "precision": 0.0}


def test_ground_iou_is_that_of_all_pixels_together() -> None:
    wide, narrow = drawn((slice(0, 4), slice(0, 40))), drawn((slice(0, 4), slice(0, 20)))
    assert ground_iou([wide, narrow], [narrow, narrow]) == pytest.approx(160 / 240)
    assert ground_iou([drawn((slice(0, 0), slice(0, 0)))], [drawn((slice(0, 0), slice(0, 0)))]) is None


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run of one held-out frame with a moving car on the left, a speck, and a full image one third higher."""
    config = parse_config({
        "runs": str(tmp_path / "runs"),
        "data": {"root": str(tmp_path / "data"), "size": SIZE},
        "stages": ["predictions", "ground", "slots", "detector", "instances"],
        "store": "sqlite",
    })  # fmt: skip
    root = tmp_path / "data"

    def save(path: Path, mask: Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(path)

    (root / "splits").mkdir(parents=True)
    (root / "splits" / "val.txt").write_text("a a_1\n")
    save(root / "triplets" / "a" / "a_1.png", torch.zeros(SIZE[0], 3 * SIZE[1], dtype=torch.bool))
    for index, mask in enumerate(drawn(LEFT, SPECK, size=(16, 40))):
        save(root / "val_mask_class" / "a" / "a_1" / f"{index}.png", mask)
    (root / "val_mask_class" / "a" / "a_1" / "labels.txt").write_text("lead\nlead\n")
    save(root / "road_masks" / "val" / "a" / "a_1.png", drawn((slice(8, 12), slice(0, 40)))[0])
    context = Context(config, Run(config), torch.device("cpu"))
    for index, mask in enumerate(drawn(LEFT, RIGHT)):
        save(context.run.stage("detector") / "masks" / "val" / "a" / "a_1" / f"{index}.png", mask)
    save(context.run.stage("ground") / "masks" / "val" / "a" / "a_1.png", drawn((slice(6, 12), slice(0, 40)))[0])
    masks = drawn(LEFT, RIGHT)[:, None].expand(-1, 3, -1, -1).numpy()
    flags = np.array([True, False])
    FrameInstances(np.arange(2), flags, flags.astype(np.float32), flags, flags, masks).save(
        context.run.stage("instances") / "val" / "a" / "a_1.npz"
    )
    return context


def test_the_truth_is_cut_as_the_images_are(context: Context) -> None:
    # 0.005 of the full image are 3.2 pixels, of which the speck has 2.
    truth = true_instances(context, "a/a_1")
    assert torch.equal(truth.moving, drawn(LEFT))
    assert torch.equal(truth.small, drawn(SPECK))


def test_stages_are_scored_by_what_they_left(context: Context) -> None:
    assert evaluate_discovery(context, "detector") == {"found": 2, "moving": 1, "precision": 0.5, "recall": 1.0}
    assert evaluate_discovery(context, "instances") == {"found": 1, "moving": 1, "precision": 1.0, "recall": 1.0}
    assert evaluate_discovery(context, "ground") == {"iou": pytest.approx(4 / 6)}
    assert evaluate_discovery(context, "scene") == {}


def test_frames_of_which_the_truth_is_not_known_do_not_count(context: Context, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "splits" / "val.txt").write_text("a a_1\na a_2\n")
    assert evaluate_discovery(context, "detector") == {"found": 2, "moving": 1, "precision": 0.5, "recall": 1.0}
    (root / "val_mask_class" / "a" / "a_2").mkdir()  # known: nothing moves
    shutil.copytree(*(context.run.stage("detector") / "masks" / "val" / "a" / name for name in ("a_1", "a_2")))
    shutil.copy(*(root / "triplets" / "a" / name for name in ("a_1.png", "a_2.png")))
    assert evaluate_discovery(context, "detector") == {"found": 4, "moving": 1, "precision": 0.25, "recall": 1.0}


def test_without_the_truth_there_are_no_figures(context: Context, tmp_path: Path) -> None:
    for name in ("val_mask_class", "road_masks"):
        (tmp_path / "data" / name).rename(tmp_path / name)
    for stage in ("detector", "instances", "ground"):
        assert evaluate_discovery(context, stage) == {}


@pytest.mark.parametrize(
    ("found", "lost_at"),
    [
        ((9, 8, 7, 6), None),
        ((9, 2, 7, 5), None),  # what counts is the end
        ((1, 1, 1, 1), "motion"),
        ((9, 3, 3, 2), "slots"),
        ((9, 8, 4, 2), "round 1"),
        ((9, 8, 7, 0), "dynamic"),
    ],
)
def test_where_objects_are_lost_is_said_if_few_frames_have_one(found: tuple[int, ...], lost_at: str | None) -> None:
    names = ("motion", "slots", "round 1", "dynamic")
    steps = [Step(name, frames, 10) for name, frames in zip(names, found, strict=True)]
    text = why_little_was_found(steps)
    assert (f"lost at '{lost_at}'" in text) if lost_at else text == ""
    assert why_little_was_found([]) == ""
