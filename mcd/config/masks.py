"""What a config says of masks that are not learned: which are found, which of them move, what is made of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mcd.config.base import Count, Fraction, Positive, Section, Side, Weight


class Segment(Section):
    """Objects by what they look like, from a segmenter that was trained elsewhere."""

    batch: Count = 2
    weights: Path | None = Field(
        None,
        description="state dict of the net, as torchvision publishes it; null: its COCO weights, fetched once",
    )
    classes: tuple[str, ...] = Field(
        ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck"),
        min_length=1,
        description="what is looked for, by COCO's names",
    )
    score: Fraction = Field(0.5, description="objects have at least this score")
    side: Side = Field(
        800,
        description="frames are brought to this shorter side for the segmenter; 800: as its weights were trained, less "
        "is faster and misses what is far",
    )


class Proposals(Section):
    """Objects by what stands on the road and how it moves, without a network that finds them."""

    batch: Count = 8
    init: Path | None = Field(
        None,
        description="run, stage folder or weights file whose depth and pose nets say what stands and how the camera "
        "moves, such as start, which has not unlearned what moves along; null: those of the scene stage",
    )
    above: Weight = Field(0.12, description="height above the road of what stands, in heights of the camera")
    tallest: Positive = Field(3.5, description="of objects above the road, in heights of the camera")
    farthest: Positive = Field(60.0, description="objects are nearer, in heights of the camera")
    along: float = Field(
        0.35, description="share of the flow of a static world that is seen, below which something moves along"
    )
    towards: Positive = Field(3.0, description="share of it above which something comes towards the camera")
    still: Fraction = Field(
        0.7, description="share of it above which something stands still, up to the inverse of this share"
    )
    lowest: Weight = Field(0.5, description="of objects above the road, in heights of the camera")
    widest: Positive = Field(8.0, description="of objects, in heights of the camera")
    share: Fraction = Field(0.5, description="share of an object that moves, or stands still")
    fill: Fraction = Field(0.5, description="share of its box that an object fills")
    contrast: Fraction = Field(0.12, description="what is around an object is by this share of its depth behind it")
    min_area: Fraction = Field(0.001, description="smallest object, share of the image")


class InstancesStage(Section):
    """Which masks move, and where they are in the neighbouring frames."""

    batch: Count = 8
    flow_threshold: Positive = Field(1.0, description="pixels at a width of 512")
    coverage: Fraction = Field(0.5, description="share of a mask that must move")
    middle: Count | None = Field(20, description="masks in the central 1/k of the columns count as dynamic; None: off")
    min_area: Fraction = Field(0.005, description="smallest mask, share of the image")
    tracks: bool = Field(
        False,
        description="sequence: masks are followed from frame to frame, and what moves is decided for all frames of an "
        "object; False, published: for each by itself",
    )
    persist: Count = Field(1, description="with tracks: an object is seen in at least so many frames")


class Pseudo(Section):
    """Pseudo depth, of moving objects in the scene."""

    batch: Count = 16
    contact: Fraction | None = Field(
        None,
        description="an object keeps one scale to the ground at its foot, the median of its frames (with "
        "instances.tracks), and no farther from 1 than this; null, published: the scale net's in each frame",
    )
