"""What puts a prediction into metres, where it is not the truth itself: ``evaluation.scale``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcd.config import Config
from mcd.data import Batch, SequenceFolder
from mcd.data.files import resize_image
from mcd.files import DataError
from mcd.geometry import scale_intrinsics
from mcd.run.checkpoint import load_weights
from mcd.run.networks import make_net
from mcd.scene.metres import RunningScale, read_positions, scale_of_motion, scale_of_road
from mcd.visualize import from_bytes

ScaleOf = Callable[[Tensor, Batch, int], float]
"""Predicted depth [1,1,h,w] of an item of a batch, to metres per unit; asked in the order of the frames."""


class ScaleError(DataError):
    """A scale that the config asks for cannot be had."""


def scale_of(config: Config, weights: Path | None, device: torch.device | str) -> ScaleOf | None:
    """The scale that a config asks for; None for the ratio of medians, which needs the truth.

    Args:
        weights: of the stage whose depth it is, with its pose net; None: depth that is in metres already.

    Raises:
        ScaleError: something is missing for it.
    """
    kind = config.evaluation.scale
    if kind == "median":
        return None
    if kind == "none" or weights is None:
        return lambda depth, batch, index: 1.0
    return _by_height(config) if kind == "height" else _by_poses(config, weights, device)


def _by_height(config: Config) -> ScaleOf:
    camera_height, running = config.data.camera_height, RunningScale()
    if camera_height is None:
        raise ScaleError("evaluation.scale is height, but data.camera_height is not given (--camera-height METRES)")

    def scale(depth: Tensor, batch: Batch, index: int) -> float:
        height, width = depth.shape[-2:]
        rows, columns = config.data.size
        K = scale_intrinsics(batch["K"][index].cpu().double(), width / columns, height / rows).numpy()
        measured = scale_of_road(depth[0, 0].float().cpu().numpy(), K, camera_height)
        return _known(running.update(measured), batch["frame"][index], "shows no road")

    return scale


def _by_poses(config: Config, weights: Path, device: torch.device | str) -> ScaleOf:
    if config.data.kind != "sequence" or config.data.poses is None:
        raise ScaleError("evaluation.scale is poses, but data.poses names no file of a sequence")
    folder, running = SequenceFolder(config.data, "eval"), RunningScale()
    positions = read_positions(config.data.root / config.data.poses, folder.names)
    net = make_net(config, "pose")
    load_weights(weights).load_into("pose", net, config.nets.pose)
    net = net.to(device).eval()
    number = {name: position for position, name in enumerate(folder.names)}

    def picture(name: str) -> Tensor:
        return from_bytes(resize_image(folder.read_image(name), config.data.size))[None].to(device)

    def scale(depth: Tensor, batch: Batch, index: int) -> float:
        position = number[batch["frame"][index]]
        around = folder.names[max(position - 1, 0) : position + 2]
        pictures = [picture(name) for name in around]
        with torch.no_grad():
            steps: list[Any] = [
                net(first, second)[1][0].cpu().numpy().astype(np.float64)
                for first, second in itertools.pairwise(pictures)
            ]
        return _known(running.update(scale_of_motion(positions, around, steps)), batch["frame"][index], "does not move")

    return scale


def _known(scale: float | None, frame: str, why: str) -> float:
    if scale is None:
        raise ScaleError(f"frame {frame} {why}, nor does one before it: its depth cannot be put into metres")
    return scale
