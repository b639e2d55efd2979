"""Pre-training on rendered roads: its loss, and a run that is stopped and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mcd.nets import build_depth_net
from mcd.run.checkpoint import load_weights
from mcd.streets.roads import store
from mcd.training import pretrain
from mcd.training.pretrain import Settings, depth_loss, zoom

SMALL = Settings(net="light", steps=4, batch=2, shards=2, small=0.0)


@pytest.fixture
def views(tmp_path: Path) -> Path:
    folder = tmp_path / "views"
    folder.mkdir()
    for number in range(2):
        np.savez(folder / f"{number:04d}.npz", **store.make_shard(0, number, views=2, size=(64, 96)))
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
    shapes = set()
    for _ in range(20):
        picture, deep = zoom(rng, image, depth, 0.75)
        assert picture.shape[:2] == deep.shape == (32, 64)
        shapes.add(float(deep.max() - deep.min()))
        # One level is one pixel of the view.
        assert np.abs(picture[8:-8, 4:-4, 0] - deep[8:-8, 4:-4]).max() <= 2
    assert len(shapes) > 3


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, views: Path) -> None:
    whole = pretrain.pretrain(tmp_path / "whole", views, SMALL, save_every=2)
    stopped = tmp_path / "stopped"
    original = pretrain.Views.batches

    def breaks_off(self, start, stop):
        for step, batch in enumerate(original(self, start, stop), start):
            if step == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.Views, "batches", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(stopped, views, SMALL, save_every=2)
    resumed = pretrain.pretrain(stopped, views, SMALL, save_every=2)
    first, second = load_weights(whole), load_weights(resumed)
    assert first.tensors["depth"].keys() == second.tensors["depth"].keys()
    assert all(torch.equal(first.tensors["depth"][k], second.tensors["depth"][k]) for k in first.tensors["depth"])


def test_weights_are_half_precision_and_load(tmp_path: Path, views: Path) -> None:
    weights = load_weights(pretrain.pretrain(tmp_path / "run", views, SMALL))
    assert weights.size is not None and weights.metadata["step"] == 4
    assert all(t.dtype == torch.float16 for t in weights.tensors["depth"].values() if t.is_floating_point())
    net = build_depth_net("light")
    weights.load_into("depth", net, "light")
    assert net(torch.rand(1, 3, 64, 96))[0].isfinite().all()


def test_other_settings_do_not_go_on_with_a_run(tmp_path: Path, views: Path) -> None:
    pretrain.pretrain(tmp_path / "run", views, SMALL)
    with pytest.raises(ValueError, match="other settings"):
        pretrain.pretrain(tmp_path / "run", views, Settings(**{**SMALL.__dict__, "lr": 2e-3}))


def test_frozen_blocks_and_statistics_stay(tmp_path: Path) -> None:
    net = build_depth_net("lite0")
    groups = pretrain.freeze(net, Settings())
    trained = {id(p) for group in groups for p in group["params"]}
    assert not any(id(p) in trained for p in net.encoder.blocks[2].parameters())
    assert all(id(p) in trained for p in net.encoder.blocks[3].parameters())
    assert all(id(p) in trained for p in net.decoder.parameters())
