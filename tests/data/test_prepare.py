from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcd.config import Data
from mcd.data import open_reader
from mcd.data.prepare import main

Files = Any

HEIGHT, WIDTH = 16, 32


@pytest.fixture
def cityscapes(tmp_path: Path, files: Files) -> Path:
    """A snippet of eight frames, and two of five in one sequence, at a 64th of the real size."""
    root = tmp_path / "download"
    for prefix, numbers in (("ulm_000002", range(10, 18)), ("bonn_000000", [*range(5), *range(19, 24)])):
        city = prefix.split("_")[0]
        for number in numbers:
            path = root / "leftImg8bit_sequence" / "train" / city / f"{prefix}_{number:06d}_leftImg8bit.png"
            files.save(path, files.noise(HEIGHT, WIDTH, seed=number))
        for number in (numbers[3], numbers[-1]):
            path = root / "camera" / "train" / city / f"{prefix}_{number:06d}_camera.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"intrinsic": {"fx": 40 + number, "fy": 44, "u0": 15.5, "v0": 7.5}}))
    return root


def prepare(source: Path, out: Path, *options: str) -> int:
    return main(["cityscapes", str(source), str(out), "--splits", "train", "--workers", "2", *options])


def road_view(files: Files, number: int) -> np.ndarray:
    """Half the size, without the bottom quarter."""
    half = Image.fromarray(files.noise(HEIGHT, WIDTH, seed=number)).resize((16, 8), Image.Resampling.LANCZOS)
    return np.asarray(half)[:6]


def test_the_reader_finds_every_frame_with_neighbours_in_its_snippet(
    cityscapes: Path, tmp_path: Path, files: Files
) -> None:
    assert prepare(cityscapes, tmp_path / "out") == 0
    reader = open_reader(Data(root=tmp_path / "out"), "train")
    expected = [f"ulm/ulm_000002_{number:06d}" for number in range(12, 16)]
    assert reader.frames == ["bonn/bonn_000000_000002", "bonn/bonn_000000_000021", *expected]
    for image, number in zip(reader.read("ulm/ulm_000002_000013").images, (11, 13, 15), strict=True):
        assert np.array_equal(image, road_view(files, number))


def test_intrinsics_come_from_the_nearest_camera_and_follow_the_resize(cityscapes: Path, tmp_path: Path) -> None:
    assert prepare(cityscapes, tmp_path / "out") == 0
    reader = open_reader(Data(root=tmp_path / "out"), "train")
    # The centre of the picture is the centre of the half-size picture; rows cut off below do not move it.
    expected = np.array([[0, 0, 7.5], [0, 22, 3.5], [0, 0, 1]])
    for frame, camera in (("bonn_000000_000002", 3), ("bonn_000000_000021", 23), ("ulm_000002_000014", 13)):
        expected[0, 0] = (40 + camera) / 2
        assert np.allclose(reader.read(f"{frame.split('_')[0]}/{frame}").K, expected, atol=1e-9), frame


def test_a_command_given_again_writes_what_is_missing_and_nothing_else(cityscapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(cityscapes, out) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("triplets/*/*.png")}
    lost = out / "triplets" / "ulm" / "ulm_000002_000013.png"
    lost.unlink()
    (out / "splits" / "train.txt").unlink()
    assert prepare(cityscapes, out) == 0
    assert len((out / "splits" / "train.txt").read_text().splitlines()) == len(before) == 6
    for path, (time, content) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == time) == (path != lost)


def test_a_broken_image_stops_or_is_left_out_by_name(
    cityscapes: Path, tmp_path: Path, files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = cityscapes / "leftImg8bit_sequence" / "train" / "ulm" / "ulm_000002_000012_leftImg8bit.png"
    files.truncate(broken)
    assert prepare(cityscapes, tmp_path / "out") == 1
    assert f"mcd.data.prepare: image {broken} cannot be read" in capfd.readouterr().err
    assert prepare(cityscapes, tmp_path / "out", "--skip") == 0
    assert capfd.readouterr().err.count(f"left out: image {broken}") == 1
    frames = open_reader(Data(root=tmp_path / "out"), "train").frames
    assert [frame[-2:] for frame in frames if "ulm" in frame] == ["13", "15"]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("leftImg8bit_sequence", r"leftImg8bit_sequence/train holds no CITY/"),
        ("camera/train/ulm", "sequence ulm_000002 of .* has no camera file"),
    ],
)
def test_a_download_that_is_not_complete_is_an_error(
    cityscapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], remove: str, message: str
) -> None:
    (cityscapes / remove).rename(tmp_path / "elsewhere")
    assert prepare(cityscapes, tmp_path / "out") == 1
    error = capfd.readouterr().err
    assert re.search(message, error), error


def test_neighbours_may_be_nearer(cityscapes: Path, tmp_path: Path) -> None:
    assert prepare(cityscapes, tmp_path / "out", "--gap", "1") == 0
    assert len(open_reader(Data(root=tmp_path / "out"), "train").frames) == 6 + 3 + 3
