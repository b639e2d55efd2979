"""Masks from files of the data set, and from what stages of a run found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import parse_config
from mcd.files import DataError, frame_path
from mcd.masks.detections import FrameDetections
from mcd.masks.source import CANDIDATES, DiscoveredMasks, GivenMasks, mask_source, round_name
from mcd.run.folder import Run

SIZE = (32, 64)
FRAME = "a/a_1"
UNSUPERVISED = ["scene", "predictions", "ground", "slots", "detector", "instances"]


def make_run(folder: Path, stages: list[str]) -> Run:
    """A run over one frame, for which the data set has a mask of the left half and ground in the upper half."""
    root = folder / "data"
    save(root / "triplets" / f"{FRAME}.png", np.zeros((SIZE[0], 3 * SIZE[1], 3), np.uint8))
    save(root / "masks" / "train" / FRAME / "7.png", half(1))
    save(root / "road_masks" / "train" / f"{FRAME}.png", half(0))
    detector = {"steps": 1, "scores": [None, 0.5], "filter_after": [1]}
    config = {"stages": stages, "store": "sqlite" if "predictions" in stages else "none", "detector": detector}
    return Run(parse_config({"runs": str(folder / "runs"), "data": {"root": str(root), "size": SIZE}} | config))


def save(path: Path, levels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def half(axis: int) -> np.ndarray:
    """255 in the first half of the rows or columns."""
    levels = np.zeros(SIZE, np.uint8)
    levels[tuple(slice(SIZE[axis] // 2) if dim == axis else slice(None) for dim in (0, 1))] = 255
    return levels


def discovered(run: Run) -> np.ndarray:
    """Three objects that the last round has left."""
    masks = np.random.default_rng(0).random((3, *SIZE)) > 0.5
    found = FrameDetections(torch.from_numpy(masks), torch.tensor([0.9, 0.8, 0.7]))
    found.save(frame_path(run.stage(round_name(1)), "train", FRAME))
    run.finish(round_name(1), masks_from=round_name(1))
    return masks


def test_without_stages_that_discover_masks_are_the_given_ones(tmp_path: Path) -> None:
    source = mask_source(make_run(tmp_path, ["scene", "instances"]))
    assert isinstance(source, GivenMasks)
    masks, names = source.instances("train", FRAME)
    assert names == [7]
    assert np.array_equal(masks[0], half(1) > 0)
    assert np.array_equal(source.ground("train", FRAME)[0], half(0) > 0)


def test_what_a_run_found_comes_from_the_part_that_its_last_round_names(tmp_path: Path) -> None:
    run = make_run(tmp_path, UNSUPERVISED)
    expected = discovered(run)
    masks, names = mask_source(run).instances("train", FRAME)
    assert names == [0, 1, 2]
    assert np.array_equal(masks, expected)
    candidates = FrameDetections(torch.from_numpy(expected[:1]), torch.ones(1))
    candidates.save(frame_path(run.stage(CANDIDATES), "train", FRAME))
    run.finish(round_name(1), masks_from=CANDIDATES)
    assert np.array_equal(mask_source(run).instances("train", FRAME)[0], expected[:1])


def test_ground_is_where_the_stage_is_more_sure_than_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, UNSUPERVISED)
    levels = np.where(half(1) > 0, 128, 127).astype(np.uint8)
    save(frame_path(run.stage("ground") / "masks", "train", FRAME, ".png"), levels)
    assert np.array_equal(mask_source(run).ground("train", FRAME)[0], half(1) > 0)
    with pytest.raises(DataError, match=r"a_2\.png does not exist"):
        mask_source(run).ground("train", "a/a_2")


def test_a_run_that_discovers_ground_alone_has_given_objects(tmp_path: Path) -> None:
    source = mask_source(make_run(tmp_path, ["scene", "predictions", "ground", "instances"]))
    assert isinstance(source, DiscoveredMasks)
    assert source.instances("train", FRAME)[1] == [7]


def test_a_frame_that_was_left_out_has_no_objects(tmp_path: Path) -> None:
    run = make_run(tmp_path, UNSUPERVISED)
    discovered(run)
    masks, names = mask_source(run).instances("train", "a/a_2")
    assert masks.shape == (0, *SIZE)
    assert names == []


def test_an_older_run_whose_rounds_are_gone_goes_on_with_its_images(tmp_path: Path) -> None:
    run = make_run(tmp_path, UNSUPERVISED)
    expected = discovered(run)
    for index, mask in enumerate(expected):
        save(run.stage("detector") / "masks" / "train" / FRAME / f"{index}.png", mask.astype(np.uint8) * 255)
    for part in run.stage("detector").glob("round_*"):
        shutil.rmtree(part)
    masks, names = mask_source(run).instances("train", FRAME)
    assert names == [0, 1, 2]
    assert np.array_equal(masks, expected)


def test_masks_that_no_stage_has_found_yet_are_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the stage 'detector' comes first"):
        mask_source(make_run(tmp_path, UNSUPERVISED)).instances("train", FRAME)
