"""A page that shows a run: ``python -m mcd.report RUN`` writes RUN/report.html, which needs no other file.

Figures, pictures of held-out frames, loss curves, times, config and environment; what a run has not got is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from mcd.config import STAGES, Config, load_config
from mcd.errors import McdError
from mcd.evaluation.discovery import discovery_steps, why_little_was_found
from mcd.evaluation.figures import read_figures
from mcd.evaluation.metrics import METRICS
from mcd.evaluation.protocol import REGIONS
from mcd.evaluation.tables import DISCOVERY, WHOLE
from mcd.files import read_json, reading, write_text
from mcd.report.charts import COLOURS, line_chart
from mcd.report.gallery import Gallery, picture_source
from mcd.report.own_vehicle import own_vehicle_gallery
from mcd.report.pictures import depth_gallery, depth_panel, detection_gallery, motion_gallery, slots_gallery
from mcd.training.profiling import PHASES

Logs = Mapping[str, Sequence[Mapping[str, float]]]
"""Rows of the log of each stage; a row holds what was written at its step."""
Draw = Callable[[Config, Path], Gallery | None]

PANELS: dict[str, tuple[Draw, str, str]] = {
    "panel": (depth_panel, "one picture of a few frames", "no stage with a depth net"),
    "motion": (motion_gallery, "one picture of what moves by itself", "no net of residual motion"),
    "objects": (
        detection_gallery,
        "one picture of the objects found",
        "no stage that finds objects",
    ),
}
"""Options of the command line: what each draws, its help, and what a run lacks that has nothing to draw."""


def write_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` of a run; returns its path.

    Raises:
        ConfigError: the run has no readable config.yaml.
        DataError: its figures, logs or environment are broken; the message names the file.
    """
    run_folder = Path(run_folder)
    config = load_config(run_folder / "config.yaml")
    metrics = read_figures(run_folder / "metrics.json")
    logs: Logs = {stage: rows for stage in STAGES if (rows := _read_log(run_folder / "log", stage))}
    about = run_folder / "env.json"
    environment = read_json("environment", about) if about.is_file() else {}
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
    templates = Environment(
        loader=PackageLoader("mcd.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["source"] = picture_source
    page = templates.get_template("page.html").render(
        title=run_folder.absolute().name,
        facts=[fact for fact in facts if fact],
        warnings=metrics.get("warnings", ()),
        depth=_depth_figures(metrics),
        contact=metrics.get("contact", {}),
        own_vehicle=_drawn(own_vehicle_gallery, config, run_folder),
        depth_pictures=_drawn(depth_gallery, config, run_folder),
        motion_pictures=_drawn(motion_gallery, config, run_folder),
        discovery=_discovery(run_folder, metrics.get("discovery", {})),
        slots_pictures=_drawn(slots_gallery, config, run_folder),
        detection_pictures=_drawn(detection_gallery, config, run_folder),
        curves={stage: list(_curves(rows)) for stage, rows in logs.items()},
        phases=dict(zip(PHASES, COLOURS, strict=False)),
        times=list(_times(metrics, logs)),
        seconds=sum(metrics.get("seconds", {}).values()),
        config=(run_folder / "config.yaml").read_text(),
        environment=json.dumps(environment, indent=2),
    )
    path = run_folder / "report.html"
    write_text(path, page)
    return path


def _depth_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of depth, and the errors of the headline; empty where nothing was evaluated."""
    stages = metrics.get("stages", {})
    if not stages:
        return {}
    moving = {stage: regions["dynamic"]["abs_rel"] for stage, regions in stages.items() if "dynamic" in regions}
    regions = [region for region in REGIONS if any(region in found for found in stages.values())]
    tables = {"short": _table(stages, regions, ("abs_rel", "a1")), "full": _table(stages, regions, METRICS)}
    if metrics.get("objects"):
        tables["objects"] = _table({"object": {"objects": metrics["objects"]}}, ["objects"], METRICS)
    return {"moving": moving if "final" in moving and moving.get("scene", 0) > 0 else {}, **tables}


def _table(stages: Mapping[str, Any], regions: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """A row a stage, of figures and whether each is the best of several; a column a region and metric."""
    shown = [stage for stage in (*WHOLE, "object") if stage in stages]
    rows: dict[str, list[tuple[float | None, bool]]] = {stage: [] for stage in shown}
    for region in regions:
        for metric in metrics:
            values = {stage: stages[stage][region][metric] for stage in shown if region in stages[stage]}
            best = (max if metric in ("a1", "a2", "a3") else min)(values.values())
            for stage, row in rows.items():
                row.append((values.get(stage), values.get(stage) == best and len(shown) > 1))
    return {"regions": regions, "metrics": metrics, "rows": rows}


def _drawn(draw: Draw, config: Config, run_folder: Path) -> Gallery | str | None:
    """The pictures, or why there are none; None for a run that has nothing to do with them."""
    try:
        return draw(config, run_folder)
    except (McdError, ValueError, OSError) as error:
        return str(error)


def _discovery(run_folder: Path, figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Figures and steps of a run that found its masks itself; empty for another."""
    steps = discovery_steps(run_folder)
    rows = {
        stage: [f"{found[name]:{digits}}" if name in found else "" for name, digits in DISCOVERY.items()]
        for stage, found in figures.items()
    }
    return {"steps": steps, "failure": why_little_was_found(steps), "names": DISCOVERY, "rows": rows} if steps else {}


def _curves(rows: Sequence[Mapping[str, float]]) -> Iterator[Markup]:
    """A chart for every loss term of a stage."""
    other = {"step", "seconds", "images_per_s", "lr", "validation", *PHASES}

    def line(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    for term in dict.fromkeys(name for row in rows for name in row if name not in other):
        validation = {"validation": line("validation")} if term == "total" else {}
        yield line_chart(term.replace("_", " "), {"training": line(term)} | validation)


def _times(metrics: Mapping[str, Any], logs: Logs) -> Iterator[dict[str, Any]]:
    """What each stage took, and the mean milliseconds of the phases of its steps."""
    seconds, per_frame = metrics.get("seconds", {}), metrics.get("milliseconds_per_frame", {})
    for stage in STAGES:
        # The first interval holds warm-up.
        timed = [row for row in logs.get(stage, ()) if "forward" in row]
        timed = timed[1:] or timed
        mean = {name: fmean(row.get(name, 0.0) for row in timed) for name in (*PHASES, "images_per_s")} if timed else {}
        if stage in seconds or stage in logs:
            yield {
                "stage": stage,
                "seconds": seconds.get(stage),
                "frame": per_frame.get(stage),
                "step": sum(mean[phase] for phase in PHASES) if mean else 0.0,
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="mcd report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    for name, (_, text, _) in PANELS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PNG", help=f"write only {text}")
    options = parser.parse_args(arguments)
    try:
        wanted = next((name for name in PANELS if getattr(options, name)), None)
        if wanted is None:
            print(write_report(options.run))
            return 0
        draw, _, missing = PANELS[wanted]
        gallery = draw(load_config(options.run / "config.yaml"), options.run)
        if gallery is None:
            raise ValueError(f"{options.run} has {missing}")
        gallery.write(getattr(options, wanted))
        print(getattr(options, wanted))
    except (McdError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
