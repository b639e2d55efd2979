"""The page in a browser: headless Chromium with WebGL in software, and without WebGL."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clip_cases import make_clip, sequence_run

from mcd.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NONE = ("--disable-gpu", "--disable-3d-apis")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: {', '.join(NAMES)}"),
]

# Time is virtual and frames are not, so frames come by the clock here. Whoever asks in one frame is called in one task,
# in which a canvas that was drawn can still be read.
CLOCK = """
let asked = [];
window.requestAnimationFrame = call => asked.push(call) > 1 || setTimeout(() => {
  const calls = asked;
  asked = [];
  calls.forEach(call => call(performance.now()));
}, 16);
"""
PROBE = """
const found = {}, pane = document.querySelector(".pane"), cloud = pane.querySelector("canvas");
const picture = document.querySelector(".picture canvas");
function seen(cloud = pane.querySelector("canvas")) {
  const gl = cloud.getContext("webgl2"), pixels = new Uint8Array(4 * cloud.width * cloud.height);
  gl.readPixels(0, 0, cloud.width, cloud.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const count = {red: 0, blue: 0, orange: 0, path: 0, here: 0, empty: 0, left: 0, right: 0, sum: 0};
  count.all = cloud.width * cloud.height;
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b] = pixels.subarray(i, i + 3), x = i / 4 % cloud.width;
    const red = r > 150 && g < 60 && b < 60, blue = b > 150 && g < 60 && r < 60;
    count.red += red; count.blue += blue;
    count.left += red && x < cloud.width / 2; count.right += blue && x >= cloud.width / 2;
    count.orange += r > 190 && g > 80 && g < 140 && b < 120;
    count.path += Math.abs(r - 87) + Math.abs(g - 181) + Math.abs(b - 232) < 12;
    count.here += Math.abs(r - 245) + Math.abs(g - 245) + Math.abs(b - 245) < 12;
    count.empty += Math.abs(r - 43) + Math.abs(g - 47) + Math.abs(b - 54) < 6;
    count.sum = (count.sum * 31 + r + 3 * g + 7 * b) % 1000003;
  }
  return count;
}
const control = (name, value = "") => document.querySelector(`[name=${name}]` + (value && `[value="${value}"]`));
function drawn() {
  return new Promise(done => requestAnimationFrame(() => done(pane.dataset.webgl === "yes" ? seen() : null)));
}
function slide(name, value) {
  control(name).value = value;
  control(name).dispatchEvent(new Event("input", {bubbles: true}));
  return drawn();
}
function click(part) {
  part.click();
  return drawn();
}
function press(key, more) {
  cloud.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
  return drawn();
}
const wait = time => new Promise(done => setTimeout(done, time));
addEventListener("load", async () => {
  await wait(500);
  try { await probe(); } catch (error) { found.error = String(error); }
  found.width = document.documentElement.scrollWidth;
  found.inside = innerWidth;
  if (parent === window) document.title = JSON.stringify(found);
  else parent.postMessage(found, "*");
});
"""
# No window of Chromium is narrower than 500 pixels.
NARROWER = """<!doctype html><title></title><body><iframe src="probed.html" width="400" height="900"></iframe><script>
addEventListener("message", event => { document.title = JSON.stringify(event.data); });
</script></body>"""

LOOK = """
async function probe() {
  found.focus = (cloud.focus(), document.activeElement === cloud);
  found.camera = await click(document.querySelector('[data-eye="1"]'));
  found.picture = [...picture.getContext("2d").getImageData(5, 30, 1, 1).data];
  for (const key of ["ArrowLeft", "ArrowUp", "+", "-", "Home"]) found[key] = await press(key);
  found.shifted = await press("ArrowDown", {shiftKey: true});
  found.behind = await press("Home");
  found.points = await click(control("filled"));
  found.unmarked = await click(control("marks"));
  await click(control("marks"));
  found.pathless = await click(control("path"));
  found.coloured = await click(control("colour", "depth"));
  found.changed = await click(control("colour", "change"));
  await click(control("colour", "image"));
  found.whole = await click(control("whole"));
  await click(control("whole"));
  found.drawn = Number(pane.dataset.drawn);
  found.later = await slide("frame", 2);
  await click(control("stage", "0"));
  await wait(1200);
  found.scene = await slide("frame", 2);
  await slide("layer", 1.5);
  found.said = picture.getAttribute("aria-label");
  found.text = control("layer").getAttribute("aria-valuetext");
  const play = control("play"), before = control("frame").value;
  await click(play);
  found.pressed = play.getAttribute("aria-pressed");
  await wait(300);
  found.played = control("frame").value !== before;
  await click(play);
  await wait(50);
  const stopped = control("frame").value;
  await wait(500);
  found.stopped = control("frame").value === stopped;
}
"""

FLAT = """
async function probe() {
  found.webgl = pane.dataset.webgl;
  found.still = pane.querySelector("img").offsetHeight;
  found.line = pane.querySelector("figcaption").innerText;
  found.points = document.querySelector(".points").offsetHeight;
  await slide("frame", 1);
  await slide("layer", 1);
  // The picture is drawn when its image is decoded, in real time: virtual time waits for a script that computes.
  found.waited = 0;
  for (let i = 0; i < 200 && picture.getAttribute("aria-label") === "Picture of the frame"; i++) {
    for (let j = 0; j < 1e7; j++) found.waited += Math.sqrt(j);
    await drawn();
  }
  found.said = picture.getAttribute("aria-label");
  found.pixel = [...picture.getContext("2d").getImageData(5, 30, 1, 1).data];
}
"""


TOGETHER = """
async function probe() {
  const clouds = [...document.querySelectorAll(".cloud canvas")];
  const sums = () => new Promise(done => requestAnimationFrame(() => done(clouds.map(canvas => seen(canvas).sum))));
  await click(document.querySelector('[data-eye="0"]'));
  document.querySelector('[data-eye="0"]').click();
  found.before = await sums();
  control("frame").value = 2;
  control("frame").dispatchEvent(new Event("input", {bubbles: true}));
  press("ArrowLeft");
  found.after = await sums();
  found.names = [...document.querySelectorAll(".picture canvas")].map(canvas => canvas.getAttribute("aria-label"));
}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mcd.report.view.collect_clip", lambda *_: make_clip())
        return write_report(sequence_run(folder, ()))


def browse(page: Path, probe: str, options: tuple[str, ...], narrow: bool = False) -> dict[str, Any]:
    """What a script finds on a page; nothing may be said on the console."""
    probed = page.with_name("probed.html")
    source = page.read_text().replace("<body>", f"<body><script>{CLOCK}</script>")
    probed.write_text(source.replace("</body>", f"<script>{PROBE}{probe}</script></body>"))
    frame = page.with_name("narrow.html")
    frame.write_text(NARROWER)
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--hide-scrollbars", *options, "--window-size=1400,900"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    command += [(frame if narrow else probed).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (title,) = re.findall("<title>(.*?)</title>", done.stdout, re.DOTALL)
    found: dict[str, Any] = json.loads(html.unescape(title))
    assert "error" not in found, found["error"]
    return found


def test_the_canvas_shows_the_clip_and_obeys(page: Path) -> None:
    found = browse(page, LOOK, SOFTWARE)
    assert found["focus"]
    camera = found["camera"]
    # From the camera itself: the red half on the left, the blue one on the right, and what moves on it in orange.
    assert camera["red"] > 0.1 * camera["all"] and camera["left"] > 0.9 * camera["red"]
    assert camera["blue"] > 0.1 * camera["all"] and camera["right"] > 0.9 * camera["blue"]
    assert camera["orange"] > 500
    assert found["picture"][0] > 150 > 60 > found["picture"][2], "the flat picture is red on the left"
    pictures = [found[key]["sum"] for key in ("camera", "ArrowLeft", "ArrowUp", "+", "-")]
    assert len(set(pictures[:4])) == 4, "every key turns or comes nearer"
    assert found["-"]["sum"] == found["ArrowUp"]["sum"], "minus undoes plus"
    assert found["shifted"]["sum"] != found["Home"]["sum"] == found["behind"]["sum"]
    behind = found["behind"]
    assert behind["path"] > 20 and behind["here"] > 20
    assert found["points"]["sum"] != behind["sum"] and found["points"]["red"] > 0.5 * behind["red"]
    assert found["unmarked"]["orange"] < 20 < found["points"]["orange"]
    assert found["pathless"]["path"] == 0 == found["pathless"]["here"]
    for name in ("coloured", "changed"):
        assert found[name]["red"] < 0.1 * found["pathless"]["red"], name
    assert found["whole"]["sum"] != found["pathless"]["sum"]
    assert found["drawn"] == 30 * 45
    assert found["later"]["sum"] != found["points"]["sum"]
    # From behind the camera a wall that is farther away, and as much larger, covers more.
    assert found["scene"]["empty"] > found["later"]["empty"]
    assert found["said"] == "frame2: 50 % scene depth, 50 % final depth"
    assert found["text"] == "final depth"
    assert found["pressed"] == "true" and found["played"] and found["stopped"]
    assert found["width"] <= found["inside"] == 1400


def test_a_browser_without_webgl_shows_flat_pictures_and_says_so(page: Path) -> None:
    found = browse(page, FLAT, NONE)
    assert found["webgl"] == "no"
    assert found["still"] > 100
    assert "no WebGL" in found["line"]
    assert found["points"] == 0, "controls of the points would do nothing"
    assert found["said"] == "frame1: scene depth"
    assert found["pixel"][3] == 255


NARROW = """
async function probe() {
  const free = [...document.querySelectorAll("body *")].filter(part => !part.closest(".scroll, pre, svg"));
  const beyond = free.filter(part => part.getBoundingClientRect().right > innerWidth + 1);
  found.beyond = beyond.map(part => part.outerHTML.slice(0, 80));
}
"""


def test_a_narrow_screen_shows_all_without_scrolling_sideways(page: Path) -> None:
    found = browse(page, NARROW, SOFTWARE, narrow=True)
    assert found["width"] <= found["inside"] == 400
    assert not found["beyond"]


def test_two_runs_turn_together(page: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mcd.report.view.collect_clip", lambda *_: make_clip())
        run = page.parent
        both = write_report(run, shutil.copytree(run, run.with_name("other")), run / "both.html")
    found = browse(both, TOGETHER, SOFTWARE)
    assert found["before"][0] == found["before"][1] != found["after"][0] == found["after"][1]
    assert found["names"] == ["frame2: image", "frame2: image"]
