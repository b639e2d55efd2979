"""What the self-supervised losses weigh."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mcd.config.base import Fraction, Section, Weight
from mcd.ops.photometric_error import C1, C2, L1_WEIGHT, SSIM_WEIGHT, check_photometric_weights


class Photometric(Section):
    """Weights of the self-supervised losses."""

    ssim: float = SSIM_WEIGHT
    l1: float = L1_WEIGHT
    c1: Annotated[float, Field(allow_inf_nan=True)] = C1
    c2: float = C2
    scales: Annotated[int, Field(ge=1, le=4)] = 4
    smoothness: Weight = 0.002
    sparsity: Weight = 0.02
    road: Weight = Field(
        0.0, description="weight of depth beyond the road plane, for cameras that look along a road; 0: published"
    )
    start: Weight = Field(
        0.0,
        description="weight of depth that leaves that of the net in 'init' where motion does not tell it, for clips in "
        "which things move along; 0: published",
    )
    start_share: Fraction = Field(0.1, description="share of it where motion tells depth")
    start_evidence: float = Field(
        -0.03,
        description="motion tells depth unless its photometric error is higher by so much (below 0) than that of a "
        "world at infinity; above 0: only where it is lower",
    )
    start_travel: Weight = Field(
        0.0,
        description="motion tells depth only between frames whose camera moved so far, in the unit of depth (the "
        "start's: about the height of the camera)",
    )
    mask_invalid: bool = Field(True, description="pixels that leave the frame take no part; False: published")

    @model_validator(mode="after")
    def _as_the_operator_takes_it(self) -> Photometric:
        check_photometric_weights("loss", self.ssim, self.l1, self.c1, self.c2)
        return self
