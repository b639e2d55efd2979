"""Tiny data sets in the layouts of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcd.config import Data

# Not square, not a multiple of anything: swapped axes and off-by-one sizes show.
HEIGHT, WIDTH = 10, 17
K_TEXT = "12.5,0,8.25,0,11.5,4.5,0,0,1"


class Files:
    """What tests do to files."""

    @staticmethod
    def save(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    @staticmethod
    def truncate(path: Path) -> None:
        """Cut a file in the middle, as a full disk does."""
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    @staticmethod
    def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def files() -> type[Files]:
    return Files


@pytest.fixture
def triplets(tmp_path: Path) -> Data:
    """Four training triplets of two cities in the Cityscapes layout, with masks and roads, at the networks' size."""
    frames = ["b/b_000000_000001", "a/a_000000_000010", "a/a_000000_000009", "a/a_000001_000000"]
    (tmp_path / "splits").mkdir()
    lines = [" ".join(frame.split("/")) for frame in frames]
    (tmp_path / "splits" / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "splits" / "val.txt").write_text(lines[0] + "\n")
    for seed, frame in enumerate(frames):
        Files.save(tmp_path / "triplets" / f"{frame}.png", Files.noise(HEIGHT, 3 * WIDTH, seed))
        (tmp_path / "triplets" / f"{frame}_cam.txt").write_text(K_TEXT)
        Files.save(tmp_path / "road_masks" / "train" / f"{frame}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
        for i in range(2):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[2 * i + 1, 3] = 255
            Files.save(tmp_path / "masks" / "train" / frame / f"{i}.png", mask)
    return Data(root=tmp_path, size=(HEIGHT, WIDTH))


@pytest.fixture
def sequence(tmp_path: Path) -> Callable[..., Data]:
    """Eight frames, each of one grey level (10 times its number), with depth of as many metres."""
    for number in range(8):
        Files.save(tmp_path / "images" / f"{number:04d}.png", np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
        Files.save(tmp_path / "depth" / f"{number:04d}.png", np.full((HEIGHT, WIDTH), 256 * number, np.uint16))

    def config(**keys: object) -> Data:
        given = {"images": "images", "depth": "depth", "intrinsics": (12.5, 11.5, 8.25, 4.5), "size": (HEIGHT, WIDTH)}
        return Data(kind="sequence", root=tmp_path, **(given | keys))  # type: ignore[arg-type]

    return config


@pytest.fixture
def ground_truth(triplets: Data) -> Data:
    """Evaluation files of one frame: the full image is 13 rows high, of which three quarters (10) are kept."""
    root, frame, full = triplets.root, "b/b_000000_000001", 13
    Files.save(root / "leftImg8bit" / "val" / f"{frame}_leftImg8bit.png", Files.noise(full, WIDTH, 7))
    camera = root / "camera" / "val" / f"{frame}_camera.json"
    camera.parent.mkdir(parents=True)
    camera.write_text(json.dumps({"intrinsic": {"fx": 12.5, "fy": 11.5, "u0": 8.25, "v0": 4.5}}))
    (root / "val_gt_depths").mkdir()
    np.save(root / "val_gt_depths" / "b_000000_000001.npy", np.full((full, WIDTH), 5, np.float32))
    (root / "val_mask_class" / frame).mkdir(parents=True)
    (root / "val_mask_class" / frame / "labels.txt").write_text("car\n")
    return triplets
