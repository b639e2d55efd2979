from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcd.config import Config, Data, Evaluation
from mcd.data import EvaluationSet, fixed_batches, prefetch
from mcd.data.evaluation import CROPS, crop_window, valid_pixels
from mcd.files import DataError

Files = Any

HEIGHT, WIDTH, FULL = 10, 17, 13
FRAME = "b/b_000000_000001"


def config(data: Data, **keys: Any) -> Config:
    return Config(data=data, evaluation=Evaluation(**keys))


def test_the_crop_of_cityscapes_is_the_published_window() -> None:
    assert crop_window(CROPS["cityscapes"], (768, 2048)) == (slice(256, 768), slice(192, 1856))


def test_the_crop_of_kitti_is_the_published_window() -> None:
    """Garg's shares, cut off to whole pixels: the window that published evaluations use for 375x1242."""
    assert crop_window(CROPS["kitti"], (375, 1242)) == (slice(153, 371), slice(44, 1197))


def test_a_crop_does_not_fall_short_by_rounding() -> None:
    """0.29 * 100 is 28.999999999999996."""
    assert crop_window((0.29, 0.58, 0, 1), (100, 10)) == (slice(29, 58), slice(0, 10))


def test_valid_pixels_lie_in_the_crop_and_strictly_between_the_limits() -> None:
    gt = np.full((4, 6), 5, np.float32)
    gt[1, :5] = [0, 1e-3, 80, 79.99, np.nextafter(np.float32(1e-3), np.float32(1))]
    valid = valid_pixels(config(Data(), crop=(0.25, 0.75, 0, 1)), gt)
    expected = np.zeros((4, 6), bool)
    expected[1:3] = True
    expected[1, :3] = False
    assert np.array_equal(valid, expected)


def test_the_ego_car_is_cut_off_image_and_truth_alike(ground_truth: Data, files: Files) -> None:
    root = ground_truth.root
    gt = np.random.default_rng(0).uniform(1, 70, (FULL, WIDTH)).astype(np.float32)
    np.save(root / "val_gt_depths" / "b_000000_000001.npy", gt)
    items = EvaluationSet(config(ground_truth, crop=(0, 1, 0, 1)))
    item = items[0]
    assert len(items) == 1
    assert item["frame"] == FRAME
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), files.noise(FULL, WIDTH, 7)[:HEIGHT])
    assert np.array_equal(item["depth_gt"], gt[:HEIGHT])
    assert item["valid"].all()
    assert not item["dynamic_mask"].any()
    assert item["K"].tolist() == [[12.5, 0, 8.25], [0, 11.5, 4.5], [0, 0, 1]]


def test_truth_keeps_its_size_when_the_networks_see_less(ground_truth: Data, files: Files) -> None:
    item = EvaluationSet(config(ground_truth.model_copy(update={"size": (5, 8)})))[0]
    kept = Image.fromarray(files.noise(FULL, WIDTH, 7)[:HEIGHT])
    expected = np.asarray(kept.resize((8, 5), Image.Resampling.LANCZOS))
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), expected)
    assert item["depth_gt"].shape == item["valid"].shape == item["dynamic_mask"].shape == (HEIGHT, WIDTH)
    # cx' = (8.25 + 0.5) · 8/17 - 0.5
    assert float(item["K"][0, 2]) == pytest.approx(3.6176, abs=1e-4)


def test_dynamic_pixels_are_the_union_of_masks_that_are_large_in_the_full_image(
    ground_truth: Data, files: Files
) -> None:
    folder = ground_truth.root / "val_mask_class" / FRAME
    masks = np.zeros((4, FULL, WIDTH), np.uint8)
    masks[0, 1, :5] = 255
    masks[1, 1, 3:8] = 255
    masks[2, 3, :4] = 255
    masks[3, 9:12, 0:2] = 255  # two of its three rows are cut off with the ego car; its area counts whole
    for number, mask in enumerate(masks):
        files.save(folder / f"{number}.png", mask)
    dynamic = EvaluationSet(config(ground_truth, min_mask_area=5 / (FULL * WIDTH)))[0]["dynamic_mask"]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1, :8] = expected[9, :2] = True
    assert np.array_equal(dynamic, expected)


def test_a_frame_without_a_mask_folder_has_no_dynamic_pixel(ground_truth: Data) -> None:
    folder = ground_truth.root / "val_mask_class" / FRAME
    (folder / "labels.txt").unlink()
    folder.rmdir()
    assert not EvaluationSet(config(ground_truth))[0]["dynamic_mask"].any()


def test_truth_that_is_not_finite_is_none(ground_truth: Data) -> None:
    gt = np.full((FULL, WIDTH), 5, np.float32)
    gt[5, 5:8] = [np.nan, np.inf, -np.inf]
    np.save(ground_truth.root / "val_gt_depths" / "b_000000_000001.npy", gt)
    item = EvaluationSet(config(ground_truth, crop=(0, 1, 0, 1)))[0]
    assert item["depth_gt"][5, 5:8].tolist() == [0, 0, 0]
    assert (~item["valid"]).sum() == 3


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no image", r"leftImg8bit/val/.*_leftImg8bit\.png does not exist"),
        ("no camera", r"_camera\.json does not exist"),
        ("camera without fx", r"_camera\.json lacks intrinsic\.fx"),
        ("truth of another size", r"ground truth of b/b_000000_000001 is 9x17, but its image is 10x17"),
        ("truncated truth", r"b_000000_000001\.npy cannot be read"),
        ("truth of three dimensions", r"has shape \(1, 13, 17\)"),
        ("mask of another size", r"0\.png is 13x16, but the ground truth is 13x17"),
    ],
)
def test_unusable_files_are_named(ground_truth: Data, files: Files, problem: str, message: str) -> None:
    root = ground_truth.root
    image = root / "leftImg8bit" / "val" / f"{FRAME}_leftImg8bit.png"
    camera = root / "camera" / "val" / f"{FRAME}_camera.json"
    truth = root / "val_gt_depths" / "b_000000_000001.npy"
    if problem == "no image":
        image.unlink()
    elif problem == "no camera":
        camera.unlink()
    elif problem == "camera without fx":
        camera.write_text(json.dumps({"intrinsic": {"fy": 1}}))
    elif problem == "truth of another size":
        np.save(truth, np.ones((12, WIDTH), np.float32))
    elif problem == "truncated truth":
        files.truncate(truth)
    elif problem == "truth of three dimensions":
        np.save(truth, np.ones((1, FULL, WIDTH), np.float32))
    else:
        files.save(root / "val_mask_class" / FRAME / "0.png", np.zeros((FULL, WIDTH - 1), np.uint8))
    with pytest.raises(DataError, match=message):
        EvaluationSet(config(ground_truth))[0]


def test_no_ground_truth_is_an_error_that_names_the_folder(ground_truth: Data) -> None:
    with pytest.raises(DataError, match="test_gt_depths does not exist"):
        EvaluationSet(config(ground_truth, split="test"))
    (ground_truth.root / "val_gt_depths" / "b_000000_000001.npy").unlink()
    with pytest.raises(DataError, match=r"val_gt_depths holds no \.npy"):
        EvaluationSet(config(ground_truth))


def test_a_sequence_is_evaluated_on_its_depth_maps(sequence: Callable[..., Data]) -> None:
    items = EvaluationSet(config(sequence(eval_frames=(6, 7)), protocol="kitti"))
    assert [items[index]["frame"] for index in range(len(items))] == ["0006", "0007"]
    item = items[1]
    assert (item["depth_gt"] == 7).all()
    assert (item["image"] == 70).all()
    assert item["dynamic_mask"] is None
    # Garg's window of 10x17 is rows 4 to 9 and columns 0 to 16.
    assert item["valid"].sum() == 5 * 16
    with pytest.raises(DataError, match=r"data\.depth"):
        EvaluationSet(config(sequence(depth=None)))[0]


def test_truth_of_a_batch_is_a_list(sequence: Callable[..., Data]) -> None:
    items = EvaluationSet(config(sequence(), protocol="kitti"))
    batches = list(prefetch(fixed_batches(items, 5, 1)))
    assert [batch["image"].shape[0] for batch in batches] == [5, 3]
    assert batches[1]["depth_gt"][2].shape == (HEIGHT, WIDTH)
    assert batches[1]["dynamic_mask"] == [None] * 3
    assert float(batches[1]["image"][2].max()) == pytest.approx(70 / 255)
