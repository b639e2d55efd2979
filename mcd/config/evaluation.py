"""What a config says of the evaluation: on which frames, inside which crop, and what else is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mcd.config.base import Count, Fraction, Positive, Section


class Evaluation(Section):
    protocol: Literal["cityscapes", "kitti"] = "cityscapes"
    split: Literal["val", "test"] = "val"
    min_depth: Positive = 1e-3
    max_depth: Positive = 80.0
    keep_rows: Fraction = Field(0.75, description="cityscapes: upper share of the full image that is kept")
    crop: tuple[Fraction, Fraction, Fraction, Fraction] | None = Field(
        None, description="top, bottom, left, right as shares of the kept image; None: the protocol's own"
    )
    min_mask_area: Fraction = Field(0.005, description="cityscapes: smallest object mask, share of the full image")
    scale: Literal["median", "none", "height", "poses"] = Field(
        "median",
        description="what puts predictions into metres: the ratio of each image's medians (published), nothing, "
        "data.camera_height, or data.poses",
    )
    improved: Path | None = Field(
        None,
        description="kitti: folder of the improved ground truth (data_depth_annotated), which counts instead of the "
        "LiDAR points; the whole image then, unless a crop is given",
    )
    masks: Path | None = Field(
        None,
        description="kitti, sequence: folder of masks of moving objects, FRAME.png or FRAME/NUMBER.png: what is not 0 "
        "moves",
    )
    boxes: Path | None = Field(
        None,
        description="sequence: CSV of boxes of vehicles: frame, x0, y0, x1, y1 and, if known, moving",
    )
    batch: Count = 8

    @model_validator(mode="after")
    def _leaves_something(self) -> Evaluation:
        if self.min_depth >= self.max_depth:
            raise ValueError(f"'min_depth', {self.min_depth:g}, must lie below 'max_depth', {self.max_depth:g}")
        if self.keep_rows == 0:
            raise ValueError("'keep_rows' must not be 0: nothing would be kept")
        if self.crop is not None and not (self.crop[0] < self.crop[1] and self.crop[2] < self.crop[3]):
            raise ValueError(f"'crop' is top, bottom, left, right, the smaller ones first, not {list(self.crop)}")
        return self
