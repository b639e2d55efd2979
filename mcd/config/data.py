"""What a config says of its data: where they are, the camera that took them, and how they are varied."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mcd.config.base import Count, Fraction, HueRange, Positive, Range, Section, Seed, Side, Whole


class Synthetic(Section):
    """Scenes to make with ``mcd.data.synthetic`` when ``data.root`` does not exist."""

    frames: Count = Field(640, description="training triplets")
    val_frames: Count = Field(80, description="held-out triplets")
    seed: Seed = 0


class Data(Section):
    kind: Literal["triplets", "sequence", "kitti"] = "triplets"
    root: Path = Field(Path("data/synthetic"), description="folder of the data set")
    size: tuple[Side, Side] = Field((64, 192), description="height and width that the networks see")
    synthetic: Synthetic | None = None
    masks: Path = Field(Path("masks"), description="triplets: instance masks, below root")
    road_masks: Path = Field(Path("road_masks"), description="triplets: road masks, below root")
    split_files: Path = Field(
        Path("splits"), description="kitti: folder of train_files.txt, val_files.txt and test_files.txt, below root"
    )
    images: Path = Field(Path(), description="sequence: folder of the frames, below root")
    depth: Path | None = Field(None, description="sequence: folder of 16-bit PNG depth (metres * 256), below root")
    calibration: Path | None = Field(None, description="sequence: KITTI calib_cam_to_cam.txt, below root")
    intrinsics: tuple[Positive, Positive, float, float] | None = Field(
        None, description="sequence: fx, fy, cx, cy in pixels of the original frames"
    )
    fov: Positive | None = Field(None, description="sequence: horizontal field of view in degrees, if no intrinsics")
    camera_height: Positive | None = Field(None, description="metres of the camera above the road, for metric depth")
    poses: Path | None = Field(
        None, description="sequence: CSV of a line a frame, with x, y, z in metres or latitude, longitude, altitude"
    )
    train_frames: tuple[Whole, Whole] | None = Field(None, description="sequence: first and last training frame")
    val_frames: tuple[Whole, Whole] | None = Field(
        None,
        description="sequence: first and last validation frame; without both ranges: the last tenth; without one, "
        "that split is everything",
    )
    eval_frames: tuple[Whole, Whole] | None = Field(None, description="sequence: first and last evaluated frame")
    spacing: tuple[Count, ...] = Field(
        (1,), min_length=1, description="sequence: frame distances to draw from while training"
    )
    bridge_gaps: bool = Field(False, description="sequence: frames are neighbours though their numbers leave a gap")
    half_pixel: bool = Field(True, description="K of a resized frame is exact; False: the published row scaling")
    on_error: Literal["stop", "skip"] = Field("stop", description="a corrupt or missing file stops, or is counted")
    workers: Whole = Field(2, description="loader processes, at most four a core")


class Augment(Section):
    flip: Fraction = Field(0.5, description="probability of a left-right flip")
    jitter: Fraction = Field(0.5, description="probability of colour jitter")
    brightness: Range = (0.8, 1.2)
    contrast: Range = (0.8, 1.2)
    saturation: Range = (0.8, 1.2)
    hue: HueRange = (-0.1, 0.1)
