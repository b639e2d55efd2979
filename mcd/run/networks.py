"""The nets that a config names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mcd.config import Config, ConfigError
from mcd.nets import (
    PretrainedError,
    build_camera,
    build_depth_net,
    build_detector,
    build_ground_net,
    build_motion_net,
    build_pose_net,
    build_scale_net,
    build_slot_net,
    freeze_encoder,
)


def make_net(config: Config, role: str, *, pretrained: bool = False) -> nn.Module:
    """A net for a role of ``config.nets``.

    Raises:
        ConfigError: it cannot be had, or not at this size.
    """
    names = config.nets
    net: nn.Module
    try:
        if role == "depth":
            net = build_depth_net(names.depth, pretrained=pretrained)
        elif role == "pose":
            net = build_pose_net(names.pose, pretrained=pretrained)
        elif role == "motion":
            net = build_motion_net(names.motion)
        elif role == "camera":
            net = build_camera(names.camera)
        elif role == "slots":
            net = build_slot_net(names.slots)
        elif role == "ground":
            net = build_ground_net(names.ground, config.data.size)
        elif role == "detector":
            net = build_detector(
                names.detector, config.data.size, magnify=config.detector.magnify, pretrained=pretrained
            )
        else:
            net = build_scale_net(names.scale, positive=names.positive_scale, pretrained=pretrained)
    except (ValueError, PretrainedError) as error:
        raise ConfigError(f"'nets.{role}': {error}") from None
    return net


def check_nets(config: Config) -> None:
    """Raises ConfigError if a net that the stages of a config want cannot be made, before hours are spent on others."""
    wanted = {"depth", "pose", "motion"} | {role for role in ("ground", "slots", "detector") if role in config.stages}
    wanted |= {"scale"} if {"scale", "pseudo"} & set(config.stages) else set()
    fresh = {"scale"} & set(config.stages)
    fresh |= {"detector"} if config.detector.init is None else set()
    fresh |= {"depth", "pose"} if "scene" in config.stages and config.init is None else set()
    with torch.device("meta"):
        for role in sorted(wanted):
            # Only light nets are refused ImageNet weights; those of others are not fetched for this.
            light = getattr(config.nets, role) == "light"
            net = make_net(config, role, pretrained=config.nets.pretrained and light and role in fresh)
            _check_size(net, role, config.data.size)
            for stage in ("scene", "final") if role == "depth" else ():
                _check_frozen(net, config, stage)


def _check_frozen(net: nn.Module, config: Config, stage: Literal["scene", "final"]) -> None:
    blocks = getattr(config, stage).frozen_blocks
    if blocks is None:
        return
    try:
        freeze_encoder(net, blocks)
    except ValueError as error:
        raise ConfigError(f"'{stage}.frozen_blocks': {error}") from None


def check_motion(config: Config) -> None:
    """Raises ConfigError if a stage reads the residual motion, and the scene stage of this run is not to learn it."""
    for stage in ("predictions", "instances"):
        if stage in config.stages and "scene" in config.stages and config.scene.motion_from is None:
            raise ConfigError(f"'scene.motion_from' is not set, and stage '{stage}' reads the residual motion")


def _check_size(net: nn.Module, role: str, size: tuple[int, int]) -> None:
    """Run a net that sees whole images on shapes alone, so that it is the net itself that says which sizes it takes."""
    inputs = {"depth": (3,), "pose": (3, 3), "motion": (3, 3), "scale": (3, 1, 1)}.get(role)
    if inputs is None:
        return
    try:
        # One-pixel feature maps are no statistics: batch norm refuses a single one in training, whatever the batch is.
        net.eval()(*(torch.empty(1, channels, *size) for channels in inputs))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"'data.size' is {size[0]}x{size[1]}, which nets.{role} does not take: {error}") from None
