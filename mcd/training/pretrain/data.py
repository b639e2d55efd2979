"""What pre-training learns from: rendered views, photographed anew at every use, and what all of its runs share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcd.errors import McdError
from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.photograph import photograph
from mcd.streets.roads.store import write_shard

Batch = dict[str, Tensor]
# Of the views' size, with the share of the batches that have it: one size alone is all that the net would know.
SCALES = {0.75: 0.4, 1.0: 0.35, 1.25: 0.25}
SMALL = min(SCALES)


class PretrainError(McdError, ValueError):
    """Settings that nothing can be made with, or a run that cannot be gone on with."""


@dataclass(frozen=True)
class Settings:
    """What decides the result."""

    net: str = "lite0"
    steps: int = 3000
    batch: int = 12
    small: float = 0.5  # share of the steps, the first ones, at the smallest size: they are twice as fast
    decay: float = 0.3  # share of the steps over which the learning rate falls, at the end
    lr: float = 1e-3
    encoder_lr: float = 0.2  # of lr
    frozen_blocks: int = 3  # of the encoder, with its stem; their ImageNet features stay as they are
    shards: int = 84
    edges: float = 0.5  # weight of the differences of log depth
    sky: float = 0.1  # weight of the sky's distance
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "shards": 1}
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            most = 1.0 if name in ("small", "decay") else 2**31
            if not least.get(name, 0) <= value <= most:
                raise PretrainError(f"{name} is {value:g}, it should be from {least.get(name, 0)} to {most:g}")


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
                self.opened[number] = {name: file[name] for name in ("image", "depth", "height", "pose", "clip")}
        return self.opened[number]

    def _count(self) -> int:
        """How many shards are there; a store that is being drawn by another process is used as it grows."""
        number = self.available
        while number < self.settings.shards and (self.folder / f"{number:04d}.npz").exists():
            number += 1
        if number == 0:
            write_shard(self.folder, self.settings.seed, 0)
        return max(number, 1)

    def _shards(self, rng: np.random.Generator, step: int) -> list[int]:
        """Some shards of one size: views of a shard share their textures."""
        if step % 20 == 0 or not self.available:
            self.available = self._count()
        numbers = range(int(rng.integers(min(2, self.available))), self.available, 2)
        return [int(number) for number in rng.choice(numbers, min(4, len(numbers)), replace=False)]

    def batch(self, step: int) -> Batch:
        """The batch of a step; it depends on the seed and the step alone, once all shards are there."""
        rng = np.random.default_rng([self.settings.seed, 7, step])
        chosen = self._shards(rng, step)
        scale = float(rng.choice(list(SCALES), p=list(SCALES.values())))
        if step < self.settings.small * self.settings.steps:
            scale = SMALL
        images, depths = [], []
        for index in range(self.settings.batch):
            shard = self.shard(chosen[index % len(chosen)])
            view = int(rng.integers(len(shard["image"])))
            image, depth = shard["image"][view], shard["depth"][view].astype(np.float32)
            part = sample_part(rng, depth.shape, scale)
            image, depth = cut_image(image, part), cut_depth(depth, part)
            if rng.random() < 0.5:
                image, depth = image[:, ::-1], depth[:, ::-1]
            images.append(photograph(rng, image, self.texture))
            depths.append(np.ascontiguousarray(depth / shard["height"][view]))
        return {"image": _pictures(images), "depth": torch.from_numpy(np.stack(depths))[:, None]}

    def pairs(self, step: int) -> Batch:
        """Two frames of one clip each: ``first``, ``second`` [B,3,H,W] and ``T`` [B,4,4], from the first camera to
        the second, its translation in camera heights."""
        rng = np.random.default_rng([self.settings.seed, 11, step])
        chosen = self._shards(rng, step)
        firsts: list[Any] = []
        seconds: list[Any] = []
        motions: list[Any] = []
        while len(firsts) < self.settings.batch:
            shard = self.shard(chosen[len(firsts) % len(chosen)])
            distance = int(rng.choice((0, 1, 2), p=(0.05, 0.65, 0.3)))
            clip = shard["clip"]
            starts = np.nonzero(clip[: len(clip) - distance] == clip[distance:])[0]
            if not len(starts):
                continue
            start = int(rng.choice(starts))
            ends = start, start + distance
            part = sample_part(rng, shard["depth"].shape[1:], SMALL)
            frames = [cut_image(shard["image"][end], part) for end in ends]
            T = np.linalg.inv(shard["pose"][ends[1]]) @ shard["pose"][ends[0]]
            T[:3, 3] /= shard["height"][start]
            if rng.random() < 0.5:
                frames = [frame[:, ::-1] for frame in frames]
                mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
                T = mirror @ T @ mirror
            # One camera took both: the same effects, but for the sensor's noise, which the small net averages out.
            state = rng.bit_generator.state
            first = photograph(rng, frames[0], self.texture)
            rng.bit_generator.state = state
            second = photograph(rng, frames[1], self.texture)
            firsts.append(first)
            seconds.append(second)
            motions.append(T)
        return {
            "first": _pictures(firsts),
            "second": _pictures(seconds),
            "T": torch.from_numpy(np.stack(motions)).float(),
        }


def ahead(batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """The batches of the steps from `start` to `stop`, each made while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(batch, start)
        for step in range(start, stop):
            found = following.result()
            if step + 1 < stop:
                following = pool.submit(batch, step + 1)
            yield found


class Part(NamedTuple):
    """A window of a view and the size at which it is drawn."""

    rows: slice
    columns: slice
    size: tuple[int, int]


def sample_part(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Part:
    """A part of a view of this shape at `scale` times its size: another field of view, centre and shape of pixels."""
    height, width = shape
    share = rng.uniform(0.6, 1.0) if rng.random() < 0.6 else 1.0
    rows = min(int(height * share * math.exp(rng.normal(0, 0.08))), height)
    columns = min(int(width * share), width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    size = (int(height * scale) // 32 * 32, int(width * scale) // 32 * 32)
    return Part(slice(top, top + rows), slice(left, left + columns), size)


def cut_image(image: NDArray[np.uint8], part: Part) -> NDArray[np.uint8]:
    window = torch.from_numpy(image[part.rows, part.columns].copy()).permute(2, 0, 1)[None].float()
    drawn = F.interpolate(window, part.size, mode="bilinear", align_corners=False, antialias=True)[0]
    return (drawn.permute(1, 2, 0) + 0.5).clamp(0, 255).byte().numpy()


def cut_depth(depth: NDArray[np.float32], part: Part) -> NDArray[np.float32]:
    """The nearest pixel's: a mean of depths would lie where nothing is."""
    window = torch.from_numpy(depth[part.rows, part.columns].copy())[None, None]
    return F.interpolate(window, part.size, mode="nearest-exact")[0, 0].numpy()


def _pictures(images: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
