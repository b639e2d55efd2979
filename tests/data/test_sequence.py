from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcd.config import Data
from mcd.data import SequenceFolder, open_reader, road_mask
from mcd.data.sequence import consecutive_runs
from mcd.data.video import VideoWriter
from mcd.files import DataError

HEIGHT, WIDTH = 10, 17

Make = Callable[..., Data]
Files = Any

KITTI = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: {width}.000000e+00 {height}.000000e+00
P_rect_02: 7.215e+02 0.0e+00 6.095e+02 4.485e+01 0.0e+00 7.215e+02 1.728e+02 2.163e-01 0.0e+00 0.0e+00 1.0e+00 2.7e-03
"""


def test_a_frame_stands_between_its_neighbours(sequence: Make) -> None:
    reader = open_reader(sequence(), "train")
    assert reader.frames == [f"{number:04d}" for number in range(1, 7)]
    assert [int(image[0, 0, 0]) for image in reader.read("0003").images] == [20, 30, 40]


def test_sources_stay_inside_the_range_of_their_split(sequence: Make) -> None:
    """Frames that are evaluated must not be trained on, not even as sources."""
    reader = SequenceFolder(sequence(train_frames=(2, 6), spacing=(2, 1)), "train")
    assert reader.frames == ["0003", "0004", "0005"]
    assert [reader.spacings(frame) for frame in reader.frames] == [(1,), (2, 1), (1,)]
    seen = {int(i[0, 0, 0]) for f in reader.frames for s in reader.spacings(f) for i in reader.read(f, s).images}
    assert seen == {20, 30, 40, 50, 60}


def test_the_first_spacing_is_the_usual_one(sequence: Make) -> None:
    reader = SequenceFolder(sequence(spacing=(3, 1)), "train")
    assert [int(image[0, 0, 0]) for image in reader.read("0004").images] == [10, 40, 70]
    assert [int(image[0, 0, 0]) for image in reader.read("0004", 1).images] == [30, 40, 50]


def test_evaluated_frames_need_no_neighbours(sequence: Make) -> None:
    reader = SequenceFolder(sequence(eval_frames=(7, 7)), "eval")
    assert reader.every_frame == ["0007"]
    assert (reader.read_depth("0007") == 7).all()
    assert reader.read_depth("0007").dtype == np.float32


@pytest.mark.parametrize("frames", [(0, 8), (5, 4)])
def test_a_range_beyond_the_frames_is_an_error(sequence: Make, frames: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"data\.val_frames is .*has frames 0 to 7"):
        SequenceFolder(sequence(val_frames=frames), "val")


def test_without_ranges_the_last_tenth_is_held_out(sequence: Make, tmp_path: Path, files: Files) -> None:
    for number in range(31):
        files.save(tmp_path / "long" / f"{number:02d}.png", files.noise(HEIGHT, WIDTH))

    def ends(split: str, **config: object) -> tuple[str, str]:
        reader = SequenceFolder(sequence(images="long", **config), split)
        return reader.every_frame[0], reader.every_frame[-1]

    assert (ends("train"), ends("val"), ends("eval")) == (("00", "27"), ("28", "30"), ("00", "30"))
    assert ends("val", train_frames=(0, 9)) == ("00", "30")
    assert ends("train", spacing=(2,)) == ends("val", spacing=(2,)) == ("00", "30")


def test_other_files_of_a_frame_and_odd_names_do_no_harm(sequence: Make, tmp_path: Path, files: Files) -> None:
    for name in ("f[1]", "f[2]", "f[3]"):
        files.save(tmp_path / "odd" / f"{name}.JPG", files.noise(HEIGHT, WIDTH))
        (tmp_path / "odd" / f"{name}.json").write_text("{}")
        files.save(tmp_path / "masks" / "train" / f"{name}.png", files.noise(HEIGHT, WIDTH)[..., 0])
    config = sequence(images="odd", road_masks="masks")
    for frame in ("f[1]", "f[2]", "f[3]"):
        assert road_mask(config, "train", frame).shape == (1, *config.size)


def test_a_range_too_short_for_its_neighbours_is_an_error(sequence: Make) -> None:
    with pytest.raises(DataError, match="none has neighbours at a distance of 2 or 3"):
        SequenceFolder(sequence(train_frames=(0, 3), spacing=(2, 3)), "train")


def test_numbers_in_names_count_by_value(sequence: Make, tmp_path: Path, files: Files) -> None:
    for number in (9, 10, 100):
        files.save(tmp_path / "plain" / f"frame{number}.png", files.noise(HEIGHT, WIDTH))
    assert SequenceFolder(sequence(images="plain"), "eval").every_frame == ["frame9", "frame10", "frame100"]


def test_unusable_folders_are_named(sequence: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        SequenceFolder(sequence(images="nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no \.png"):
        SequenceFolder(sequence(images="empty"), "train")
    (tmp_path / "images" / "0003.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"frame 0003 twice: 0003\.(png|jpg) and 0003\.(png|jpg)"):
        SequenceFolder(sequence(), "train")


def test_frames_and_depth_of_another_size_are_named(sequence: Make, tmp_path: Path, files: Files) -> None:
    files.save(tmp_path / "images" / "0004.png", files.noise(HEIGHT, WIDTH + 1))
    files.save(tmp_path / "depth" / "0004.png", np.zeros((HEIGHT + 1, WIDTH), np.uint16))
    files.save(tmp_path / "depth" / "0005.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    reader = SequenceFolder(sequence(), "train")
    with pytest.raises(DataError, match=r"images/0004\.png is 10x18, but 0000\.png is 10x17"):
        reader.read("0003")
    with pytest.raises(DataError, match=r"depth/0004\.png is 11x17, but its image is 10x17"):
        reader.read_depth("0004")
    with pytest.raises(DataError, match=r"depth/0005\.png .* expected 16-bit"):
        reader.read_depth("0005")
    with pytest.raises(DataError, match=r"data\.depth names no folder"):
        SequenceFolder(sequence(depth=None), "eval").read_depth("0003")


def test_intrinsics_of_the_config_come_first_then_the_calibration(sequence: Make, tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text(KITTI.format(width=WIDTH, height=HEIGHT))
    both = sequence(calibration="calib.txt")
    assert np.array_equal(SequenceFolder(both, "train").K, [[12.5, 0, 8.25], [0, 11.5, 4.5], [0, 0, 1]])
    read = SequenceFolder(sequence(calibration="calib.txt", intrinsics=None), "train").K
    assert np.array_equal(read, [[721.5, 0, 609.5], [0, 721.5, 172.8], [0, 0, 1]])


def test_an_unusable_calibration_is_named(sequence: Make, tmp_path: Path) -> None:
    config = sequence(calibration="calib.txt", intrinsics=None)
    with pytest.raises(DataError, match=r"calib\.txt does not exist"):
        SequenceFolder(config, "train")
    (tmp_path / "calib.txt").write_text("R: 1 0 0\n")
    with pytest.raises(DataError, match="no line P_rect_02"):
        SequenceFolder(config, "train")
    (tmp_path / "calib.txt").write_text(KITTI.format(width=1242, height=375))
    with pytest.raises(DataError, match=r"calib\.txt is for 375x1242 frames, but those of .* are 10x17"):
        SequenceFolder(config, "train")


def test_a_guessed_focal_length_is_announced(sequence: Make) -> None:
    with pytest.warns(UserWarning, match=r"guessed: a focal length of 8\.5 pixels"):
        K = SequenceFolder(sequence(intrinsics=None, fov=90), "train").K
    # At 90 degrees the focal length is half the width; the principal point is the centre of the pixel areas.
    assert np.allclose(K, [[8.5, 0, 8], [0, 8.5, 4.5], [0, 0, 1]], atol=1e-12)


def test_no_intrinsics_is_an_error_that_lists_the_ways_to_give_them(sequence: Make) -> None:
    with pytest.raises(DataError, match=r"data\.intrinsics .*data\.calibration.*data\.fov"):
        SequenceFolder(sequence(intrinsics=None), "train")


def test_a_video_is_a_sequence(sequence: Make, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for number in range(4):
            writer.write(np.full((32, 48, 3), 50 * number, np.uint8))
    config = sequence(images="clip.mp4")
    reader = SequenceFolder(config, "train")
    assert reader.frames == ["0000000001", "0000000002"]
    grey = [int(image.mean()) for image in reader.read("0000000001").images]
    # The codec may move a flat picture by a few levels.
    assert np.allclose(grey, [0, 50, 100], atol=5)
    written = (tmp_path / "clip.mp4.frames" / "0000000000.jpg").stat().st_mtime_ns
    SequenceFolder(config, "train")
    assert (tmp_path / "clip.mp4.frames" / "0000000000.jpg").stat().st_mtime_ns == written
    assert not list(tmp_path.glob(".clip*")), "no half-written folder stays"


def test_frames_of_a_video_that_nothing_may_stand_beside_are_in_the_cache(
    sequence: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with VideoWriter(tmp_path / folder / "clip.mp4", Fraction(10)) as writer:
            for number in range(4):
                writer.write(np.full((32, 48, 3), 50 * number if folder == "a" else 9, np.uint8))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for folder, level in (("a", 100), ("b", 9)):
        with pytest.warns(
            UserWarning, match=f"{folder} cannot be written: the frames of clip.mp4 are in .*/cache/mcd/"
        ):
            reader = SequenceFolder(sequence(images=f"{folder}/clip.mp4"), "train")
        assert abs(int(reader.read_image("0000000002").mean()) - level) < 6
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["clip.mp4"]
    assert len(list((tmp_path / "cache" / "mcd").iterdir())) == 2


def test_hidden_files_and_other_digits_are_no_frames(sequence: Make, tmp_path: Path) -> None:
    (tmp_path / "images" / "._0003.png").write_bytes(b"of another system")
    (tmp_path / "images" / "0007.png").rename(tmp_path / "images" / "\u00b2\u00b3.png")
    assert SequenceFolder(sequence(), "train").names[:2] == ["\u00b2\u00b3", "0000"]


def test_a_crop_that_leaves_nothing_is_named(sequence: Make) -> None:
    with pytest.raises(DataError, match=r"data\.crop leaves 1x17 pixels of the 10x17"):
        SequenceFolder(sequence(crop=(0.5, 0.51, 0, 1)), "train")


def test_frames_older_than_their_video_are_not_used(sequence: Make, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "clip.mp4.frames").mkdir()
    os.utime(tmp_path / "clip.mp4.frames", (1, 1))
    with pytest.raises(DataError, match=r"older than clip\.mp4"):
        SequenceFolder(sequence(images="clip.mp4"), "train")


def test_a_broken_video_leaves_nothing_behind(sequence: Make, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4"):
        SequenceFolder(sequence(images="clip.mp4"), "train")
    assert not list(tmp_path.glob("*clip*.frames"))
    assert not list(tmp_path.glob(".clip*"))


def renumber(folder: Path, numbers: list[int]) -> None:
    for number, new in sorted(enumerate(numbers), reverse=True):
        for kind in ("images", "depth"):
            (folder / kind / f"{number:04d}.png").rename(folder / kind / f"{new:04d}.png")


def test_no_frame_has_a_neighbour_beyond_a_gap(sequence: Make) -> None:
    config = sequence(spacing=(1, 2))
    renumber(config.root, [0, 1, 2, 3, 7, 8, 9, 10])
    with pytest.warns(UserWarning, match="leave 1 gap, the first between 0003 and 0007.*data.bridge_gaps=true"):
        reader = SequenceFolder(config, "train")
    assert reader.frames == ["0001", "0002", "0008", "0009"]
    assert all(reader.spacings(frame) == (1,) for frame in reader.frames)
    assert len(SequenceFolder(config, "eval").every_frame) == 8


def test_gaps_are_bridged_where_that_is_asked_for(sequence: Make, recwarn: pytest.WarningsRecorder) -> None:
    config = sequence(bridge_gaps=True)
    renumber(config.root, [0, 1, 2, 3, 7, 8, 9, 10])
    assert SequenceFolder(config, "train").frames == ["0001", "0002", "0003", "0007", "0008", "0009"]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        (["a", "b", "c"], [(0, 2)]),
        (["5"], [(0, 0)]),
        (["0", "5", "10", "15"], [(0, 3)]),
        (["0", "5", "10", "20", "25"], [(0, 2), (3, 4)]),
        (["day_1", "day_2", "day_3", "night_1", "night_2", "night_3"], [(0, 2), (3, 5)]),
        (["1_00", "1_01", "1_02", "2_00", "2_01"], [(0, 2), (3, 4)]),
        # Names with a second part that changes, such as a time or a hash, say nothing.
        (["1_x", "2_y", "7_z"], [(0, 2)]),
        (["1.25", "2.75", "9.5"], [(0, 2)]),
        # Times that jitter have no gap.
        (["100", "151", "199", "251", "299", "400"], [(0, 4), (5, 5)]),
    ],
)
def test_what_is_a_gap(names: list[str], runs: list[tuple[int, int]]) -> None:
    assert consecutive_runs(names) == runs
