"""Scene predictions: computed, or once computed and then read, with the same meaning for every stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcd.config import ConfigError, parse_config
from mcd.files import DataError
from mcd.run.checkpoint import WEIGHTS, CheckpointError
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import homogeneous_motion, pixel_flow

SIZE = (64, 96)
K = torch.tensor([[60.0, 0, 47.5], [0, 58.0, 31.5], [0, 0, 1]])


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer, self.calls = answer, 0

    def forward(self, *inputs: Tensor) -> Any:
        self.calls += 1
        return self.answer(*inputs)


def scene_nets() -> dict[str, nn.Module]:
    def depth(image: Tensor) -> list[Tensor]:
        return [5 + image.mean(1, keepdim=True)]

    def pose(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first.new_tensor([[0.0, 0.01, 0]]).expand(len(first), 3), first.new_full((len(first), 3), 0.05)

    def motion(warped: Tensor, source: Tensor) -> Tensor:
        return 10 * (source - 0.4)[:, :2]

    return {"depth": Counting(depth), "pose": Counting(pose), "motion": Counting(motion)}


def make(folder, store: str) -> ScenePredictions:
    config = parse_config({"runs": str(folder), "data": {"size": SIZE}, "store": store})
    context = Context(config, Run(config), torch.device("cpu"))
    weights = context.run.stage("scene") / WEIGHTS
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"what the nets are")
    predictions = ScenePredictions(context)
    predictions.nets = scene_nets()
    return predictions


@pytest.fixture
def batch() -> dict[str, Any]:
    images = torch.rand(2, 3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return {"reference": images[:, 0], "sources": images[:, 1:], "K": K.repeat(2, 1, 1), "frame": ["c/a", "c/b"]}


def test_a_store_computes_a_frame_once_and_gives_the_same_ever_after(tmp_path, batch):
    predictions = make(tmp_path, "sqlite")
    first = predictions("train", batch)
    again = predictions("train", batch)
    other = make(tmp_path, "sqlite")
    later = other("train", {name: value[1:] for name, value in batch.items()})
    assert [net.calls for net in predictions.nets.values()] == [1, 1, 1]
    assert [net.calls for net in other.nets.values()] == [0, 0, 0]
    for name in ("depth", "T_src_ref", "motion", "flow"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        # Matrix products of one frame and of two may round differently.
        assert torch.allclose(getattr(first, name)[1:], getattr(later, name), rtol=1e-5), name
    predictions("val", batch)
    assert predictions.nets["depth"].calls == 2, "splits are kept apart"


def test_what_is_stored_is_what_is_computed_up_to_its_steps(tmp_path, batch):
    stored, exact = make(tmp_path, "sqlite")("train", batch), make(tmp_path / "none", "none")("train", batch)
    assert ((stored.depth - exact.depth).abs() <= 1e-3 * exact.depth).all()
    assert ((stored.flow - exact.flow).abs() <= 1 / 64 + 1e-6).all()
    assert torch.equal(stored.T_src_ref, exact.T_src_ref)
    assert exact.flow.abs().max() > 0.3


def test_motion_is_recovered_from_flow_and_depth(batch):
    torch.manual_seed(0)
    depth, motion = 5 + torch.rand(2, 1, *SIZE), torch.rand(2, 2, 2, *SIZE) + 0.5
    T = torch.eye(4).repeat(2, 2, 1, 1)
    T[..., :3, 3] = 0.1 * torch.rand(2, 2, 3)
    flow = pixel_flow(batch["reference"], depth, batch["K"], T, motion)
    found = homogeneous_motion(flow, depth, batch["K"], T)
    # Away from the border of the image, where the flow is cut off.
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(found[inner], motion[inner], rtol=1e-3, atol=1e-4)


def test_a_label_of_depth_is_there_with_a_store_only(tmp_path, batch):
    predictions = make(tmp_path, "sqlite")
    depth = predictions("train", batch).depth
    assert torch.equal(torch.from_numpy(predictions.depth_label("train", "c/b")["scene_depth"].values), depth[1])
    without = make(tmp_path / "none", "none")
    assert without.depth_label("train", "c/b") == {}
    assert torch.equal(without.depth(batch), without.nets["depth"](batch["reference"])[0])
    given = torch.ones(2, 1, *SIZE)
    assert without.depth(batch | {"scene_depth": given}) is given


@pytest.mark.parametrize("stage", ["predictions", "ground", "slots", "detector"])
def test_a_stage_that_reads_predictions_in_its_loader_asks_for_a_store(stage):
    with pytest.raises(ConfigError, match=f"stage '{stage}' needs a store"):
        parse_config({"stages": ["scene", stage]})


def test_a_frame_that_nobody_stored_says_which_stages_would(tmp_path):
    with pytest.raises(DataError, match=r"sqlite has no frame c/z of split 'train': the stages 'predictions' and"):
        make(tmp_path, "sqlite").stored("train", "c/z")
    with pytest.raises(DataError, match="there is no prediction store: set store: sqlite"):
        make(tmp_path / "none", "none").stored("train", "c/z")


def test_a_store_belongs_to_its_weights(tmp_path, batch):
    predictions = make(tmp_path, "sqlite")
    weights = tmp_path / "run" / "scene" / WEIGHTS
    context = predictions._context
    weights.write_bytes(b"trained on")
    with pytest.raises(DataError, match="is of other nets"):
        ScenePredictions(context)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors does not exist"):
        ScenePredictions(context)
