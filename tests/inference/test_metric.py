"""Predictions in metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mcd.inference.command import main
from mcd.inference.metric import MetricPredictor, NoRoadError
from mcd.inference.predictor import OWN_VEHICLE, DepthPredictor
from mcd.nets import build_depth_net
from mcd.run.checkpoint import WEIGHTS, save_weights

SIZE = (64, 128)
CAMERA = (0.7, 1.4, 0.5, 0.4)


class Road(nn.Module):
    """Depth of a road below a camera at this height; a wall where the picture is black."""

    def __init__(self, height: float):
        super().__init__()
        self.height = height

    def forward(self, images: Tensor) -> list[Tensor]:
        row = torch.arange(SIZE[0])[:, None] + torch.zeros(SIZE)
        depth = self.height * CAMERA[1] * SIZE[0] / (row + 0.5 - CAMERA[3] * SIZE[0]).clamp(min=0.3)
        black = images.amax((1, 2, 3)) == 0
        return [torch.where(black[:, None, None], 5.0, depth)[:, None]]


def picture(level: int, size: tuple[int, int] = (128, 256)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_a_known_camera_over_a_road_gives_metres() -> None:
    net = DepthPredictor(Road(0.05), SIZE, camera=CAMERA)
    (plain,) = net.predict([picture(9)])
    (found,) = MetricPredictor(net, CAMERA, None, 1.65).predict([picture(9)])
    # Rows between the net's are interpolated.
    torch.testing.assert_close(found, plain * 33, rtol=0.01, atol=0)


class Bonnet(Road):
    """The same with something near in its lower third."""

    def forward(self, images: Tensor) -> list[Tensor]:
        (depth,) = super().forward(images)
        bottom = torch.arange(SIZE[0])[:, None] >= SIZE[0] * 2 // 3
        return [torch.where(bottom, 0.5 * depth, depth)]


def test_the_own_vehicle_is_no_road() -> None:
    net = DepthPredictor(Bonnet(0.05), SIZE, camera=CAMERA)
    (plain,) = net.predict([picture(9)])
    own = np.zeros((90, 180), dtype=bool)
    own[60:] = True
    (left_out,) = MetricPredictor(net, CAMERA, None, 1.65, own).predict([picture(9)])
    torch.testing.assert_close(left_out, plain * 33, rtol=0.01, atol=0)
    (taken,) = MetricPredictor(net, CAMERA, None, 1.65).predict([picture(9)])
    assert (taken / left_out).mean() > 1.2


def test_a_run_leaves_its_own_vehicle_for_those_who_predict_with_it(tmp_path: Path) -> None:
    save_weights(tmp_path / "final" / WEIGHTS, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    assert DepthPredictor.load(tmp_path).own is None
    own = np.zeros((4, 6), dtype=bool)
    own[3] = True
    Image.fromarray(own).save(tmp_path / OWN_VEHICLE)
    assert np.array_equal(DepthPredictor.load(tmp_path).own, own)


def test_pictures_without_a_road_have_the_scale_of_those_around() -> None:
    metric = MetricPredictor(DepthPredictor(Road(0.05), SIZE), CAMERA, None, 1.65)
    with pytest.raises(NoRoadError):
        metric.predict([picture(0)])
    before, _, after = metric.predict([picture(0), picture(9), picture(0)])
    assert float(before[0, 0]) == float(after[0, 0]) == pytest.approx(5 * 33, rel=0.01)
    assert float(metric.predict([picture(0)])[0][0, 0]) == pytest.approx(5 * 33, rel=0.01)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "net.safetensors", tmp_path / "out"
    Image.fromarray(picture(9)).save(tmp_path / "a.png")
    save_weights(weights, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    call = [str(weights), str(tmp_path / "a.png"), "-o", str(out), "--device", "cpu", "--camera-height", "1.65"]
    assert main(call) == 1
    assert "--fov" in capsys.readouterr().err
    assert main([*call, "--fov", "70", "--scale", "2"]) == 1
    assert "give one of them" in capsys.readouterr().err
    assert main([*call, "--fov", "180"]) == 1
    assert "less than 180" in capsys.readouterr().err


def test_the_command_writes_metres_or_says_that_no_road_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "net.safetensors"
    save_weights(weights, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE, "camera": CAMERA})
    net = DepthPredictor.load(weights)
    assert net.camera == CAMERA
    net.net = Road(0.05)
    monkeypatch.setattr(DepthPredictor, "load", lambda *_, **__: net)
    for name, level in (("road", 9), ("dark", 0)):
        Image.fromarray(picture(level)).save(tmp_path / f"{name}.png")
    call = [str(weights), "-o", str(tmp_path), "--format", "npy", "--camera-height", "1.65"]
    assert main([*call, str(tmp_path / "road.png")]) == 0
    depth = np.load(tmp_path / "road_depth.npy")
    # In the last row the road is where the camera's height and the slope of the ray say.
    slope = (127.5 - CAMERA[3] * 128) / (CAMERA[1] * 128)
    assert depth[-1, 0] == pytest.approx(1.65 / slope, rel=0.02)
    assert main([*call, str(tmp_path / "dark.png")]) == 1
    assert "no picture shows a road" in capsys.readouterr().err
