"""Where a stage runs: config, run folder, device, and the nets of earlier stages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mcd.config import Config, Data
from mcd.data import SequenceFolder
from mcd.run.checkpoint import WEIGHTS, find_weights, load_weights
from mcd.run.folder import Run
from mcd.run.networks import make_net


def with_learned_camera(config: Config, run_folder: Path) -> Config:
    """The config with the intrinsics that the scene stage of a run has learned; itself, if there are none."""
    path = run_folder / "scene" / WEIGHTS
    if config.data.intrinsics != "learn" or not path.is_file():
        return config
    shares = load_weights(path).metadata.get("camera")
    if shares is None:
        return config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the field of view, which is not used
        height, width = SequenceFolder(config.data.model_copy(update={"crop": None}), "eval").size
    fx, fy, cx, cy = shares
    top, bottom, left, right = config.data.crop or (0.0, 1.0, 0.0, 1.0)
    kept = round(bottom * height) - round(top * height), round(right * width) - round(left * width)
    learned = (
        fx * kept[1],
        fy * kept[0],
        cx * kept[1] - 0.5 + round(left * width),
        cy * kept[0] - 0.5 + round(top * height),
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"intrinsics": learned})})


@dataclass(frozen=True)
class Context:
    """Where a stage runs."""

    config: Config
    run: Run
    device: torch.device

    @property
    def data(self) -> Data:
        """The data with the camera that the scene stage has learned, if there was one to learn and it is learned."""
        return with_learned_camera(self.config, self.run.path).data

    @contextmanager
    def networks(self) -> Iterator[None]:
        """Networks may run in bfloat16; geometry and losses, outside this block, are float32."""
        precision = self.config.precision
        bfloat16 = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            yield

    def build(self, role: str, *, pretrained: bool = False) -> nn.Module:
        """A net for a role of ``config.nets``, on the device; fresh, or with an ImageNet backbone."""
        net = make_net(self.config, role, pretrained=pretrained).to(self.device)
        if self.config.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
        return net

    def weights_of(self, stage: str) -> Path:
        """The file that an earlier stage of this run left; for a run without a scene stage, ``init`` is the scene's.

        Raises:
            CheckpointError: ``init`` holds no weights.
        """
        if stage == "scene" and "scene" not in self.config.stages and self.config.init is not None:
            return find_weights(self.config.init)
        return self.run.stage(stage) / WEIGHTS

    def trained(self, stage: str, role: str) -> nn.Module:
        """The net that an earlier stage of this run left behind, frozen."""
        return self.frozen(role, self.weights_of(stage))

    def frozen(self, role: str, path: Path) -> nn.Module:
        """The net of a weights file, frozen."""
        weights = load_weights(path)
        net = self.build(role)
        weights.load_into(role, net, getattr(self.config.nets, role))
        return net.eval().requires_grad_(False)
