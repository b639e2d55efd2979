from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcd.config import Data
from mcd.data import TripletFolder, instance_masks, open_reader, road_mask
from mcd.files import DataError

HEIGHT, WIDTH = 10, 17
FRAME = "a/a_000000_000009"

Files = Any


def test_frames_are_sorted_whatever_the_order_of_the_list(triplets: Data) -> None:
    assert open_reader(triplets, "train").frames == [
        "a/a_000000_000009",
        "a/a_000000_000010",
        "a/a_000001_000000",
        "b/b_000000_000001",
    ]


def test_a_triplet_is_previous_reference_next_from_left_to_right(triplets: Data, files: Files) -> None:
    whole = files.noise(HEIGHT, 3 * WIDTH, seed=2)
    frames = TripletFolder(triplets, "train").read(FRAME)
    for position, image in enumerate(frames.images):
        assert np.array_equal(image, whole[:, position * WIDTH : (position + 1) * WIDTH])
    assert np.array_equal(frames.K, [[12.5, 0, 8.25], [0, 11.5, 4.5], [0, 0, 1]])


def test_a_missing_root_or_list_is_named(triplets: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_reader(triplets.model_copy(update={"root": tmp_path / "nowhere"}), "train")
    with pytest.raises(DataError, match=r"test\.txt does not exist"):
        open_reader(triplets, "test")


@pytest.mark.parametrize(("text", "message"), [("\n", "empty"), ("a a_0\nb\n", "entry 2: 'b' is not 'city frame'")])
def test_an_unusable_list_is_an_error(triplets: Data, text: str, message: str) -> None:
    (triplets.root / "splits" / "train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_reader(triplets, "train")


@pytest.mark.parametrize("problem", ["missing", "truncated", "16 bits", "not three frames", "no image"])
def test_an_unusable_image_is_named(triplets: Data, problem: str, files: Files) -> None:
    path = triplets.root / "triplets" / f"{FRAME}.png"
    if problem == "missing":
        path.unlink()
    elif problem == "truncated":
        files.truncate(path)
    elif problem == "16 bits":
        files.save(path, np.zeros((HEIGHT, 3 * WIDTH), np.uint16))
    elif problem == "not three frames":
        files.save(path, files.noise(HEIGHT, 3 * WIDTH + 1))
    else:
        path.write_text("<html>404</html>")
    with pytest.raises(DataError, match=rf"{FRAME}\.png"):
        TripletFolder(triplets, "train").read(FRAME)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("1,0,0,0,1,0,0,0", "8 numbers"),
        ("fx,0,0,0,1,0,0,0,1", "cannot be read"),
        ("12.5,0,nan,0,11.5,4.5,0,0,1", "not finite"),
        ("12.5,0,8,25,0,16,0,0,1", "singular"),
        ("0,0,0,0,0,0,0,0,0", "singular"),
        ("-12.5,0,8,0,11.5,4.5,0,0,1", "pinhole"),
        ("12.5,0,8,0,11.5,4.5,0,0,2", "pinhole"),
    ],
)
def test_unusable_intrinsics_are_named(triplets: Data, text: str | None, message: str) -> None:
    path = triplets.root / "triplets" / f"{FRAME}_cam.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        TripletFolder(triplets, "train").read(FRAME)
    assert str(path) in str(error.value)


def test_masks_come_in_the_order_of_their_numbers_and_stray_files_are_left_alone(triplets: Data, files: Files) -> None:
    folder = triplets.root / "masks" / "train" / FRAME
    for number in (10, 9):
        files.save(folder / f"{number}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    for name in ("labels.txt", "overview.png", "3.json"):
        (folder / name).write_text("stray")
    masks, ids = instance_masks(triplets, "train", FRAME)
    assert ids == [0, 1, 9, 10]
    assert masks.dtype == bool
    assert masks.shape == (4, HEIGHT, WIDTH)
    assert np.argwhere(masks[:2]).tolist() == [[0, 1, 3], [1, 3, 3]]


def test_a_frame_without_a_mask_folder_has_no_instances(triplets: Data) -> None:
    for path in (triplets.root / "masks" / "train" / FRAME).iterdir():
        path.unlink()
    assert instance_masks(triplets, "train", FRAME)[0].shape == (0, HEIGHT, WIDTH)
    (triplets.root / "masks" / "train" / FRAME).rmdir()
    assert instance_masks(triplets, "train", FRAME)[0].shape == (0, HEIGHT, WIDTH)


def test_missing_masks_of_a_whole_split_are_an_error(triplets: Data) -> None:
    with pytest.raises(DataError, match=r"masks/val does not exist"):
        instance_masks(triplets, "val", FRAME)
    elsewhere = triplets.model_copy(update={"masks": Path("segmenter"), "road_masks": Path("ground")})
    with pytest.raises(DataError, match=r"segmenter does not exist"):
        instance_masks(elsewhere, "train", FRAME)
    with pytest.raises(DataError, match=r"ground does not exist"):
        road_mask(elsewhere, "train", FRAME)


@pytest.mark.parametrize("which", ["instance", "road"])
def test_a_mask_of_another_size_than_its_image_is_named(triplets: Data, which: str, files: Files) -> None:
    folder = triplets.root / ("masks" if which == "instance" else "road_masks") / "train" / FRAME
    path = folder / "1.png" if which == "instance" else folder.with_name(f"{folder.name}.png")
    files.save(path, np.zeros((HEIGHT, WIDTH + 3), np.uint8))
    with pytest.raises(DataError, match=f"is {HEIGHT}x{WIDTH + 3}, but its frame is {HEIGHT}x{WIDTH}") as error:
        instance_masks(triplets, "train", FRAME) if which == "instance" else road_mask(triplets, "train", FRAME)
    assert str(path) in str(error.value)


def test_a_truncated_mask_and_a_missing_road_are_named(triplets: Data, files: Files) -> None:
    files.truncate(triplets.root / "masks" / "train" / FRAME / "1.png")
    with pytest.raises(DataError, match=rf"{FRAME}/1\.png"):
        instance_masks(triplets, "train", FRAME)
    (triplets.root / "road_masks" / "train" / f"{FRAME}.png").unlink()
    with pytest.raises(DataError, match=rf"road_masks/train/{FRAME}\.png does not exist"):
        road_mask(triplets, "train", FRAME)


def test_masks_reach_the_size_of_the_networks_without_blending(triplets: Data, files: Files) -> None:
    """The published masks are half as large as the frames; here the networks see a third."""
    small = triplets.model_copy(update={"size": (3, 5)})
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    # Pixel (1, 4) of 3x5 has its centre at row 5.0 and column 15.3 of 10x17.
    mask[5, 15] = 255
    files.save(triplets.root / "masks" / "train" / FRAME / "0.png", mask)
    assert np.argwhere(instance_masks(small, "train", FRAME)[0][0]).tolist() == [[1, 4]]


def test_a_road_probability_counts_above_one_half(triplets: Data, files: Files) -> None:
    levels = np.full((HEIGHT, WIDTH), 127, np.uint8)
    levels[4] = 128
    files.save(triplets.root / "road_masks" / "train" / f"{FRAME}.png", levels)
    road = road_mask(triplets, "train", FRAME)
    assert road.shape == (1, HEIGHT, WIDTH)
    assert np.array_equal(road[0], levels > 127.5)


def test_a_mask_of_zeros_and_ones_is_not_empty(triplets: Data, files: Files) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2, 2] = 1
    files.save(triplets.root / "masks" / "train" / FRAME / "0.png", mask)
    assert instance_masks(triplets, "train", FRAME)[0][0].sum() == 1
