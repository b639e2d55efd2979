"""Depth of another method through the command: every kind of file, and what is said of numbers that cannot be meant."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from mcd.evaluation.command import main
from mcd.evaluation.metrics import METRICS
from mcd.evaluation.tables import Result, intervals_table, to_csv, to_latex

SIZE = (64, 96)
FRAMES = [f"{number:03d}" for number in range(6)]
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of six frames with dense depth up to 75 m that no row knows."""
    root = tmp_path_factory.mktemp("clip")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "depth").mkdir()
    for frame in FRAMES:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(root / "images" / f"{frame}.png")
        depth = np.linspace(50, 2, SIZE[0])[:, None] * rng.uniform(0.5, 1.5, SIZE)
        Image.fromarray((depth * 256).round().astype(np.uint16)).save(root / "depth" / f"{frame}.png")
    data = {
        "kind": "sequence", "root": str(root), "images": "images", "depth": "depth", "size": [64, 96], "workers": 0,
        "intrinsics": [80.0, 80.0, 48.0, 32.0],
    }  # fmt: skip
    path = root / "clip.yaml"
    path.write_text(yaml.safe_dump({"device": "cpu", "data": data, "evaluation": {"protocol": "kitti"}}))
    return path


def truth(clip: Path, frame: str) -> NDArray[np.float64]:
    return np.asarray(Image.open(clip.parent / "depth" / f"{frame}.png")) / 256.0


def noisy(clip: Path, frame: str, spread: float, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng((int(frame), seed))
    return truth(clip, frame) * np.exp(rng.normal(0, spread, SIZE))


def evaluated(clip: Path, shown: Shown, *arguments: str) -> dict[str, dict[str, float]]:
    """Figures of the first place, by region."""
    assert main([*arguments, "--config", str(clip), "--json"]) == 0, shown.readouterr().err
    document = json.loads(shown.readouterr().out)
    return document["stages"][next(iter(document["stages"]))]


def write(clip: Path, folder: Path, kind: str) -> list[str]:
    """The same predictions in another form; returns the options that say what they are."""
    folder.mkdir()
    depths = {frame: noisy(clip, frame, 0.1) for frame in FRAMES}
    if kind == "array":
        np.save(folder.with_suffix(".npy"), np.stack(list(depths.values())).astype(np.float32))
        return []
    for frame, depth in depths.items():
        if kind == "npy":
            np.save(folder / f"{frame}.npy", depth.astype(np.float32))
        elif kind == "millimetres":
            np.save(folder / f"{frame}_depth.npy", 1000 * depth)
        elif kind == "disparity":
            np.save(folder / f"{frame}.npy", 30 / depth[None])
        elif kind == "kitti":
            Image.fromarray((depth * 256).round().astype(np.uint16)).save(folder / f"{frame}.png")
        else:
            text = PngInfo()
            text.add_text("depth_factor", "650")
            levels = (depth * 650).round().astype(np.uint16)
            Image.fromarray(levels).save(folder / f"{frame}_depth16.png", pnginfo=text)
    options = {"disparity": ["--kind", "disparity", "--unit", "30"], "millimetres": ["--unit", "0.001"]}
    return options.get(kind, [])


def test_figures_do_not_depend_on_the_kind_of_the_files(clip: Path, tmp_path: Path, capsys: Shown) -> None:
    found = {}
    for kind in ("npy", "array", "millimetres", "disparity", "kitti", "16bit"):
        options = write(clip, tmp_path / kind, kind)
        place = tmp_path / ("array.npy" if kind == "array" else kind)
        found[kind] = evaluated(clip, capsys, str(place), "--scale", "none", *options)
    window = (slice(int(0.40810811 * 64), int(0.99189189 * 64)), slice(int(0.03594771 * 96), int(0.96405229 * 96)))
    errors = [
        np.mean(np.abs(noisy(clip, f, 0.1)[window] - truth(clip, f)[window]) / truth(clip, f)[window]) for f in FRAMES
    ]
    for kind, regions in found.items():
        # Levels of 1/256 m are up to 0.1 % of the nearest depth; they round to either side.
        assert regions["all"]["abs_rel"] == pytest.approx(np.mean(errors), rel=2e-4), kind


def test_a_smaller_map_is_brought_to_the_truth(clip: Path, tmp_path: Path, capsys: Shown) -> None:
    found = []
    for size in (SIZE, (32, 48)):
        for frame in FRAMES:
            np.save(tmp_path / f"{frame}.npy", np.full(size, 3.0))
        found.append(evaluated(clip, capsys, str(tmp_path))["all"])
    assert found[0] == pytest.approx(found[1])


def test_differences_are_paired(clip: Path, tmp_path: Path, capsys: Shown) -> None:
    for name, spread, seed in (("good", 0.10, 0), ("same", 0.10, 1), ("worse", 0.11, 0)):
        (tmp_path / name).mkdir()
        for frame in FRAMES:
            np.save(tmp_path / name / f"{frame}.npy", noisy(clip, frame, spread, seed))
    places = [str(tmp_path / name) for name in ("good", "same", "worse")]
    assert main([*places, "--config", str(clip), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {(Path(d["of"]).name, Path(d["minus"]).name): d for d in document["differences"] if d["region"] == "all"}
    (winner,) = {name for _, name in found}
    loser = ({"good", "same"} - {winner}).pop()
    assert not found[loser, winner]["real"]
    assert found["worse", winner]["real"]
    assert found["worse", winner]["frames"] == 6
    stage = next(name for name in document["intervals"] if name.endswith("worse/worse"))
    low, high = document["intervals"][stage]["all"]["abs_rel"]
    assert low < document["stages"][stage]["all"]["abs_rel"] < high


def results() -> list[Result]:
    """Two that differ by noise, one that is worse in every frame, and one whose frames are not known."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.1, 0.3, 40)
    found = []
    for name, values in (("good", hard), ("same", hard + rng.normal(0, 0.01, 40)), ("worse_1", hard + 0.05)):
        frames = {str(number): dict.fromkeys(METRICS, float(value)) for number, value in enumerate(values)}
        means = dict.fromkeys(METRICS, float(values.mean()))
        found.append(Result(name, "final", {"all": means, "static": means}, {"all": frames}))
    return [*found, Result("old", "final", {"all": dict.fromkeys(METRICS, 0.4)})]


def test_tables_have_intervals_where_frames_are_known(capsys: Shown) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(results(), with_intervals=True))))
    known = next(line for line in lines if line["place"] == "worse_1" and line["region"] == "all")
    assert float(known["abs_rel_low"]) < float(known["abs_rel"]) < float(known["abs_rel_high"])
    assert known["frames"] == "40"
    assert [line["abs_rel_low"] for line in lines if line["place"] == "old" or line["region"] == "static"] == [""] * 4
    table = intervals_table(results())
    assert table is not None
    Console(width=150).print(table)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(words[-1] for words in shown if words and words[-1] in ("yes", "no")) == ["no", "yes"]


def test_latex_has_the_best_bold_and_what_is_not_worse_underlined() -> None:
    text = to_latex(results())
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(line.count("&") == 9 for line in rows)
    # abs_rel to rmse_log are better when lower; of equal figures a1 to a3 the highest is best.
    cells = {line.split(" & ")[1]: line.removesuffix(r" \\").split(" & ")[3:] for line in rows[1:5]}
    bold = {name: [cell.startswith(r"\textbf") for cell in found] for name, found in cells.items()}
    assert [sum(column) for column in zip(*bold.values(), strict=True)] == [1] * 7
    assert bold["old"] == [False] * 4 + [True] * 3
    underlined = {name: [cell.startswith(r"\underline") for cell in found[:4]] for name, found in cells.items()}
    assert sum(any(found) for found in underlined.values()) == 1
    assert not any(underlined[r"worse\_1"])


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("disparity", [], "are they disparity? Then say --kind disparity"),
        ("npy", ["--kind", "disparity"], "are they depth? Then say --kind depth"),
        ("millimetres", ["--scale", "none"], "--unit says how many metres"),
        ("array", [], "expected [6, height, width]"),
        ("square", [], "100x10"),
    ],
)
def test_numbers_that_cannot_be_meant_are_said(
    clip: Path, tmp_path: Path, capsys: Shown, kind: str, options: list[str], line: str
) -> None:
    place = tmp_path / kind
    if kind == "array":
        place = tmp_path / "array.npy"
        np.save(place, np.ones((7, 4, 4)))
    elif kind == "square":
        place.mkdir()
        for frame in FRAMES:
            np.save(place / f"{frame}.npy", np.ones((100, 10)))
    else:
        write(clip, place, kind)
    status = main([str(place), "--config", str(clip), *options])
    assert line in capsys.readouterr().err
    assert status == (1 if kind == "array" else 0)


def test_files_that_are_no_depth_are_named(clip: Path, tmp_path: Path, capsys: Shown) -> None:
    def said() -> str:
        assert main([str(tmp_path), "--config", str(clip)]) == 1
        return capsys.readouterr().err

    for frame in FRAMES[:5]:
        np.save(tmp_path / f"{frame}.npy", np.ones(SIZE))
    assert "1 of 6 evaluated frames; looked for 005.npy" in said()
    for frame in FRAMES[5:]:
        np.save(tmp_path / f"{frame}.npy", np.zeros(SIZE))
    assert "005.npy: 6144 of 6144 pixels are not positive" in said()
    (tmp_path / "002.npy").unlink()
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(tmp_path / "002.png")
    assert "002.png has pixels of kind 'L'; expected 16-bit grey" in said()
    (tmp_path / "002.png").write_bytes(b"\x89PNG nothing")
    assert "002.png cannot be read" in said()
    np.save(tmp_path / "002.npy", np.ones((*SIZE, 3)))
    assert "002.npy has the shape [64, 96, 3]" in said()
    assert main([str(tmp_path), "--config", str(clip), "--scale", "poses"]) == 1
    assert "no pose net" in capsys.readouterr().err
