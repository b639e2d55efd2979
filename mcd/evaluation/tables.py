"""Figures as tables: for people, and as lines of a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from mcd.evaluation.metrics import METRICS
from mcd.evaluation.protocol import REGIONS, Regions

ROW_MEDIAN = "row_median"
WHOLE = ("scene", "pseudo", "final", "control", ROW_MEDIAN)
"""Whose depth of whole images is evaluated, as they are shown: stages, and a baseline."""

DISCOVERY = {"precision": ".3f", "recall": ".3f", "found": ".0f", "moving": ".0f", "iou": ".3f"}
"""Figures of what a run discovered, and how they are written."""


@dataclass(frozen=True)
class Result:
    """Figures of one stage of one place."""

    place: str
    stage: str
    regions: Regions


def to_csv(results: Sequence[Result]) -> str:
    """One line for each place, stage and region."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["place", "stage", "region", *METRICS])
    for result in results:
        for region, metrics in result.regions.items():
            writer.writerow([result.place, result.stage, region, *(metrics[name] for name in METRICS)])
    return text.getvalue()


def to_table(results: Sequence[Result]) -> Table:
    """Results by region, so that stages and places stand below one another; the lowest abs_rel is bold."""
    several = len({result.place for result in results}) > 1
    table = Table(box=box.SIMPLE, padding=0)
    for name in ["region", *(["place"] if several else []), "stage"]:
        table.add_column(name, no_wrap=True)
    for name in METRICS:
        table.add_column(name, justify="right")
    for region in REGIONS:
        rows = [result for result in results if region in result.regions]
        best = min((result.regions[region]["abs_rel"] for result in rows), default=math.nan)
        for number, result in enumerate(rows):
            metrics = result.regions[region]
            first = [region if number == 0 else "", *([result.place] if several else []), result.stage]
            style = "bold" if metrics["abs_rel"] == best and len(rows) > 1 else ""
            table.add_row(*first, *(f"{metrics[name]:.3f}" for name in METRICS), style=style)
        if rows:
            table.add_section()
    return table


def scale_lines(results: Sequence[Result]) -> list[str]:
    """What put depth into metres, a line for each result that has it."""
    return [
        f"{result.place} {result.stage}: {result.regions['all']['scale']:.4g} metres a unit, scatter over the images "
        f"{100 * result.regions['all']['scale_scatter']:.1f} %"
        for result in results
        if "scale" in result.regions.get("all", {})
    ]


def discovery_table(discovery: Mapping[str, Mapping[str, float]]) -> Table:
    """What a run without given masks found of what moves: see :mod:`mcd.evaluation.discovery`."""
    table = Table(box=box.SIMPLE, padding=0, title="discovered on held-out frames, at an overlap of one half")
    table.add_column("", no_wrap=True)
    for name in DISCOVERY:
        table.add_column(name, justify="right")
    for stage, figures in discovery.items():
        cells = (f"{figures[name]:{digits}}" if name in figures else "" for name, digits in DISCOVERY.items())
        table.add_row(stage, *cells)
    return table
