"""What a config says of its data: where they are, the camera that took them, and how they are varied."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mcd.config.base import (
    Coefficient,
    Count,
    FieldOfView,
    Focal,
    Fraction,
    HueRange,
    Pixel,
    Positive,
    Range,
    Section,
    Seed,
    Side,
    Whole,
)


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
    intrinsics: tuple[Focal, Focal, Pixel, Pixel] | Literal["learn"] | None = Field(
        None,
        description="sequence: fx, fy, cx, cy in pixels of the original frames; learn: found by the scene stage, which "
        "starts from data.fov",
    )
    fov: FieldOfView | None = Field(None, description="sequence: horizontal field of view in degrees, if no intrinsics")
    camera: Literal["pinhole", "fisheye"] = Field(
        "pinhole", description="sequence: the lens that data.distortion is of, in OpenCV's terms"
    )
    distortion: tuple[Coefficient, ...] | None = Field(
        None,
        description="sequence: OpenCV's k1, k2, p1, p2, k3 (pinhole) or k1 … k4 (fisheye); frames are undistorted when "
        "they are read, and have data.intrinsics then",
    )
    crop: tuple[Fraction, Fraction, Fraction, Fraction] | None = Field(
        None, description="sequence: top, bottom, left, right of what is used of every frame, as shares of it"
    )
    own_mask: Path | Literal["find"] | None = Field(
        None,
        description="sequence: mask of what stays in the picture, such as the bonnet: a PNG, below root; find: found "
        "over the clip; null: none",
    )
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
    cache: Path | None = Field(
        None,
        description="folder of the pictures at 'size', which 'mcd prepare cache' makes and which are read at once",
    )
    fill_cache: bool = Field(False, description="pictures that data.cache lacks are added to it while they are read")

    @model_validator(mode="after")
    def _cache(self) -> Data:
        if self.fill_cache and self.cache is None:
            raise ValueError("'fill_cache' fills the folder of 'cache': give it")
        return self

    @model_validator(mode="after")
    def _camera(self) -> Data:
        sequence_alone = ("intrinsics", "distortion", "crop", "own_mask", "poses")
        given = [name for name in sequence_alone if getattr(self, name) is not None]
        if given and self.kind != "sequence":
            raise ValueError(f"'{given[0]}' is for data of kind sequence, not {self.kind}")
        if self.intrinsics == "learn" and self.fov is None:
            raise ValueError("'intrinsics: learn' starts from a field of view: give 'fov' in degrees, such as 70")
        wanted = 5 if self.camera == "pinhole" else 4
        if self.distortion is not None and len(self.distortion) != wanted:
            raise ValueError(f"'distortion' of a {self.camera} camera has {wanted} numbers, not {len(self.distortion)}")
        if self.camera == "fisheye" and self.distortion is None:
            raise ValueError("'camera: fisheye' needs its four 'distortion' numbers (zeros: an equidistant lens)")
        if self.distortion is not None and (self.intrinsics is None or self.intrinsics == "learn"):
            raise ValueError("'distortion' belongs to the 'intrinsics' of its calibration: give both")
        if self.crop is not None and not (self.crop[0] < self.crop[1] and self.crop[2] < self.crop[3]):
            raise ValueError(f"'crop' is top, bottom, left, right with top above bottom and left of right: {self.crop}")
        return self


class Augment(Section):
    flip: Fraction = Field(0.5, description="probability of a left-right flip")
    jitter: Fraction = Field(0.5, description="probability of colour jitter")
    brightness: Range = (0.8, 1.2)
    contrast: Range = (0.8, 1.2)
    saturation: Range = (0.8, 1.2)
    hue: HueRange = (-0.1, 0.1)
