"""`mcd predict --ply` and `--rerun`: what trimesh and rerun read of them, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor, nn

from mcd.cli import main as mcd_command
from mcd.data.video import VideoWriter
from mcd.files import frame_path, write_json
from mcd.inference.command import main
from mcd.inference.motion import CameraMotion
from mcd.inference.points import MARK, PlyWriter, PointSettings, edges_of, points_of
from mcd.inference.predictor import DepthPredictor
from mcd.masks.instances import FrameInstances
from mcd.nets import build_depth_net
from mcd.run.checkpoint import save_weights

SIZE = (64, 96)
K = (50.0, 60.0, 47.0, 33.0)


class Steps(nn.Module):
    """A wall at 4, and left of the middle at 2."""

    def forward(self, images: Tensor) -> list[Tensor]:
        depth = torch.full((len(images), 1, *images.shape[-2:]), 4.0)
        depth[..., : images.shape[-1] // 2] = 2.0
        return [depth]


class Forward(nn.Module):
    """A pose net of a camera that goes one unit ahead from frame to frame: what is seen comes nearer."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(first), 3), torch.tensor([[0.0, 0.0, -1.0]]).repeat(len(first), 1)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(DepthPredictor, "load", lambda *_, **__: DepthPredictor(Steps(), SIZE))
    monkeypatch.setattr(CameraMotion, "load", lambda *_, **__: CameraMotion(Forward()))
    monkeypatch.chdir(tmp_path)
    save_weights("net.safetensors", {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    return Path("net.safetensors")


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def cloud(path: str) -> tuple[np.ndarray, np.ndarray]:
    loaded: Any = trimesh.load(path)
    return np.asarray(loaded.vertices), np.asarray(loaded.colors)[:, :3]


def expected_points() -> np.ndarray:
    """By the pinhole's formula, in the order of the pixels."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    depth = np.where(x < SIZE[1] // 2, 2.0, 4.0)
    return np.stack([(x - K[2]) / K[0] * depth, (y - K[3]) / K[1] * depth, depth], -1).reshape(-1, 3)


CAMERA = ("--intrinsics", *(str(number) for number in K))


def test_trimesh_reads_the_points_of_a_picture(net: Path) -> None:
    Image.fromarray(picture()).save("a.png")
    assert main([str(net), "a.png", "-o", "out", "--ply", *CAMERA]) == 0
    points, colours = cloud("out/a_points.ply")
    np.testing.assert_allclose(points, expected_points(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(colours, picture().reshape(-1, 3))
    assert b"comment unit arbitrary\n" in Path("out/a_points.ply").read_bytes()[:320]
    assert Path("out/a_depth.png").is_file()


def test_edges_far_points_and_rows_can_be_left_out_and_metres_are_metres(net: Path) -> None:
    Image.fromarray(picture()).save("a.png")
    options = ["--ply", *CAMERA, "--scale", "1.5", "--force"]
    assert main([str(net), "a.png", *options, "--drop-edges"]) == 0
    points, _ = cloud("depth/a_points.ply")
    whole = 1.5 * expected_points().reshape(*SIZE, 3)
    kept = np.ones(SIZE, bool)
    kept[:, SIZE[1] // 2 - 1 : SIZE[1] // 2 + 1] = False
    np.testing.assert_allclose(points, whole[kept], rtol=1e-5, atol=1e-5)
    assert b"comment unit metres\n" in Path("depth/a_points.ply").read_bytes()[:320]
    assert main([str(net), "a.png", *options, "--max-depth", "5"]) == 0
    np.testing.assert_allclose(cloud("depth/a_points.ply")[0], whole[whole[..., 2] < 5], rtol=1e-5, atol=1e-5)
    assert main([str(net), "a.png", *options, "--step", "5"]) == 0
    np.testing.assert_allclose(cloud("depth/a_points.ply")[0], whole[::5, ::5].reshape(-1, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("film", [True, False], ids=["video", "images"])
def test_a_clip_is_one_cloud_in_the_axes_of_its_first_camera(net: Path, film: bool) -> None:
    if film:
        with VideoWriter(Path("clip.mp4"), Fraction(10)) as video:
            for number in range(3):
                video.write(picture(number))
        assert main([str(net), "clip.mp4", "-o", "out", "--ply", *CAMERA, "--scale", "2", "--batch", "2"]) == 0
    else:
        for number in range(3):
            Image.fromarray(picture(number)).save(f"{number}.png")
        assert main([str(net), ".", "-o", "out", "--ply", "--clip", *CAMERA, "--scale", "2", "--batch", "2"]) == 0
        assert not list(Path("out").glob("[0-9]_points.ply"))
    points, colours = cloud("out/clip_points.ply")
    assert len(points) == 3 * SIZE[0] * SIZE[1]
    for number, part in enumerate(np.split(points, 3)):
        # The camera is `number` units ahead, and a unit is two metres.
        np.testing.assert_allclose(part, 2 * expected_points() + (0, 0, 2 * number), rtol=1e-5, atol=1e-5)
    if not film:
        np.testing.assert_array_equal(np.split(colours, 3)[2], picture(2).reshape(-1, 3))


@pytest.mark.parametrize("moving", ["drop", "mark"])
def test_what_the_run_found_to_move_is_left_out_or_marked(net: Path, moving: str) -> None:
    masks = np.zeros((2, 3, 32, 48), bool)
    masks[0, 1, 8:16, 4:20] = True  # dynamic, at half the picture's size
    masks[1, 1, 20:30, 30:40] = True
    ones = np.ones(2, bool)
    found = FrameInstances(np.arange(2), np.array([True, False]), np.ones(2, np.float32), ones, ones, masks)
    found.save(frame_path(Path("run/instances"), "val", "a"))
    write_json(Path("run/instances/done.json"), {})
    for name in ("a", "other"):
        Image.fromarray(picture()).save(f"{name}.png")
    assert main(["run", "a.png", "other.png", "-o", "out", "--ply", *CAMERA, "--moving", moving]) == 0
    inside = np.zeros(SIZE, bool)
    inside[16:32, 8:40] = True
    points, colours = cloud("out/a_points.ply")
    if moving == "drop":
        np.testing.assert_allclose(points, expected_points()[~inside.flatten()], rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(colours[inside.flatten()], np.broadcast_to(MARK, (inside.sum(), 3)))
        np.testing.assert_array_equal(colours[~inside.flatten()], picture()[~inside])
        data: Any = trimesh.load("out/a_points.ply").metadata["_ply_raw"]["vertex"]["data"]
        np.testing.assert_array_equal(np.asarray(data["moving"]).flatten(), inside.flatten())
    assert len(cloud("out/other_points.ply")[0]) == SIZE[0] * SIZE[1]


def test_edges_are_where_neighbours_differ() -> None:
    depth = torch.ones(4, 5)
    depth[2, 3] = 1.2
    edge = edges_of(depth, 0.1)
    assert edge.nonzero().tolist() == [[1, 3], [2, 2], [2, 3], [2, 4], [3, 3]]
    assert not edges_of(depth, 0.25).any()


def test_a_field_of_view_is_a_camera() -> None:
    settings = PointSettings(ply=True, rerun=False, camera=None, fov=90.0)
    found = points_of(settings, np.zeros((2, 4, 3), np.uint8), torch.full((2, 4), 3.0))
    np.testing.assert_allclose(found["x"], np.tile([-1.5, -0.5, 0.5, 1.5], 2) / 2 * 3, rtol=1e-6)


def test_a_cloud_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PlyWriter(tmp_path / "a.ply", "metres", False):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_rerun_reads_its_recording(net: Path) -> None:
    chunks = pytest.importorskip("rerun.chunk")
    for number in range(2):
        Image.fromarray(picture(number)).save(f"{number}.png")
    assert main([str(net), ".", "-o", "out", "--rerun", "--clip", *CAMERA, "--step", "8"]) == 0
    assert [path.name for path in Path("out").iterdir() if path.suffix == ".rrd"] == ["clip.rrd"]
    found = {str(chunk.entity_path): chunk for chunk in chunks.RrdReader("out/clip.rrd").stream().to_chunks()}
    assert {"/world/camera", "/world/camera/image", "/world/camera/image/depth"} <= set(found)
    (points,) = found["/world/points/000001"].to_record_batch().to_pydict()["Points3D:positions"]
    expected = expected_points().reshape(*SIZE, 3)[::8, ::8].reshape(-1, 3) + np.array((0, 0, 1))
    np.testing.assert_allclose(points, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.png", "--ply"], "points need a camera"),
        (["a.png", "--clip"], "--clip and --moving are of points: give --ply or --rerun"),
        (["a.png", "--ply", "--fov", "70", "--moving", "drop"], "does not know what moves"),
        (["a.png", "--ply", "--fov", "70", "-o", "old"], "old/a_points.ply exists already; --force overwrites"),
        (["a.png", "--ply", "--fov", "70", "--clip", "-o", "old"], "old/clip_points.ply exists already"),
    ],
)
def test_points_that_cannot_be_are_one_line(
    net: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture()).save("a.png")
    Path("old").mkdir()
    for name in ("a", "clip"):
        Path(f"old/{name}_points.ply").write_text("kept")
    if "--clip" in options and "old" in options:
        Path("old/a_points.ply").unlink()
    assert mcd_command(["predict", str(net), *options]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("depth").exists()


def test_frames_of_several_sizes_are_no_clip(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture()).save("a.png")
    Image.fromarray(picture()[:50]).save("b.png")
    assert main([str(net), "a.png", "b.png", "-o", "out", "--ply", "--clip", *CAMERA, "--batch", "1"]) == 1
    # Nets of one size see both alike; it is the pictures that have to be of one camera.
    assert "one size, not both 64x96 and 50x96" in capsys.readouterr().err
    assert not list(Path("out").glob("*.ply"))
