"""Pre-training on rendered roads: its loss, and a run that is stopped and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mcd.inference.predictor import DepthPredictor
from mcd.nets import build_depth_net
from mcd.run.checkpoint import load_weights
from mcd.streets.roads import store
from mcd.streets.roads.views import make_views, textures
from mcd.training.pretrain import command, loop
from mcd.training.pretrain.data import Settings, Views, cut_depth, cut_image, sample_part
from mcd.training.pretrain.depth import depth_loss, depth_task, freeze
from mcd.training.pretrain.loop import PretrainError, run
from mcd.training.pretrain.pose import pose_loss

SMALL = Settings(net="light", steps=4, batch=2, shards=2, small=0.0)


@pytest.fixture
def views(tmp_path: Path) -> Path:
    folder = tmp_path / "views"
    folder.mkdir()
    for number in range(2):
        np.savez(folder / f"{number:04d}.npz", **store.make_shard(0, number, views=6, size=(96, 128)))
    return folder


def truth(seed: int = 0) -> torch.Tensor:
    depth = 1 + 20 * torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(seed))
    depth[:, :, :4] = 0
    return depth


def test_the_right_depth_costs_nothing() -> None:
    depth = truth()
    loss, _ = depth_loss(torch.where(depth > 0, depth, 95.0), depth, Settings())
    assert loss == 0


def test_another_scale_costs_scale_alone() -> None:
    depth = truth()
    _, parts = depth_loss(torch.where(depth > 0, 2 * depth, 95.0), depth, Settings())
    assert parts["shape"] < 1e-6 and parts["edges"] < 1e-6 and parts["sky"] == 0
    assert parts["scale"] == pytest.approx(np.log(2), rel=1e-5)


def test_near_sky_and_a_soft_outline_cost() -> None:
    depth = truth()
    _, parts = depth_loss(torch.where(depth > 0, depth, 10.0), depth, Settings())
    assert parts["sky"] > 0 and parts["shape"] == 0
    step = torch.full((1, 1, 16, 16), 5.0)
    step[..., 8:] = 20.0
    soft = torch.nn.functional.avg_pool2d(step.log(), 5, 1, 2, count_include_pad=False).exp()
    _, parts = depth_loss(soft, step, Settings())
    assert parts["edges"] > 0.05


def test_a_part_of_a_view_keeps_picture_and_depth_together() -> None:
    rng = np.random.default_rng(0)
    depth = np.tile(np.arange(1, 97, dtype=np.float32), (64, 1))
    image = np.repeat(depth[..., None], 3, -1).astype(np.uint8)
    spans = set()
    for _ in range(20):
        part = sample_part(rng, depth.shape, 0.75)
        picture, deep = cut_image(image, part), cut_depth(depth, part)
        assert picture.shape[:2] == deep.shape == (32, 64)
        spans.add(float(deep.max() - deep.min()))
        # One level is one pixel of the view.
        assert np.abs(picture[8:-8, 4:-4, 0] - deep[8:-8, 4:-4]).max() <= 2
    assert len(spans) > 3


def test_pairs_have_the_motion_that_takes_points_of_the_first_camera_to_the_second(
    views: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    noise = textures(rng)
    (clip,) = make_views(rng, noise, (96, 128), cameras=1, frames=3)
    shard = {
        "image": np.stack([view.image for view in clip]),
        "depth": np.stack([view.depth for view in clip]),
        "pose": np.stack([view.T_world_cam for view in clip]),
        "height": np.array([view.height for view in clip]),
        "clip": np.zeros(3, np.int32),
    }
    monkeypatch.setattr(Views, "shard", lambda self, number: shard)
    batch = Views(views, Settings(net="light", batch=8, shards=2)).pairs(0)
    moved = batch["T"][:, 2, 3]
    # Driving ahead brings points nearer: z falls, by at most twice a frame's way over the lowest camera. A frame paired
    # with itself has the rounding of an inverse.
    assert (moved < 1e-9).all()
    assert moved.min() < -0.05
    assert moved.min() > -2 * 3.3 / 0.8
    torch.testing.assert_close(batch["T"][:, :3, :3].det(), torch.ones(8))
    assert batch["first"].shape == batch["second"].shape
    still = moved.abs() < 1e-9
    assert torch.equal(batch["first"][still], batch["second"][still])


def test_the_right_motion_costs_nothing_and_a_wrong_one_does() -> None:
    truth = torch.eye(4).repeat(2, 1, 1)
    truth[:, 2, 3] = -0.8
    assert pose_loss(truth, truth)[0] < 1e-4
    wrong = truth.clone()
    wrong[:, 2, 3] = -0.6
    assert pose_loss(wrong, truth)[0] == pytest.approx(0.2, rel=1e-3)
    cos, sin = np.cos(0.01), np.sin(0.01)
    turned = truth.clone()
    turned[:, :3, :3] = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    assert pose_loss(turned, truth)[1]["turn"] == pytest.approx(0.01, rel=1e-2)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, views: Path) -> None:
    torch.manual_seed(0)
    task = depth_task(views, SMALL)
    fresh = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    whole = run(task, tmp_path / "whole", SMALL, save_every=2)
    original = loop.ahead

    def breaks_off(batch, start, stop):
        for step, found in enumerate(original(batch, start, stop), start):
            if step == 3:
                raise KeyboardInterrupt
            yield found

    def again():
        task = depth_task(views, SMALL)
        task.net.load_state_dict(fresh)
        return task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "ahead", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            run(again(), tmp_path / "stopped", SMALL, save_every=2)
    # What the net starts from does not matter any more.
    resumed = run(depth_task(views, SMALL), tmp_path / "stopped", SMALL, save_every=2)
    first, second = load_weights(whole), load_weights(resumed)
    assert first.tensors["depth"].keys() == second.tensors["depth"].keys()
    assert all(torch.equal(first.tensors["depth"][k], second.tensors["depth"][k]) for k in first.tensors["depth"])


def test_other_settings_do_not_go_on_with_a_run(tmp_path: Path, views: Path) -> None:
    run(depth_task(views, SMALL), tmp_path / "run", SMALL)
    other = Settings(**{**SMALL.__dict__, "lr": 2e-3})
    with pytest.raises(PretrainError, match=r"with lr 0\.001, not 0\.002"):
        run(depth_task(views, other), tmp_path / "run", other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "batch is 0, it should be from 1"),
        (["--lr", "nan"], "lr is nan"),
        (["--small", "2"], "small is 2, it should be from 0 to 1"),
        ([], "last.pt cannot be read"),
    ],
)
def test_what_cannot_be_trained_is_named(
    tmp_path: Path, views: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "last.pt").write_text("no state")
    words = [str(tmp_path), "--views", str(views), "--net", "light", "--only", "depth", *options]
    assert command.main(words) == 1
    assert message in capsys.readouterr().err


def test_one_command_makes_a_start_that_predicts(tmp_path: Path, views: Path) -> None:
    options = ["--net", "light", "--steps", "2", "--pose-steps", "2", "--batch", "2", "--shards", "2"]
    assert command.main([str(tmp_path / "out"), "--views", str(views), *options]) == 0
    weights = load_weights(tmp_path / "out" / "start.safetensors")
    assert weights.nets == {"depth": "light", "pose": "light"}
    stored = [tensor for found in weights.tensors.values() for tensor in found.values()]
    assert all(tensor.dtype == torch.float16 for tensor in stored if tensor.is_floating_point())
    assert weights.metadata["trained"]["depth"]["step"] == 2
    predictor = DepthPredictor.load(tmp_path / "out" / "start.safetensors")
    shapes = [(90, 160, 3), (100, 330, 3), (120, 90, 3)]
    depths = predictor.predict([np.zeros(shape, np.uint8) for shape in shapes])
    assert [tuple(depth.shape) for depth in depths] == [shape[:2] for shape in shapes]
    assert [predictor.size_for(shape) for shape in shapes] == [(192, 352), (128, 416), (288, 224)]


def test_frozen_blocks_stay_and_the_rest_is_trained() -> None:
    net = build_depth_net("lite0")
    trained = {id(p) for group in freeze(net, Settings()) for p in group["params"]}
    assert not any(id(p) in trained for p in net.encoder.blocks[2].parameters())
    assert all(id(p) in trained for p in net.encoder.blocks[3].parameters())
    assert all(id(p) in trained for p in net.decoder.parameters())
