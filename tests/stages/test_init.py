"""What `init` takes, and that training starts from exactly what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import published_nets as published
import pytest
import torch
from torch import nn

from mcd.config import Config, ConfigError, parse_config
from mcd.convert import convert_folder
from mcd.nets import build_depth_net, build_pose_net, build_scale_net
from mcd.run.checkpoint import WEIGHTS, CheckpointError, save_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.final import FinalStage
from mcd.stages.object import ObjectStage
from mcd.stages.scene import SceneStage


def context(folder: Path, **settings: Any) -> Context:
    document = {"runs": str(folder / "runs"), "data": {"size": (64, 64)}} | settings
    config: Config = parse_config(document)
    return Context(config, Run(config), torch.device("cpu"))


def light_nets(seed: int) -> dict[str, nn.Module]:
    """Every tensor random, the statistics of the normalisations too."""
    nets = {"depth": build_depth_net("light"), "pose": build_pose_net("light")}
    generator = torch.Generator().manual_seed(seed)
    for net in nets.values():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return nets


def save(path: Path, nets: dict[str, nn.Module]) -> Path:
    save_weights(path, nets, dict.fromkeys(nets, "light"), {"size": (64, 64)})
    return path


def assert_same_nets(actual: dict[str, nn.Module], expected: dict[str, nn.Module]) -> None:
    for role, net in expected.items():
        for name, value in net.state_dict().items():
            assert torch.equal(actual[role].state_dict()[name], value), f"{role}.{name}"


@pytest.mark.parametrize("form", ["run", "run with a final stage", "stage folder", "file", "file elsewhere"])
def test_training_starts_from_exactly_what_init_names(tmp_path, form):
    nets, other = light_nets(1), light_nets(2)
    run = tmp_path / "old"
    save(run / "scene" / WEIGHTS, other if form == "run with a final stage" else nets)
    if form == "run with a final stage":
        save(run / "final" / WEIGHTS, nets)
    place = {
        "run": run,
        "run with a final stage": run,
        "stage folder": run / "scene",
        "file": run / "scene" / WEIGHTS,
        "file elsewhere": save(tmp_path / "mine.safetensors", nets),
    }[form]
    stage = SceneStage(context(tmp_path, init=str(place)))
    stage.initialise()
    assert_same_nets(stage.nets, nets)


def test_training_starts_from_exactly_what_was_released(tmp_path):
    state = published.pose_state()
    torch.save(state, tmp_path / "pose_net.pth")
    nets = convert_folder(tmp_path, tmp_path / "converted")
    stage = SceneStage(context(tmp_path, init=str(tmp_path / "converted"), nets={"pose": "resnet18"}))
    stage.initialise()
    assert_same_nets(stage.nets, nets)
    assert torch.equal(stage.nets["pose"].state_dict()["convs.0.weight"], state["module.pose_decoder.net.1.weight"])


@pytest.mark.parametrize("kind", [ObjectStage, FinalStage])
def test_without_a_scene_stage_a_later_one_begins_with_init(tmp_path, kind):
    nets = light_nets(1)
    here = context(tmp_path, init=str(save(tmp_path / "mine.safetensors", nets)), stages=["object", "final"])
    stage = kind(here)
    stage.initialise()
    assert_same_nets(stage.nets, nets)
    assert_same_nets({"depth": here.trained("scene", "depth")}, {"depth": nets["depth"]})


def test_a_run_with_a_scene_stage_of_its_own_goes_on_from_that(tmp_path):
    nets = light_nets(1)
    here = context(tmp_path, init=str(save(tmp_path / "other.safetensors", light_nets(2))))
    save(here.run.stage("scene") / WEIGHTS, nets)
    stage = FinalStage(here)
    stage.initialise()
    assert_same_nets(stage.nets, nets)


def test_nets_that_the_file_lacks_stay_fresh(tmp_path):
    nets = light_nets(1)
    stage = SceneStage(context(tmp_path, init=str(save(tmp_path / "depth.safetensors", {"depth": nets["depth"]}))))
    fresh = {name: value.clone() for name, value in stage.nets["pose"].state_dict().items()}
    stage.initialise()
    assert_same_nets(stage.nets, {"depth": nets["depth"]})
    assert all(torch.equal(value, fresh[name]) for name, value in stage.nets["pose"].state_dict().items())


def test_a_file_without_any_net_of_the_stage_is_refused(tmp_path):
    path = tmp_path / "scale.safetensors"
    save(path, {"scale": build_scale_net("light")})
    with pytest.raises(CheckpointError, match="holds none of the nets of stage scene: depth, pose"):
        SceneStage(context(tmp_path, init=str(path))).initialise()


@pytest.mark.parametrize(("role", "name"), [("depth", "difnet"), ("motion", "raft2")])
def test_a_net_that_does_not_exist_names_its_key(tmp_path, role, name):
    with pytest.raises(ConfigError, match=rf"'nets\.{role}': no {role} net '{name}'"):
        SceneStage(context(tmp_path, nets={role: name}, scene={"steps": 2, "motion_from": 1}))
