"""What a config says of its networks: one by name for each role."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mcd.config.base import Section


class Nets(Section):
    depth: str = "light"
    pose: str = "light"
    motion: str = "light"
    scale: str = "light"
    slots: str = Field("light", description="light or published")
    ground: str = Field("light", description="light, full, or published (one resolution only)")
    detector: str = Field("light", description="light or resnet18")
    segmenter: str = Field("resnet50_v2", description="resnet50_v2 (torchvision's, with COCO weights) or light")
    camera: Literal["pinhole"] = Field("pinhole", description="what data.intrinsics: learn learns")
    pretrained: bool = Field(False, description="start backbones from ImageNet weights")
    positive_scale: bool = Field(True, description="scale net cannot go negative; False: the published linear output")
