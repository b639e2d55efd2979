"""The report: one file, whatever the run has got."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clip_cases import sequence_run
from PIL import Image

from mcd.config import parse_config
from mcd.evaluation.command import main as evaluate
from mcd.files import frame_path, write_json
from mcd.masks.packed import save_masks
from mcd.nets import build_depth_net, build_motion_net, build_pose_net
from mcd.report.charts import COLOURS, line_chart
from mcd.report.gallery import greatest, spread
from mcd.report.page import main, write_report
from mcd.report.pictures import FRAMES
from mcd.run.checkpoint import save_weights
from mcd.streets.synthetic import generate

SIZE = (64, 96)
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Tags of a page; every one that opens must close."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._parents: dict[str, set[str]] = {}
        self._open: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._parents.setdefault(tag, set()).add(self._open[-1] if self._open else "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.scripts += [data] if self._open[-1] == "script" else []
        else:
            self.text += data

    def parents(self, tag: str) -> set[str]:
        return self._parents[tag]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pictures(page: Page) -> list[dict[str, str | None]]:
    """Those of galleries, not the still of the 3-D view."""
    return [image for image in page.all("img") if image.get("class") != "flat"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets") / "data"
    generate(root, train=1, val=4, size=SIZE, seed=0, workers=1)
    return root


def make_run(folder: Path, data: dict[str, Any], stages: tuple[str, ...], **config: Any) -> Path:
    document = parse_config({"device": "cpu", "data": {"size": SIZE, "workers": 0} | data} | config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(document.model_dump(mode="json")))
    for seed, stage in enumerate(stages):
        torch.manual_seed(seed)
        path = folder / stage / "weights.safetensors"
        save_weights(path, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    return folder


def write_log(folder: Path, stage: str, terms: tuple[str, ...]) -> None:
    path = folder / "log" / f"{stage}.csv"
    path.parent.mkdir(exist_ok=True)
    phases = "data,forward,loss,loss_backward,backward,optimizer"
    lines = [
        f"step,{','.join(terms)},lr,images_per_s,{phases},validation",
        *(f"{step},{','.join(str(1 / step) for _ in terms)},0.001,50,1,20,30,30,40,2," for step in (10, 20, 30)),
        f"30{',' * (len(terms) + 9)}0.5",  # the validation has a row of its own
    ]
    path.write_text("\n".join(lines) + "\n")


def test_a_full_run_is_shown_in_one_file(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ("scene", "final", "control"))
    frame = next((streets / "leftImg8bit").rglob("*_leftImg8bit.png")).name.removesuffix("_leftImg8bit.png")
    label = run / "pseudo" / "val" / frame.split("_")[0] / f"{frame}.npy"
    label.parent.mkdir(parents=True)
    np.save(label, np.full(SIZE, 0.5, np.float32))
    for stage in ("scene", "final"):
        write_log(run, stage, ("total", "photometric", "smoothness"))
        write_json(run / stage / "done.json", {"seconds": 12.0})
    write_json(run / "env.json", {"processor": "a processor", "commit": "0123456789abcdef"})
    assert evaluate([str(run)]) == 0

    page = Page(write_report(run))
    assert not page.all("link")
    # Nothing is fetched, and nothing can be; parts of a drawing may refer to one another.
    (policy,) = [meta["content"] for meta in page.all("meta") if "content" in meta and meta.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert not re.search(r"url\((?!#)", page.source)
    assert all(str(attributes.get("src", "data:")).startswith("data:") for _, attributes in page.tags)
    assert all(str(attributes.get("xlink:href", "#")).startswith("#") for _, attributes in page.tags)
    for word in ("scene", "pseudo", "final", "control", "dynamic", "a processor", "0123456789", "On moving objects"):
        assert word in page.text, word
    images = pictures(page)
    # Four frames (all that are held out) of image, truth, and depth and error of three stages.
    assert len(images) == 4 * 8
    sizes = set()
    for image in images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/jpeg;base64"
        sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == {(SIZE[1], SIZE[0])}
    titles = [str(svg["aria-label"]).partition(":")[0] for svg in page.all("svg")]
    assert titles == ["total", "photometric", "smoothness"] * 2
    assert "validation" in page.text


def test_steps_that_are_launched_as_one_piece_have_a_time_and_no_curve(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    path = run / "log" / "scene.csv"
    path.parent.mkdir()
    names = "step,total,images_per_s,data,forward,loss,loss_backward,backward,optimizer,graph"
    path.write_text(f"{names}\n10,2,50,1,0,0,0,0,0,18\n20,1,50,1,0,0,0,0,0,18\n")
    page = Page(write_report(run))
    assert [str(svg["aria-label"]).partition(":")[0] for svg in page.all("svg")] == ["total"]
    assert "<td>19</td><td>50</td>" in page.source
    assert '<th scope="col">graph</th>' in page.source


def test_a_run_that_has_just_begun_has_a_report(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    page = Page(write_report(run))
    assert "Nothing was evaluated" in page.text
    assert "Config" in page.text
    assert not page.all("img")


def test_a_run_without_its_data_has_a_report_that_says_so(streets: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(streets, root)
    run = make_run(tmp_path / "demo", {"root": str(root)}, ("scene",))
    assert evaluate([str(run)]) == 0
    shutil.rmtree(root / "leftImg8bit")
    page = Page(write_report(run))
    assert "No pictures" in page.text
    assert "leftImg8bit" in page.text
    assert "abs_rel" in page.text


@pytest.mark.parametrize("measured", [True, False])
def test_a_sequence_shows_what_it_has(tmp_path: Path, measured: bool) -> None:
    root = tmp_path / "clip"
    generator = np.random.default_rng(0)
    for number in range(6):
        for name in ("images", "depth"):
            (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
        depth = generator.uniform(5, 60, SIZE) * (generator.random(SIZE) < 0.1)
        Image.fromarray((depth * 256).astype(np.uint16)).save(root / "depth" / f"{number}.png")
    data = {"kind": "sequence", "root": str(root), "images": "images", "intrinsics": [80.0, 80.0, 48.0, 32.0]}
    if measured:
        data |= {"depth": "depth", "train_frames": [0, 2], "eval_frames": [3, 5]}
    run = make_run(tmp_path / "demo", data, ("scene",), evaluation={"protocol": "kitti"})
    if measured:
        assert evaluate([str(run)]) == 0
    page = Page(write_report(run))
    if measured:
        # Three frames of image, truth, depth, error.
        assert len(pictures(page)) == 3 * 4
        assert "row median" in page.text
        assert "static" not in page.text
    else:
        # The four frames that have neighbours, image and depth.
        assert len(pictures(page)) == 4 * 2
        assert "ground truth</figcaption>" not in page.source


def test_the_frames_shown_are_those_with_the_most_moving_pixels(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcd.report.pictures.FRAMES", 1)
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ("scene",), evaluation={"min_mask_area": 0.0})
    shares = {}
    for folder in sorted((streets / "val_mask_class").glob("*/*")):
        masks = [np.asarray(Image.open(path)) > 0 for path in folder.glob("*.png")]
        # Rows and columns of the window that is evaluated; the last quarter of the rows is cut away first.
        moving = np.any([*masks, np.zeros_like(masks[0])], axis=0)[: SIZE[0]] if masks else np.zeros(SIZE, bool)
        gt = np.load(streets / "val_gt_depths" / f"{folder.name}.npy")[: SIZE[0]]
        window = (slice(SIZE[0] // 3, None), slice(9, 87))
        shares[folder.name] = int((moving & (gt > 1e-3) & (gt < 80))[window].sum())
    most = max(shares, key=lambda name: shares[name])
    assert re.findall(r"<h3>\w+/(\w+)</h3>", write_report(run).read_text()) == [most]


def test_what_a_run_found_by_itself_is_shown(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    assert "found by itself" not in Page(write_report(run)).text
    frames = ["/".join(line.split()) for line in (streets / "splits" / "val.txt").read_text().splitlines()]
    for frame in frames:
        path = frame_path(run / "ground" / "masks", "val", frame, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SIZE, 200, np.uint8)).save(path)
        save_masks(frame_path(run / "slots" / "masks", "val", frame), np.ones((2, 5, *SIZE), bool))
    # A stage that is not finished is not shown.
    for stage, tiles in (("ground", 2), ("slots", 4)):
        write_json(run / stage / "done.json", {})
        page = Page(write_report(run))
        assert "found by itself" in page.text
        assert len(page.all("img")) == tiles * min(len(frames), FRAMES)


def test_what_moves_by_itself_is_shown_where_a_net_says_it(streets: Path, tmp_path: Path) -> None:
    without = make_run(tmp_path / "without", {"root": str(streets)}, ("scene",))
    assert "What moves by itself" not in Page(write_report(without)).text
    assert main([str(without), "--motion", str(tmp_path / "panel.png")]) == 1
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    nets = {"depth": build_depth_net("light"), "pose": build_pose_net("light"), "motion": build_motion_net("light")}
    save_weights(run / "scene" / "weights.safetensors", nets, dict.fromkeys(nets, "light"), {"size": SIZE})
    source = Page(write_report(run)).source
    section = source[source.index("What moves by itself") :]
    assert section.count("<img") == 4 * 4
    assert "motion to the next frame</figcaption>" in section
    assert main([str(run), "--motion", str(tmp_path / "panel.png")]) == 0
    with Image.open(tmp_path / "panel.png") as sheet:
        assert sheet.width > 4 * SIZE[1] and sheet.height > 4 * SIZE[0]


def test_what_stands_in_files_is_text_not_markup(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>demo", {"root": str(streets)}, ())
    write_json(run / "env.json", {"processor": "<script>alert(1)</script>"})
    page = Page(write_report(run))
    assert not page.all("script")
    assert "<b>demo" in page.text


def test_names_in_the_data_of_a_view_end_no_script(tmp_path: Path) -> None:
    run = sequence_run(tmp_path, ("scene",), names=range(5))
    for path in sorted((tmp_path / "clip").iterdir()):
        path.rename(path.with_name(f"<!--<script><b>{path.stem}.png"))
    page = Page(write_report(run))
    shared, data, code = page.scripts
    assert json.loads(data)["frames"][0]["name"] == "<!--<script><b>1"
    assert "<b>" not in data and "<!--" not in data
    assert json.loads(shared)["layers"] == ["image", "scene depth"]
    assert "webgl2" in code


@pytest.mark.parametrize("stages", [("scene",), ("scene", "final")])
def test_whoever_cannot_see_or_point_can_use_the_page(tmp_path: Path, stages: tuple[str, ...]) -> None:
    run = sequence_run(tmp_path, stages, frames=6)
    for stage in stages:
        write_log(run, stage, ("total", "photometric"))
    page = Page(write_report(run))
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(str(image["alt"])) > 8 for image in page.all("img"))
    assert len({image["alt"] for image in page.all("img")}) == len(page.all("img")), "each says what it is"
    assert all("from" in str(svg["aria-label"]) and svg["role"] == "img" for svg in page.all("svg"))
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids) & {"three", "keys", "picture1"}) == 3
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby", "data-picture"):
            assert attributes.get(name) is None or ids.count(str(attributes[name])) == 1
    cloud, picture = page.all("canvas")
    assert cloud["tabindex"] == "0" and cloud["aria-label"] and cloud["aria-describedby"] == "keys"
    assert picture["role"] == "img" and picture["aria-label"]
    # A slider has a name; a choice stands in a label whose words are its name.
    for control in page.all("input"):
        assert control.get("aria-label") or control["type"] in ("radio", "checkbox")
    assert page.parents("input") == {"label"}
    assert all(button["type"] == "button" for button in page.all("button"))
    assert len(page.all("legend")) == len(page.all("fieldset"))
    heights = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert heights[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(heights))
    script = page.scripts[-1]
    for key in ("ArrowLeft", "ArrowUp", '"+"', '"-"', "Home", "shiftKey", "prefers-reduced-motion"):
        assert key in script, key


def test_what_to_look_at_first_is_above_all_else(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    assert "What to look at first" not in Page(write_report(run)).text
    said = ["the validation loss rose from step 10", "depth is the same <everywhere>"]
    write_json(run / "metrics.json", {"warnings": said})
    page = Page(write_report(run))
    assert [html.unescape(line) for line in re.findall("<li>(.*?)</li>", page.source)] == said
    assert page.text.index("look at first") < page.text.index("Depth against ground truth")


def test_contact_is_a_table_of_medians_and_quartiles(streets: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {"root": str(streets)}, ())
    assert "stand on the road" not in Page(write_report(run)).text
    figures = {name: 1.0 + share / 100 for share, name in enumerate(("contact", "contact_25", "contact_75"))}
    figures |= {"count": 17.0, "upright": 1.5, "upright_25": 1.25, "upright_75": 1.75, "upright_rows": 2.25}
    write_json(run / "metrics.json", {"contact": {"scene": {"masks": {"moving": figures}}}})
    source = write_report(run).read_text()
    (row,) = re.findall(r"<tr><th scope=\"row\">scene</th>.*?</tr>", source, re.DOTALL)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
    assert cells == ["scene", "masks, moving", "17", "1.00 (1.01–1.02)", "1.50 (1.25–1.75)", "2.25"]


def test_the_command_names_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def points_of(drawing: str, colour: str = COLOURS[0]) -> list[tuple[float, float]]:
    """The corners of the line of a colour, in the units of the drawing's viewBox."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {colour}', drawing)
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    assert line_chart("empty", {"line": [], "broken": [(1.0, float("nan"))]}) == ""
    drawing = line_chart("loss", {"training": [(0.0, 1.0), (1.0, float("inf")), (2.0, 3.0)]})
    assert "nan" not in drawing
    assert "inf" not in drawing
    (x0, y0), (x2, y2) = points_of(drawing)
    assert x0 < x2
    assert y0 > y2, "larger is higher up"


def test_a_constant_line_stays_inside_its_chart() -> None:
    for value in (0.0, -2.0, 5.0):
        drawing = line_chart("flat", {"line": [(0.0, value), (10.0, value)]})
        (width, height) = (float(n) for n in re.findall(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', drawing)[0])
        for x, y in points_of(drawing):
            assert 0 < x < width
            assert 0 < y < height


def test_a_chart_is_the_same_every_time_and_its_words_stay_words() -> None:
    lines = {"training": [(0.0, 1.0), (10.0, 0.5)], "validation": [(10.0, 0.6)]}
    drawing = line_chart("<b> $x", lines)
    assert drawing == line_chart("<b> $x", lines)
    assert "<b>" not in drawing
    for word in ("&lt;b&gt; $x", "training", "validation", "steps"):
        assert f">{word}</text>" in drawing, word


@pytest.mark.parametrize("length", range(9))
def test_frames_are_chosen_from_every_part(length: int) -> None:
    weights = [3, 1, 4, 1, 5, 9, 2, 6][:length]
    chosen = greatest(range(length), 3, weights.__getitem__)
    assert len(chosen) == min(length, 3)
    assert chosen == sorted(set(chosen))
    for part, index in enumerate(chosen):
        bounds = range(part * length // len(chosen), (part + 1) * length // len(chosen))
        assert index in bounds
        assert weights[index] == max(weights[i] for i in bounds)
    assert len(spread(range(length), 3)) == min(length, 3)
