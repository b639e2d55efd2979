"""A trained depth net as a function of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcd.data.files import read_mask, resize_image
from mcd.inference.confidence import ask_thrice
from mcd.inference.pictures import Pixels
from mcd.nets import build_depth_net
from mcd.run.checkpoint import CheckpointError, find_weights, load_weights
from mcd.visualize import from_bytes

OWN_VEHICLE = "own_vehicle.png"
"""In a run folder: what its pictures show of the own vehicle."""

# The nets halve the image five times.
STRIDE = 32
LARGEST = 16384


class Estimate(NamedTuple):
    """What a net says of an image [H, W, 3]."""

    depth: Tensor
    """[H, W], float32."""
    size: tuple[int, int]
    """At which the net saw the image."""
    confidence: Tensor | None = None
    """[H, W] in [0, 1]."""
    metres: float = 1.0
    """By which the net's depth was multiplied."""


class DepthPredictor:
    """A depth net with the size it works at.

    Args:
        net: images [B, 3, H, W] in [0, 1] to a list of depths, the first [B, 1, H, W].
        size: height and width for the net, multiples of 32.
        device: where it runs.
        camera: fx, fy, cx, cy of the pictures that it was trained on, in terms of their width and height.
        any_shape: it was trained on pictures of many shapes: each is resized to about as many pixels as ``size`` has,
            and keeps its own shape.
        own: [H, W], True where pictures of that camera show the own vehicle; None: nowhere.
    """

    def __init__(
        self,
        net: nn.Module,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
        camera: tuple[float, float, float, float] | None = None,
        any_shape: bool = False,
        own: NDArray[np.bool_] | None = None,
    ):
        if any(not STRIDE <= side <= LARGEST or side % STRIDE for side in size):
            raise ValueError(
                f"size {size[0]}x{size[1]}: height and width must be multiples of {STRIDE}, up to {LARGEST}"
            )
        self.size = size
        self.camera = camera
        self.any_shape = any_shape
        self.own = own
        self.device = torch.device(device)
        self.net = net.to(self.device).eval()

    @classmethod
    def load(
        cls,
        place: Path | str,
        stage: str | None = None,
        *,
        device: torch.device | str = "cpu",
        size: tuple[int, int] | None = None,
    ) -> DepthPredictor:
        """Load the depth net of a run folder, stage folder or weights file.

        Args:
            stage: for a run folder, whose net; None takes the best there is.
            size: None takes the size that the net was trained at.

        Raises:
            CheckpointError: nothing is there, it is broken, or it does not say which net or size it is.
            DataError: a run's mask of the own vehicle is broken.
        """
        weights = load_weights(find_weights(place, stage))
        if "depth" not in weights.nets:
            raise CheckpointError(f"{weights.path} does not say which depth net it holds")
        any_shape = size is None and bool(weights.metadata.get("any_shape"))
        size = size or weights.size
        if size is None:
            raise CheckpointError(f"{weights.path} does not say at which size it was trained; give --size HxW")
        net = build_depth_net(weights.nets["depth"]).eval()
        weights.load_into("depth", net, weights.nets["depth"])
        check_size(net, size)
        camera = weights.metadata.get("camera")
        own = Path(place) / OWN_VEHICLE
        mask = read_mask(own) if own.is_file() else None
        return cls(net, size, device, tuple(camera) if camera else None, any_shape, mask)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Depth [B, 1, h, w] (float32, up to scale) of images [B, 3, h, w] in [0, 1] at the net's size.

        Raises:
            CheckpointError: it is not finite.
        """
        depth = self.net(images.to(self.device))[0].float()
        if not torch.isfinite(depth).all():
            raise CheckpointError("the depth that the net predicts is not finite: its weights overflow")
        return depth

    def predict(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Depth [H, W] of images [H, W, 3] of any sizes, each at its own resolution."""
        return [estimate.depth for estimate in self.estimate(images)]

    def estimate(self, images: Sequence[Pixels], *, confidence: bool = False) -> list[Estimate]:
        """What the net says of images [H, W, 3] of any sizes, each at its own resolution.

        Args:
            confidence: ask thrice, and say how far the answers agree; see :mod:`mcd.inference.confidence`.
        """
        found: list[Estimate] = []
        # Neighbours of one size, such as a video's frames, go through the net together.
        for size, group in groupby(images, lambda image: self.size_for(image.shape)):
            members = list(group)
            batch = torch.stack([_to_tensor(resize_image(image, size)) for image in members])
            depths, sure = ask_thrice(self, batch) if confidence else (self(batch), None)
            for index, image in enumerate(members):
                depth = resize_depth(depths[index : index + 1], image.shape[:2])[0, 0]
                there = None if sure is None else resize_map(sure[index : index + 1], image.shape[:2])[0, 0]
                found.append(Estimate(depth, size, there))
        return found

    def size_for(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The size for the net of an image [H, W, …]."""
        if not self.any_shape:
            return self.size
        area, wide = self.size[0] * self.size[1], shape[1] / shape[0]
        height = max(2, round(math.sqrt(area / wide) / STRIDE)) * STRIDE
        width = max(2, round(height * wide / STRIDE)) * STRIDE
        # A panorama is squeezed rather than let grow without end.
        return height, min(width, max(2, 2 * area // height // STRIDE) * STRIDE)


def check_size(net: nn.Module, size: tuple[int, int]) -> None:
    """Let a depth net look at the shape of an image, so that it is the net that says which it takes.

    Raises:
        ValueError: it does not take this height and width.
    """

    def stop(*_: Any) -> None:
        raise StopIteration

    # A net checks its input before its first layer, and no layer has to run for that. One that computes with it there
    # cannot do so without data, and has said nothing against the size.
    hooks = [layer.register_forward_pre_hook(stop) for layer in net.children()]
    try:
        with suppress(StopIteration, RuntimeError):
            net(torch.empty(1, 3, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()


def resize_depth(depth: Tensor, size: tuple[int, ...]) -> Tensor:
    """Depth [B, 1, h, w] at another size; it is the inverse depth that is interpolated, as in the evaluation."""
    return depth if depth.shape[-2:] == size else 1 / resize_map(1 / depth, size)


def resize_map(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """A map [B, 1, h, w] at another size."""
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def _to_tensor(image: Pixels) -> Tensor:
    """An image [H, W, 3] as [3, H, W] in [0, 1]."""
    return (
        torch.tensor(image).permute(2, 0, 1)
        if image.dtype == np.float32
        else from_bytes(image.astype(np.uint8, copy=False))
    )


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA where it is there.

    Raises:
        ValueError: torch knows no such device, or it is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return device
