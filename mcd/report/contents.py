"""What a run has to show: figures, pictures, loss curves, times, config and environment, as far as it has got them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from mcd.config import STAGES, Config, load_config
from mcd.errors import McdError
from mcd.evaluation.discovery import discovery_steps, why_little_was_found
from mcd.evaluation.figures import read_figures
from mcd.evaluation.metrics import METRICS
from mcd.evaluation.protocol import REGIONS
from mcd.evaluation.tables import DISCOVERY, WHOLE
from mcd.files import read_json, reading
from mcd.report.changes import changes_gallery
from mcd.report.charts import line_chart
from mcd.report.gallery import Gallery
from mcd.report.own_vehicle import own_vehicle_gallery
from mcd.report.pictures import depth_gallery, detection_gallery, motion_gallery, slots_gallery
from mcd.report.view import view_of
from mcd.training.profiling import GRAPH, PHASES

Logs = Mapping[str, Sequence[Mapping[str, float]]]
"""Rows of the log of each stage; a row holds what was written at its step."""

GALLERIES: dict[str, Callable[[Config, Path], Gallery | None]] = {
    "changes": changes_gallery,
    "own_vehicle": own_vehicle_gallery,
    "depth_pictures": depth_gallery,
    "motion_pictures": motion_gallery,
    "slots_pictures": slots_gallery,
    "detection_pictures": detection_gallery,
}


def contents(run_folder: Path, title: str, points: int) -> dict[str, Any]:
    """What the page shows of a run, by name; ``points`` is how many its 3-D view may have.

    Raises:
        ConfigError: the run has no readable config.yaml.
        DataError: its figures, logs or environment are broken; the message names the file.
    """
    config = load_config(run_folder / "config.yaml")
    metrics = read_figures(run_folder / "metrics.json")
    logs: Logs = {stage: rows for stage in STAGES if (rows := _read_log(run_folder / "log", stage))}
    about = run_folder / "env.json"
    environment = read_json("environment", about) if about.is_file() else {}
    stages = {stage: found for stage in WHOLE if (found := metrics.get("stages", {}).get(stage))}
    return {
        "title": title,
        "facts": _facts(config, metrics, environment),
        "warnings": metrics.get("warnings", ()),
        "view": drawn(view_of, config, run_folder, points),
        "stages": stages,
        "moving": _moving(stages),
        "objects": metrics.get("objects"),
        "contact": metrics.get("contact", {}),
        "discovery": _discovery(run_folder, metrics.get("discovery", {})),
        **{name: drawn(draw, config, run_folder) for name, draw in GALLERIES.items()},
        "logs": logs,
        "times": list(_times(metrics, logs)),
        "seconds": sum(metrics.get("seconds", {}).values()),
        "config": config,
        "config_text": (run_folder / "config.yaml").read_text(),
        "environment": json.dumps(environment, indent=2),
    }


def drawn(draw: Callable[..., Any], *arguments: Any) -> Any:
    """The pictures, or why there are none; None for a run that has nothing to do with them."""
    try:
        return draw(*arguments)
    except (McdError, ValueError, OSError) as error:
        return str(error)


def depth_tables(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables of depth, a row a stage and run; empty where nothing was evaluated."""

    def named(run: Mapping[str, Any], stage: str) -> str:
        return stage if len(runs) == 1 else f"{run['title']}: {stage}"

    stages = {named(run, stage): found for run in runs for stage, found in run["stages"].items()}
    objects = {named(run, "object"): {"objects": run["objects"]} for run in runs if run["objects"]}
    if not stages:
        return {}
    regions = [region for region in REGIONS if any(region in found for found in stages.values())]
    tables = {"short": _table(stages, regions, ("abs_rel", "a1")), "full": _table(stages, regions, METRICS)}
    return tables | ({"objects": _table(objects, ["objects"], METRICS)} if objects else {})


def curves(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Markup]]:
    """Charts of the loss terms by stage; the lines of several runs share a chart."""
    charts: dict[str, list[Markup]] = {}
    for stage in STAGES:
        logs = {run["title"]: run["logs"][stage] for run in runs if stage in run["logs"]}
        if logs:
            charts[stage] = list(_charts(logs, alone=len(runs) == 1))
    return charts


def _facts(config: Config, metrics: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    facts = [
        f"depth net {config.nets.depth}",
        f"{config.data.size[0]} x {config.data.size[1]} pixels",
        environment.get("gpu") or environment.get("processor"),
        f"commit {str(environment['commit'])[:10]}" if environment.get("commit") else None,
    ]
    if camera := metrics.get("camera"):
        facts.append(
            f"camera learned: fx {camera['fx']:.3f} ± {camera['fx'] * camera['fx_spread']:.3f} of the width, fy "
            f"{camera['fy']:.3f} ± {camera['fy'] * camera['fy_spread']:.3f} of the height"
        )
    return [fact for fact in facts if fact]


def _moving(stages: Mapping[str, Any]) -> dict[str, float]:
    """The errors of the headline by stage; empty where they cannot be compared."""
    moving = {stage: regions["dynamic"]["abs_rel"] for stage, regions in stages.items() if "dynamic" in regions}
    return moving if "final" in moving and moving.get("scene", 0) > 0 else {}


def _table(stages: Mapping[str, Any], regions: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """A row a stage, of figures and whether each is the best of several; a column a region and metric."""
    rows: dict[str, list[tuple[float | None, bool]]] = {stage: [] for stage in stages}
    for region in regions:
        for metric in metrics:
            values = {stage: found[region][metric] for stage, found in stages.items() if region in found}
            best = (max if metric in ("a1", "a2", "a3") else min)(values.values())
            for stage, row in rows.items():
                row.append((values.get(stage), values.get(stage) == best and len(rows) > 1))
    return {"regions": regions, "metrics": metrics, "rows": rows}


def _discovery(run_folder: Path, figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Figures and steps of a run that found its masks itself; empty for another."""
    steps = discovery_steps(run_folder)
    rows = {
        stage: [f"{found[name]:{digits}}" if name in found else "" for name, digits in DISCOVERY.items()]
        for stage, found in figures.items()
    }
    return {"steps": steps, "failure": why_little_was_found(steps), "names": DISCOVERY, "rows": rows} if steps else {}


def _charts(logs: Mapping[str, Sequence[Mapping[str, float]]], alone: bool) -> Iterator[Markup]:
    """A chart for every loss term of a stage, whose logs are by run."""
    other = {"step", "seconds", "images_per_s", "lr", "validation", "depth_spread", *PHASES, GRAPH}

    def line(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    for term in dict.fromkeys(name for rows in logs.values() for row in rows for name in row if name not in other):
        words = term.replace("_", " ")
        if alone:
            (rows,) = logs.values()
            validation = {"validation": line(rows, "validation")} if term == "total" else {}
            yield line_chart(words, {"training": line(rows, term)} | validation)
        else:
            yield line_chart(words, {run: line(rows, term) for run, rows in logs.items()})
            if term == "total":
                yield line_chart(f"{words}, validation", {run: line(rows, "validation") for run, rows in logs.items()})


def _times(metrics: Mapping[str, Any], logs: Logs) -> Iterator[dict[str, Any]]:
    """What each stage took, and the mean milliseconds of the phases of its steps."""
    seconds, per_frame = metrics.get("seconds", {}), metrics.get("milliseconds_per_frame", {})
    for stage in STAGES:
        # The first interval holds warm-up.
        timed = [row for row in logs.get(stage, ()) if "forward" in row]
        timed = timed[1:] or timed
        names = (*PHASES, GRAPH, "images_per_s")
        mean = {name: fmean(row.get(name, 0.0) for row in timed) for name in names} if timed else {}
        if stage in seconds or stage in logs:
            yield {
                "stage": stage,
                "seconds": seconds.get(stage),
                "frame": per_frame.get(stage),
                "step": sum(mean[phase] for phase in (*PHASES, GRAPH)) if mean else 0.0,
                "mean": mean,
            }


def _read_log(folder: Path, stage: str) -> list[dict[str, float]]:
    """The log of a stage; those of its rounds, if it has some, after one another."""
    rounds = sorted((folder / stage).glob("round_*.csv"), key=lambda path: int(path.stem.rpartition("_")[2]))
    rows: list[dict[str, float]] = []
    for path in (folder / f"{stage}.csv", *rounds):
        if path.is_file():
            first = rows[-1]["step"] if rows else 0
            with reading("log", path), path.open(newline="") as file:
                found = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
                rows += [row | {"step": row["step"] + first} for row in found]
    return rows
