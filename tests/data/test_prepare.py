from __future__ import annotations

import json
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcd.config import Data
from mcd.data import open_reader
from mcd.data.prepare import main
from mcd.data.processes import process_count

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


def test_a_folder_made_with_another_gap_is_refused(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare(cityscapes, out) == 0
    before = (out / "splits" / "train.txt").read_text()
    assert prepare(cityscapes, out, "--gap", "1") == 1
    assert "was made with gap 2 (prepared.json), not 1" in capsys.readouterr().err
    assert (out / "splits" / "train.txt").read_text() == before
    assert prepare(cityscapes, out) == 0


def test_a_split_made_from_another_download_is_refused(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare(cityscapes, out) == 0
    moved = cityscapes.rename(tmp_path / "other")
    assert prepare(moved, out) == 1
    assert f"was made from {cityscapes} (prepared.json), not {moved}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{", None])
def test_triplets_of_unknown_options_are_not_mixed_with_others(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    out = tmp_path / "out"
    assert prepare(cityscapes, out) == 0
    manifest = out / "prepared.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    assert prepare(cityscapes, out) == 1
    assert "prepared.json" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("odd", [10, 14])
def test_an_image_of_another_size_is_named_with_both_sizes(
    cityscapes: Path, tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], odd: int
) -> None:
    path = cityscapes / f"leftImg8bit_sequence/train/ulm/ulm_000002_{odd:06d}_leftImg8bit.png"
    files.save(path, files.noise(HEIGHT // 2, WIDTH, seed=0))
    assert prepare(cityscapes, tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"mcd.data.prepare: image {path} is 8x32, but most of its sequence are 16x32: the frames of a sequence have "
        "one size"
    )
    assert prepare(cityscapes, tmp_path / "other", "--skip") == 0
    left_out = {number for number in range(12, 16) if odd in (number - 2, number, number + 2)}
    frames = [frame for frame in open_reader(Data(root=tmp_path / "other"), "train").frames if frame.startswith("ulm")]
    assert frames == [f"ulm/ulm_000002_{number:06d}" for number in range(12, 16) if number not in left_out]


def test_there_are_never_more_processes_than_sequences(
    cityscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, count: int, **options: Any):
            asked.append(count)
            super().__init__(count, **options)

    monkeypatch.setattr("mcd.data.prepare.ProcessPoolExecutor", Pool)
    assert prepare(cityscapes, tmp_path / "out", "--workers", "100000") == 0
    assert asked == [3]


def test_processes_are_limited_by_work_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert [process_count(wanted, 50) for wanted in (0, 1, 12, 13, 10**9)] == [0, 1, 12, 12, 12]
    assert process_count(8, 5) == 5
