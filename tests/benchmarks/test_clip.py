"""The piece of real driving that comes with the project: what ships, and the start adapted to it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcd.data.video import VideoReader
from mcd.evaluation.contact import read_boxes
from mcd.evaluation.figures import read_figures

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import clip


def test_the_clip_is_small_and_its_licence_stands_beside_it() -> None:
    assert sum(path.stat().st_size for path in clip.CLIP.iterdir() if path.is_file()) < 2 * 2**20
    assert "Udacity" in (clip.CLIP / "LICENSE").read_text()
    assert "LICENSE" in (clip.CLIP / "README.md").read_text()


def test_boxes_lie_in_the_frames_that_are_shown() -> None:
    frames = list(VideoReader(clip.CLIP / "highway.mp4"))
    height, width = frames[0].shape[:2]
    things = read_boxes(clip.CLIP / "vehicles.csv", [str(number) for number in range(len(frames))])
    assert len(frames) == 80 and set(things) == {str(number) for number in clip.SHOWN}
    assert all(thing.x1 <= width and thing.y1 <= height for found in things.values() for thing in found)


@pytest.mark.slow
def test_the_start_is_adapted_reported_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, runs = tmp_path / "clip.png", tmp_path / "runs"
    places = ["--folder", str(tmp_path / "clip"), "--runs", str(runs), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["clip", "--steps", "4", *places])
    clip.main()
    assert "Do vehicles stand on the road?" in (runs / "clip" / "report.html").read_text()
    measured = read_figures(runs / "clip" / "metrics.json")["contact"]["scene"]["boxes"]["all"]
    said = capsys.readouterr().out
    assert measured["count"] == 17
    for name in ("depth, as shipped", "depth, adapted"):
        assert f"{name:18} all    17 boxes" in said
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    assert drawn.shape[0] > 3 * clip.DRAWN[0] and drawn.shape[1] > 3 * clip.DRAWN[1]
    # Image and two maps of depth: nets of a few steps differ little, but differ.
    first, second = np.array_split(drawn[clip.DRAWN[0] :], 3, axis=1)[1:]
    assert not np.array_equal(first[:, :380], second[:, :380])
