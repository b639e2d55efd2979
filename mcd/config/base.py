"""What all sections of a config share: their base, the names of the stages, and the kinds of numbers."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

StageName = Literal[
    "scene",
    "predictions",
    "ground",
    "slots",
    "detector",
    "segment",
    "proposals",
    "instances",
    "object",
    "scale",
    "pseudo",
    "final",
    "control",
]
STAGES: tuple[StageName, ...] = get_args(StageName)
MASKED_STAGES: tuple[StageName, ...] = ("scene", "instances", "object", "scale", "pseudo", "final")
"""The variant whose masks come with the data."""

# Numbers beyond a billion mean nothing here, and products of two still fit into 64 bits.
MOST = 10**9

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
Weight = Annotated[float, Field(ge=0, le=MOST)]
Moment = Annotated[float, Field(ge=0, le=MOST)]
"""A time of a schedule, in the unit of its length."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Side = Annotated[int, Field(ge=1, le=8192)]
"""Height or width of what a net sees."""
Pixels = Annotated[float, Field(ge=0, le=512)]
"""A length in images of a width of 512."""
FieldOfView = Annotated[float, Field(ge=1, lt=180)]
"""Degrees, of a pinhole camera."""
Focal = Annotated[float, Field(ge=1, le=MOST)]
"""Pixels."""
Pixel = Annotated[float, Field(ge=-MOST, le=MOST)]
"""A place in a picture, or beside it."""
Coefficient = Annotated[float, Field(ge=-1e3, le=1e3)]
"""Of a lens: far beyond any that was made, and no power of a ray overflows."""
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
"""What torch takes."""


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"the first number, {limits[0]:g}, must not be above the second, {limits[1]:g}")
    return limits


Range = Annotated[tuple[Weight, Weight], AfterValidator(_ordered)]
_Turn = Annotated[float, Field(ge=-0.5, le=0.5)]
HueRange = Annotated[tuple[_Turn, _Turn], AfterValidator(_ordered)]
"""Shares of the colour circle."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
