"""Train a depth net on rendered roads: ``python -m mcd.training.pretrain OUT [--views FOLDER]``.

Truth is at hand, so the loss is supervised: the scale-invariant log loss, a term on the differences of log depth over
several distances that keeps outlines, and one that puts the sky far away. The unit of depth is the height of the
camera above the road, which is what a picture of a road tells; metres follow from a known height.

OUT holds last.pt, the state of an interrupted run that the same command goes on with, log.csv, and in the end
weights.safetensors in half precision with what made it in its metadata.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcd.files import atomic_path
from mcd.nets import build_depth_net
from mcd.run.checkpoint import load_weights, save_weights
from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.photograph import photograph
from mcd.streets.roads.store import VIEWS, write_shard

NEAREST, FARTHEST = 0.3, 90.0  # camera heights; the nets' range is 0.1 to 100
Batch = dict[str, Tensor]
# An interrupted run may be made longer or shorter.
LENGTH = ("steps", "small", "decay", "shards")


@dataclass(frozen=True)
class Settings:
    """What decides the result."""

    net: str = "lite0"
    steps: int = 3000
    batch: int = 12
    small: float = 0.75  # share of the steps at three quarters of the views' size, which are twice as fast
    decay: float = 0.3  # share of the steps over which the learning rate falls, at the end
    lr: float = 1e-3
    encoder_lr: float = 0.2  # of lr
    frozen_blocks: int = 3  # of the encoder, with its stem; their ImageNet features stay as they are
    shards: int = 84
    edges: float = 0.5
    sky: float = 0.1
    seed: int = 0


class Views:
    """Random views of the shards of a folder, photographed anew, as batches of one size."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self.texture = NoiseTexture(np.random.default_rng(settings.seed), octaves=8, slope=1.4)
        self.opened: dict[int, dict[str, NDArray]] = {}
        self.available = 0

    def shard(self, number: int) -> dict[str, NDArray]:
        if number not in self.opened:
            path = write_shard(self.folder, self.settings.seed, number)
            with np.load(path) as file:
                self.opened[number] = {name: file[name] for name in ("image", "depth", "height")}
        return self.opened[number]

    def _count(self) -> int:
        """How many shards are there; a store that is being drawn by another process is used as it grows."""
        number = self.available
        while number < self.settings.shards and (self.folder / f"{number:04d}.npz").exists():
            number += 1
        if number == 0:
            write_shard(self.folder, self.settings.seed, 0)
        return max(number, 1)

    def batch(self, step: int) -> Batch:
        """The batch of a step; it depends on the seed and the step alone, once all shards are there."""
        rng = np.random.default_rng([self.settings.seed, 7, step])
        if step % 20 == 0 or not self.available:
            self.available = self._count()
        # Several shards of one size: views of a shard share their textures.
        numbers = range(int(rng.integers(min(2, self.available))), self.available, 2)
        chosen = rng.choice(numbers, min(4, len(numbers)), replace=False)
        scale = 0.75 if step < self.settings.small * self.settings.steps else 1.0
        images, depths = [], []
        for index in range(self.settings.batch):
            shard = self.shard(int(chosen[index % len(chosen)]))
            view = int(rng.integers(len(shard["image"])))
            image, depth = zoom(rng, shard["image"][view], shard["depth"][view].astype(np.float32), scale)
            if rng.random() < 0.5:
                image, depth = image[:, ::-1], depth[:, ::-1]
            images.append(photograph(rng, image, self.texture))
            depths.append(np.ascontiguousarray(depth / shard["height"][view]))
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return {"image": pictures, "depth": torch.from_numpy(np.stack(depths))[:, None]}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """One batch ahead of their use."""
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self.batch, start)
            for step in range(start, stop):
                batch = following.result()
                if step + 1 < stop:
                    following = pool.submit(self.batch, step + 1)
                yield batch


def zoom(
    rng: np.random.Generator, image: NDArray[np.uint8], depth: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A part of a view at `scale` times its size: another field of view, centre and shape of the pixels."""
    height, width = depth.shape
    share = rng.uniform(0.6, 1.0) if rng.random() < 0.6 else 1.0
    rows = min(int(height * share * math.exp(rng.normal(0, 0.08))), height)
    columns = min(int(width * share), width)
    target = (int(height * scale) // 32 * 32, int(width * scale) // 32 * 32)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = torch.from_numpy(image[top : top + rows, left : left + columns].copy()).permute(2, 0, 1)[None].float()
    larger = F.interpolate(part, target, mode="bilinear", align_corners=False, antialias=True)[0].permute(1, 2, 0)
    deep = torch.from_numpy(depth[top : top + rows, left : left + columns].copy())[None, None]
    return (
        (larger + 0.5).clamp(0, 255).byte().numpy(),
        F.interpolate(deep, target, mode="nearest-exact")[0, 0].numpy(),
    )


def depth_loss(predicted: Tensor, truth: Tensor, settings: Settings) -> tuple[Tensor, dict[str, float]]:
    """Loss of depth [B,1,H,W] against the truth, 0 where there is sky, both in camera heights."""
    known = truth > 0
    log_predicted = predicted.log()
    difference = torch.where(known, log_predicted - truth.clamp(NEAREST, FARTHEST).log(), 0.0)
    count = known.sum((1, 2, 3)).clamp(min=1)
    mean = difference.sum((1, 2, 3)) / count
    centred = torch.where(known, difference - mean[:, None, None, None], 0.0)
    # Absolute rather than square: far and thin things are wrong by much, and not all of it can be learned.
    shape = (centred.abs().sum((1, 2, 3)) / count).mean()
    scale = mean.abs().mean()
    edges = predicted.new_zeros(())
    for step in (1, 2, 4, 8):
        for axis in (2, 3):
            length = truth.shape[axis] - step
            if length < step:
                continue
            here, there = (difference.narrow(axis, offset, length) for offset in (0, step))
            both = known.narrow(axis, 0, length) & known.narrow(axis, step, length)
            edges = edges + (torch.where(both, there - here, 0.0).abs().sum() / both.sum().clamp(min=1)) / 4
    # The sky is at least as far as anything.
    sky = torch.where(known, 0.0, (math.log(FARTHEST) - log_predicted).clamp(min=0)).mean()
    loss = shape + 0.2 * scale + settings.edges * edges + settings.sky * sky
    parts = {"shape": shape, "scale": scale, "edges": edges, "sky": sky}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def freeze(net: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups; the encoder's first blocks and all its statistics stay those of ImageNet.

    What early layers see of rendered pictures differs most from real ones.
    """
    encoder, decoder = net.encoder, net.decoder
    assert isinstance(encoder, nn.Module)
    assert isinstance(decoder, nn.Module)
    if settings.net == "lite0" and settings.frozen_blocks:
        early = [encoder.conv_stem, encoder.bn1, *list(encoder.blocks)[: settings.frozen_blocks]]  # type: ignore[arg-type]
        for module in early:
            for parameter in module.parameters():  # type: ignore[union-attr]
                parameter.requires_grad_(False)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [
        {"params": trained, "lr": settings.lr * settings.encoder_lr, "share": settings.encoder_lr},
        {"params": list(decoder.parameters()), "lr": settings.lr, "share": 1.0},
    ]


def pretrain(out: Path, views: Path, settings: Settings, *, init: Path | None = None, save_every: int = 100) -> Path:
    """Train, or go on training, and write the weights; returns their path."""
    torch.manual_seed(settings.seed)
    net = build_depth_net(settings.net, pretrained=settings.net != "light")
    if init is not None:
        load_weights(init).load_into("depth", net, settings.net)
    else:
        for head in net.decoder.heads:  # type: ignore[union-attr]
            # Some ten camera heights: a start in the middle of what there is to see.
            nn.init.constant_(head.conv.bias, -4.5)
    net = net.to(memory_format=torch.channels_last)
    groups = freeze(net, settings)
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    state_path, start, seconds = out / "last.pt", 0, 0.0
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if state_path.exists():
        state = torch.load(state_path, map_location="cpu", weights_only=True)
        if any(state["settings"][name] != value for name, value in asdict(settings).items() if name not in LENGTH):
            raise ValueError(f"{state_path} is of a run with other settings: {state['settings']}")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        average, start, seconds = state["average"], state["step"], state["seconds"]
    out.mkdir(parents=True, exist_ok=True)
    data = Views(views, settings)
    began = time.monotonic()
    log = out / "log.csv"

    def save(step: int) -> None:
        state = {
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "step": step,
            "seconds": seconds + time.monotonic() - began,
            "settings": asdict(settings),
        }
        with atomic_path(state_path) as temporary:
            torch.save(state, temporary)
        _write(out / "weights.safetensors", settings, average, step, state["seconds"], data.available * VIEWS)

    sums: dict[str, float] = {}
    for step, batch in enumerate(data.batches(start, settings.steps), start):
        warm = min(1.0, (step + 1) / 100)
        share = warm * min(1.0, (settings.steps - step) / (settings.decay * settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * group["share"] * share
        net.train()
        net.encoder.eval()  # type: ignore[union-attr]
        depths = net(batch["image"].contiguous(memory_format=torch.channels_last))
        total = batch["image"].new_zeros(())
        for level, depth in enumerate(depths):
            truth = batch["depth"] if level == 0 else batch["depth"][:, :, :: 2**level, :: 2**level]
            loss, parts = depth_loss(depth, truth, settings)
            total = total + loss / 2**level
            if level == 0:
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimiser.step()
        decay = min(0.998, (step + 1) / (step + 20))
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)
        if (step + 1) % 20 == 0:
            row = {"step": step + 1, "seconds": round(seconds + time.monotonic() - began, 1)}
            row |= {name: round(value / 20, 4) for name, value in sums.items()}
            sums = {}
            new = not log.exists()
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save(step + 1)
    return out / "weights.safetensors"


def _write(path: Path, settings: Settings, tensors: dict[str, Tensor], step: int, seconds: float, views: int) -> None:
    net = build_depth_net(settings.net)
    net.load_state_dict(tensors)
    half = {"depth": net.half()}
    metadata = {
        "size": [160, 288],
        "step": step,
        "seconds": round(seconds),
        "views": views,
        "settings": asdict(settings),
        "unit": "camera height",
    }
    save_weights(path, half, {"depth": settings.net}, metadata)


def main(arguments: list[str] | None = None) -> int:
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m mcd.training.pretrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the state, the log and the weights")
    parser.add_argument(
        "--views", type=Path, help="folder of the rendered views (default: OUT/views); drawn if missing"
    )
    parser.add_argument("--init", type=Path, help="weights to start from in place of ImageNet's")
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    given = vars(parser.parse_args(arguments))
    out, views, init = given.pop("out"), given.pop("views"), given.pop("init")
    print(pretrain(out, views or out / "views", Settings(**given), init=init))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
