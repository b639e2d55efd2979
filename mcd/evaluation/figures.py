"""Figures that a run has written down, ``metrics.json`` and the ``done.json`` of its stages, read back and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mcd.evaluation.metrics import METRICS
from mcd.files import DataError, read_json


def _complete(figures: dict[str, float]) -> dict[str, float]:
    missing = [name for name in METRICS if name not in figures]
    if missing:
        raise ValueError(f"'{missing[0]}' is missing")
    return figures


Metrics = Annotated[dict[str, float], AfterValidator(_complete)]
Regions = dict[str, dict[str, float]]
"""Metrics by region of the image."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Camera(_Document):
    fx: float
    fy: float
    fx_spread: float
    fy_spread: float


class _Figures(_Document):
    stages: dict[str, dict[str, Metrics]] = {}
    objects: Metrics | None = None
    discovery: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    milliseconds_per_frame: dict[str, float] = {}
    warnings: list[str] = []
    contact: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    """By stage, source and group."""
    camera: _Camera | None = None


class _Facts(_Document):
    seconds: float | None = None
    frames: int | None = None
    peak_bytes: int | None = None
    metrics: dict[str, Metrics] = {}
    discovery: dict[str, float] = {}


def read_figures(path: Path) -> dict[str, Any]:
    """A ``metrics.json``; empty where there is none.

    Raises:
        DataError: it is broken; the message names the file and the key.
    """
    return _checked(_Figures, "metrics", path)


def read_facts(path: Path) -> dict[str, Any]:
    """What a finished stage left in its ``done.json``; empty where there is none.

    Raises:
        DataError: it is broken; the message names the file and the key.
    """
    return _checked(_Facts, "facts of a stage", path)


def _checked(kind: type[BaseModel], what: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document = read_json(what, path)
    try:
        kind.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{what} {path}: '{key}': {problem['msg']}") from None
    return document
