"""Figures as tables: for people, as lines of a CSV file, and for LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from mcd.evaluation import bootstrap
from mcd.evaluation.bootstrap import Difference, Interval
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
    frames: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Metrics by region and frame, where they are known."""
    clip: bool = False
    """Whether the frames are consecutive, so that neighbours say the same."""

    def intervals(self, region: str) -> dict[str, Interval]:
        """By metric; empty where figures of single frames are not known, or are too few."""
        return bootstrap.intervals(self.frames.get(region, {}), clip=self.clip)

    def over(self, other: Result, region: str, metric: str = "abs_rel") -> Difference | None:
        """How much larger a metric is than the other's, paired over the frames that both have."""
        rows = [result.frames.get(region, {}) for result in (self, other)]
        return bootstrap.difference(rows[0], rows[1], metric, clip=self.clip)


def best_of(results: Sequence[Result], region: str) -> Result | None:
    """The result whose abs_rel in a region is lowest."""
    return min(
        (result for result in results if region in result.regions),
        key=lambda result: result.regions[region]["abs_rel"],
        default=None,
    )


def to_csv(results: Sequence[Result], *, with_intervals: bool = False) -> str:
    """One line for each place, stage and region; with the ends of the interval of every metric, if asked."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{name}_{end}" for name in METRICS for end in ("low", "high")] if with_intervals else []
    writer.writerow(["place", "stage", "region", *METRICS, *(["frames"] if with_intervals else []), *ends])
    for result in results:
        for region, metrics in result.regions.items():
            line: list[Any] = [result.place, result.stage, region, *(metrics[name] for name in METRICS)]
            if with_intervals:
                found = result.intervals(region)
                line.append(len(result.frames.get(region, {})) or "")
                line += [end for name in METRICS for end in found.get(name, ("", ""))]
            writer.writerow(line)
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


def intervals_table(results: Sequence[Result]) -> Table | None:
    """The interval of abs_rel, and how far it is above the best, by region; None where no frames are known."""
    rows = list(_compared(results))
    if not rows:
        return None
    several = len({result.place for result in results}) > 1
    table = Table(
        box=box.SIMPLE,
        padding=0,
        title=f"abs_rel with its {100 * bootstrap.LEVEL:.0f} % interval, and above the best of its region",
    )
    for name in ["region", *(["place"] if several else []), "stage"]:
        table.add_column(name, no_wrap=True)
    for name in ("n", "abs_rel", "interval", "above", "interval", "real"):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for region, result, (low, high), above in rows:
        if before not in ("", region):
            table.add_section()
        first = [region if region != before else "", *([result.place] if several else []), result.stage]
        before = region
        cells = ["", "", ""] if above is None else [f"{above.mean:+.4f}", _range(above.interval), _verdict(above)]
        frames = str(len(result.frames[region]))
        table.add_row(*first, frames, f"{result.regions[region]['abs_rel']:.3f}", f"{low:.3f}-{high:.3f}", *cells)
    return table


def _compared(results: Sequence[Result]) -> Iterator[tuple[str, Result, Interval, Difference | None]]:
    for region in REGIONS:
        best = best_of(results, region)
        for result in results:
            interval = result.intervals(region).get("abs_rel")
            if best is not None and interval is not None:
                yield region, result, interval, None if result is best else result.over(best, region)


def _range(interval: Interval) -> str:
    return f"{interval[0]:+.4f}..{interval[1]:+.4f}"


def _verdict(above: Difference) -> str:
    return "yes" if above.real else "no"


def to_latex(results: Sequence[Result]) -> str:
    """A table of booktabs: the best of every metric and region bold, what is not really worse underlined."""
    several = len({result.place for result in results}) > 1
    lower = METRICS[:4]
    heads = {"abs_rel": "Abs Rel", "sq_rel": "Sq Rel", "rmse": "RMSE", "rmse_log": "RMSE log"}
    heads |= {f"a{k}": rf"$\delta < 1.25{'' if k == 1 else f'^{k}'}$" for k in (1, 2, 3)}
    names = ["Region", *(["Method"] if several else []), "Stage"]
    lines = [
        "% \\usepackage{booktabs}. Bold: best. Underlined: its difference from the best is not real (95 %, paired"
        " bootstrap over frames).",
        rf"\begin{{tabular}}{{{'l' * len(names)}{'r' * len(METRICS)}}}",
        r"\toprule",
        " & ".join([*names, *(rf"{heads[m]} {_arrow(m in lower)}" for m in METRICS)]) + r" \\",
    ]
    for region in REGIONS:
        rows = [result for result in results if region in result.regions]
        if rows:
            lines.append(r"\midrule")
        best = {m: _best(rows, region, m, lowest=m in lower) for m in METRICS if rows}
        for number, result in enumerate(rows):
            first = [region if number == 0 else "", *([result.place] if several else []), result.stage]
            cells = [_latex_cell(result, best[m] if len(rows) > 1 else None, region, m) for m in METRICS]
            lines.append(" & ".join([*map(_escaped, first), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _best(results: Sequence[Result], region: str, metric: str, lowest: bool) -> Result:
    def figure(result: Result) -> float:
        return result.regions[region][metric]

    return min(results, key=figure) if lowest else max(results, key=figure)


def _arrow(down: bool) -> str:
    return r"$\downarrow$" if down else r"$\uparrow$"


def _latex_cell(result: Result, best: Result | None, region: str, metric: str) -> str:
    text = f"{result.regions[region][metric]:.3f}"
    if result is best:
        return rf"\textbf{{{text}}}"
    above = None if best is None else result.over(best, region, metric)
    return rf"\underline{{{text}}}" if above is not None and not above.real else text


def _escaped(text: str) -> str:
    return "".join(rf"\{sign}" if sign in "_%&#$" else sign for sign in text)


def figures_table(title: str, figures: Mapping[str, Mapping[str, float]], digits: str = ".3f") -> Table:
    """Figures by name, such as those of trajectories, a row for each place and stage."""
    table = Table(box=box.SIMPLE, padding=0, title=title)
    table.add_column("", no_wrap=True)
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    for name in names:
        table.add_column(name, justify="right")
    for place, row in figures.items():
        table.add_row(place, *(_figure(row[name], digits) if name in row else "" for name in names))
    return table


def _figure(value: float, digits: str) -> str:
    return str(value) if isinstance(value, int) else f"{value:{digits}}"


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
