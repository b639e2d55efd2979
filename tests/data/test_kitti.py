"""KITTI raw: lists, neighbours, cameras, and LiDAR points projected by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcd.config import Config, Data, parse_config
from mcd.data import EvaluationSet, FrameDataset, open_reader
from mcd.data.kitti import project_points
from mcd.evaluation.protocol import evaluate_depth
from mcd.evaluation.stages import has_ground_truth
from mcd.files import DataError

Files = Any

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
HEIGHT, WIDTH = 12, 20
FRAME = f"{DATE}/{DRIVE}/image_02/data/0000000005"
# The LiDAR looks along x, its y to the left and z up, and stands one metre behind the camera.
LIDAR = "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -1\n"
CAMERAS = (
    "S_rect_02: 2.0e+01 1.2e+01\nS_rect_03: 2.0e+01 1.2e+01\nR_rect_00: 1 0 0 0 1 0 0 0 1\n"
    "P_rect_02: 10 0 8 0 0 10 6 0 0 0 1 0\nP_rect_03: 10 0 8 -5 0 10 6 0 0 0 1 0\n"
)


@pytest.fixture
def recording(tmp_path: Path, files: Files) -> Data:
    """Frames 4 to 6 of both cameras, with points for frame 5."""
    (tmp_path / DATE).mkdir()
    (tmp_path / DATE / "calib_cam_to_cam.txt").write_text(CAMERAS)
    (tmp_path / DATE / "calib_velo_to_cam.txt").write_text("calib_time: 15-Mar-2012 11:37:16\n" + LIDAR)
    for camera, ending in (("02", ".png"), ("03", ".jpg")):
        for number in (4, 5, 6):
            path = tmp_path / DATE / DRIVE / f"image_{camera}" / "data" / f"{number:010d}{ending}"
            files.save(path, np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
    points = tmp_path / DATE / DRIVE / "velodyne_points" / "data" / "0000000005.bin"
    points.parent.mkdir(parents=True)
    # Straight ahead at 4 m from the camera; the same pixel at 9 m; one metre to the right and two down; behind.
    np.array([[5, 0, 0, 1], [10, 0, 0, 1], [5, -1, -0.8, 1], [-3, 0, 0, 1]], "<f4").tofile(points)
    (tmp_path / "splits").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "splits" / f"{split}_files.txt").write_text(f"{DATE}/{DRIVE} 5 l\n\n{DATE}/{DRIVE} 0000000005 r\n")
    return Data(kind="kitti", root=tmp_path, size=(HEIGHT, WIDTH))


def test_a_list_names_frames_of_both_cameras(recording: Data) -> None:
    reader = open_reader(recording, "train")
    assert reader.frames == [FRAME, FRAME.replace("image_02", "image_03")]
    frames = reader.read(FRAME)
    assert [int(image[0, 0, 0]) for image in frames.images] == [40, 50, 60]
    assert frames.K.tolist() == [[10, 0, 8], [0, 10, 6], [0, 0, 1]]
    item = FrameDataset(reader, recording)[1]
    assert item["reference"].shape == (3, HEIGHT, WIDTH)


def test_points_fall_on_the_pixels_they_project_to(recording: Data) -> None:
    config = parse_config({"data": recording.model_dump(), "evaluation": {"protocol": "kitti", "split": "test"}})
    left, right = (EvaluationSet(config)[index] for index in (0, 1))
    expected = np.zeros((HEIGHT, WIDTH), np.float32)
    # u = 10 x / z + 8 and v = 10 y / z + 6, counted from 1.
    expected[5, 7] = 4.0
    expected[7, 9] = 4.0  # x = 1, y = 0.8, z = 4: u = 10.5, rounded to even, and v = 8
    assert np.array_equal(left["depth_gt"], expected)
    # The right camera stands half a metre to the right: u = 8 - 5 / 4 = 6.75 and 8 - 5 / 9 = 7.44.
    assert right["depth_gt"][5, 6] == 4.0
    assert left["dynamic_mask"] is None


@pytest.mark.parametrize(("factor", "off"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.1)])
def test_figures_are_those_of_the_points_up_to_one_scale_an_image(recording: Data, factor: float, off: float) -> None:
    config = parse_config({"data": recording.model_dump(), "evaluation": {"protocol": "kitti", "split": "test"}})
    assert has_ground_truth(config)
    assert not has_ground_truth(config.model_copy(update={"data": recording.model_copy(update={"split_files": "no"})}))

    def predict(batch: dict[str, Any]) -> torch.Tensor:
        depths = torch.full((len(batch["frame"]), 1, HEIGHT, WIDTH), 4.0)
        # Two points of 4 m count in each image: the median of 4 (1 ± off) is 4.
        depths[:, 0, 5], depths[:, 0, 7] = 4 * (1 - off), 4 * (1 + off)
        return factor * depths

    (region,) = evaluate_depth(predict, EvaluationSet(config), config.evaluation).items()
    assert region[0] == "all"
    assert region[1]["abs_rel"] == pytest.approx(off, abs=1e-6)
    assert region[1]["rmse"] == pytest.approx(4 * off, abs=1e-6)


def test_the_nearest_point_of_a_pixel_counts_and_none_from_outside() -> None:
    projection = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]])
    points = np.array([[0, 0, 7], [0, 0, 3], [0, 0, 5], [0, 0, -2], [4, 0, 1], [-1, 0, 1], [1, 0, 1]], np.float32)
    assert project_points(points, projection, (2, 2)).tolist() == [[3, 1], [0, 0]]


def test_lists_of_another_place_serve(recording: Data, tmp_path: Path) -> None:
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    (elsewhere / "val_files.txt").write_text(f"{DATE}/{DRIVE} 5 r\n")
    given = recording.model_copy(update={"split_files": elsewhere})
    assert open_reader(given, "val").frames == [FRAME.replace("image_02", "image_03")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        (f"{DATE}/{DRIVE} 5", "entry 1"),
        (f"{DATE}/{DRIVE} 5 x", "entry 1"),
        (f"{DRIVE} 5 l", "entry 1"),
    ],
)
def test_an_unusable_list_is_named(recording: Data, line: str, message: str) -> None:
    (recording.root / "splits" / "train_files.txt").write_text(line)
    with pytest.raises(DataError, match=rf"train_files\.txt.*{message}"):
        open_reader(recording, "train")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (f"{DATE}/{DRIVE}/image_02/data/0000000006.png", "image .*0000000006.png does not exist"),
        (f"{DATE}/calib_cam_to_cam.txt", "calibration .*calib_cam_to_cam.txt does not exist"),
    ],
)
def test_a_missing_file_is_named(recording: Data, what: str, message: str) -> None:
    (recording.root / what).unlink()
    with pytest.raises(DataError, match=message):
        open_reader(recording, "train").read(FRAME)


def test_points_that_are_cut_off_or_missing_are_named(recording: Data) -> None:
    config = parse_config({"data": recording.model_dump(), "evaluation": {"protocol": "kitti", "split": "test"}})
    path = recording.root / DATE / DRIVE / "velodyne_points" / "data" / "0000000005.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"0000000005\.bin hold 15 numbers; expected four a point"):
        EvaluationSet(config)[0]
    path.unlink()
    with pytest.raises(DataError, match=r"LiDAR points .*0000000005\.bin does not exist"):
        EvaluationSet(config)[0]


def test_an_image_of_another_size_than_its_calibration_is_named(recording: Data, files: Files) -> None:
    files.save(recording.root / f"{FRAME}.png", np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(DataError, match="is 12x21, but its calibration is for 12x20"):
        open_reader(recording, "train").read(FRAME)


def improved(recording: Data, **keys: Any) -> Config:
    settings = {"protocol": "kitti", "split": "test", "improved": "annotated", **keys}
    return parse_config({"data": recording.model_dump(), "evaluation": settings})


def test_the_improved_ground_truth_takes_the_place_of_the_points(recording: Data, files: Files) -> None:
    depth = np.zeros((HEIGHT, WIDTH), np.uint16)
    depth[0, 0], depth[6, 10] = 256 * 20, 256 * 7 + 128
    inside = Path("proj_depth", "groundtruth", "image_02", "0000000005.png")
    files.save(recording.root / "annotated" / "val" / DRIVE / inside, depth)
    dataset = EvaluationSet(improved(recording))
    # The right camera has none.
    assert [item.frame for item in dataset.items] == [FRAME]
    assert dataset.notes == ["1 of 2 listed frames have no improved ground truth"]
    item = dataset[0]
    assert np.array_equal(item["depth_gt"], depth / np.float32(256))
    # Its benchmark has no crop: the corner counts.
    assert np.argwhere(item["valid"]).tolist() == [[0, 0], [6, 10]]
    cropped = EvaluationSet(improved(recording, crop=[0.4, 1, 0, 1]))[0]
    assert np.argwhere(cropped["valid"]).tolist() == [[6, 10]]
    with pytest.raises(DataError, match="none of the 2 frames listed"):
        EvaluationSet(improved(recording, improved="elsewhere"))


def test_what_moves_is_read_by_frame(recording: Data, files: Files) -> None:
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[5, 7], numbers[9, 9] = 2, 255
    files.save(recording.root / "moving" / f"{FRAME}.png", numbers)
    config = improved(recording, improved=None, masks="moving")
    left, right = (EvaluationSet(config)[index] for index in (0, 1))
    assert np.argwhere(left["dynamic_mask"]).tolist() == [[5, 7], [9, 9]]
    assert right["dynamic_mask"] is None  # not known, which is not the same as none
    regions = evaluate_depth(
        lambda b: torch.full((len(b["frame"]), 1, HEIGHT, WIDTH), 4.0), EvaluationSet(config), config.evaluation
    )
    assert set(regions) == {"all", "static", "dynamic"}
    files.save(recording.root / "moving" / f"{FRAME}.png", numbers[1:])
    with pytest.raises(DataError, match="is 11x20, its depth 12x20"):
        EvaluationSet(config)[0]
    (recording.root / "moving" / f"{FRAME}.png").unlink()
    for name, place in (("0", (3, 3)), ("7", (4, 4))):
        one = np.zeros((HEIGHT, WIDTH), np.uint8)
        one[place] = 255
        files.save(recording.root / "moving" / FRAME / f"{name}.png", one)
    assert np.argwhere(EvaluationSet(config)[0]["dynamic_mask"]).tolist() == [[3, 3], [4, 4]]
