"""A page that shows a run: ``python -m mcd.report RUN`` writes RUN/report.html, which needs no other file.

Figures, pictures of held-out frames, loss curves, times, config and environment; what a run has not got is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from mcd.config import STAGES, Config, ConfigError, load_config
from mcd.evaluation.discovery import discovery_steps, why_little_was_found
from mcd.evaluation.figures import read_figures
from mcd.evaluation.metrics import METRICS
from mcd.evaluation.protocol import REGIONS
from mcd.evaluation.tables import DISCOVERY, WHOLE
from mcd.files import DataError, read_json, reading, write_text
from mcd.report.charts import COLOURS, line_chart
from mcd.report.detection_pictures import detection_pictures, write_detection_panel
from mcd.report.pictures import discovery_pictures, frame_pictures, motion_pictures, write_motion_panel, write_panel
from mcd.run.checkpoint import CheckpointError
from mcd.training.profiling import PHASES

Logs = Mapping[str, Sequence[Mapping[str, float]]]
"""Rows of the log of each stage; a row holds what was written at its step."""


def write_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` of a run; returns its path.

    Raises:
        ConfigError: the run has no readable config.yaml.
        DataError: its figures, logs or environment are broken; the message names the file.
    """
    run_folder = Path(run_folder)
    config = load_config(run_folder / "config.yaml")
    metrics = read_figures(run_folder / "metrics.json")
    logs: Logs = {stage: _read_log(run_folder / "log", stage) for stage in STAGES}
    logs = {stage: rows for stage, rows in logs.items() if rows}
    environment = _read_json(run_folder / "env.json")
    sections = [
        _warnings(metrics),
        _figures(metrics),
        _contact(metrics.get("contact", {})),
        _pictures("Held-out frames", frame_pictures, config, run_folder),
        _pictures("What moves by itself", motion_pictures, config, run_folder),
        _discovery(run_folder, metrics.get("discovery", {})),
        _pictures("What the run found by itself", discovery_pictures, config, run_folder),
        _pictures("Moving objects, round by round", detection_pictures, config, run_folder),
        _curves(logs),
        _times(metrics, logs),
        _details("Config", (run_folder / "config.yaml").read_text()),
        _details("Environment", json.dumps(environment, indent=2)),
    ]
    title = escape(run_folder.absolute().name)
    facts = [
        f"depth net {config.nets.depth}",
        f"{config.data.size[0]} x {config.data.size[1]} pixels",
        environment.get("gpu") or environment.get("processor"),
        f"commit {environment['commit'][:10]}" if environment.get("commit") else None,
    ]
    subtitle = escape(" · ".join(str(fact) for fact in facts if fact))
    path = run_folder / "report.html"
    body = f"<h1>{title}</h1><p class=muted>{subtitle}</p>" + "".join(sections)
    write_text(path, _PAGE.format(title=title, style=_STYLE, body=body))
    return path


def _warnings(metrics: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in metrics.get("warnings", ()))
    return _section("What to look at first", f"<ul>{lines}</ul>") if lines else ""


def _figures(metrics: Mapping[str, Any]) -> str:
    stages = metrics.get("stages", {})
    if not stages:
        return _section("Depth against ground truth", "<p class=muted>Nothing was evaluated.</p>")
    regions = [region for region in REGIONS if any(region in stages[stage] for stage in stages)]
    shown = [stage for stage in WHOLE if stage in stages]
    short = _metric_table(stages, shown, regions, ("abs_rel", "a1"))
    full = _metric_table(stages, shown, regions, METRICS)
    objects = ""
    if "objects" in metrics:
        table = _metric_table({"object": {"objects": metrics["objects"]}}, ["object"], ["objects"], METRICS)
        objects = f"<p class=muted>The net of the object stage, each object alone and at its own scale:</p>{table}"
    return _section(
        "Depth against ground truth",
        f"{_headline(stages)}{short}<p class=muted>abs_rel: mean relative error, lower is better. a1: share of pixels "
        f"within a factor of 1.25, higher is better. standing: measured points 0.3 to 2.5 m above the road. row "
        f"median: a baseline that knows how far each row is, and nothing else.</p>"
        f"<details><summary>All metrics</summary>{full}{objects}</details>",
    )


def _contact(contact: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Whether what masks or boxes show stands on the road, by stage; "" for a run without either."""
    lines = ""
    for stage, sources in contact.items():
        for source, groups in sources.items():
            for group, f in groups.items():
                numbers = (
                    f"{f['count']:.0f}",
                    *(f"{f[n]:.2f} ({f[f'{n}_25']:.2f}&ndash;{f[f'{n}_75']:.2f})" for n in ("contact", "upright")),
                    f"{f['upright_rows']:.2f}",
                )
                cells = "".join(f"<td>{number}</td>" for number in numbers)
                lines += f"<tr><th>{escape(stage)}</th><th>{source}, {group}</th>{cells}</tr>"
    if not lines:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("", "", "objects", "contact", "upright", "upright of its rows"))
    return _section(
        "Do vehicles stand on the road?",
        f"<div class=scroll><table><tr>{heads}</tr>{lines}</table></div><p class=muted>Medians (quartiles). contact: "
        "depth of a vehicle's lower third over the road's at its foot, about 1; above it, the vehicle is a hole. "
        "upright: depth of its upper third over the same, 1.0 to 1.15; a net that knows rows alone has what the last "
        "column says.</p>",
    )


def _headline(stages: Mapping[str, Any]) -> str:
    try:
        first, final = stages["scene"]["dynamic"]["abs_rel"], stages["final"]["dynamic"]["abs_rel"]
    except KeyError:
        return ""
    if not first > 0:
        return ""
    control = stages.get("control", {}).get("dynamic", {}).get("abs_rel")
    beside = f"; training as long without the labels gives {control:.3f}" if control is not None else ""
    return (
        f"<p class=headline>On moving objects the error goes from <b>{first:.3f}</b> to <b>{final:.3f}</b> "
        f"({final / first:.2f} times){beside}.</p>"
    )


def _metric_table(
    stages: Mapping[str, Any], shown: Sequence[str], regions: Sequence[str], metrics: Sequence[str]
) -> str:
    heads = "".join(f"<th colspan={len(metrics)}>{region}</th>" for region in regions)
    names = "".join(f"<th>{metric}</th>" for _ in regions for metric in metrics)
    rows = dict.fromkeys(shown, "")
    for region in regions:
        for metric in metrics:
            values = {stage: stages[stage][region][metric] for stage in shown if region in stages[stage]}
            best = (max if metric in ("a1", "a2", "a3") else min)(values.values())
            for stage in shown:
                text = f"{values[stage]:.3f}" if stage in values else "&ndash;"
                rows[stage] += (
                    f"<td class=best>{text}</td>"
                    if values.get(stage) == best and len(shown) > 1
                    else f"<td>{text}</td>"
                )
    lines = "".join(f"<tr><th>{stage.replace('_', ' ')}</th>{cells}</tr>" for stage, cells in rows.items())
    return f"<div class=scroll><table><tr><th></th>{heads}</tr><tr><th></th>{names}</tr>{lines}</table></div>"


def _pictures(title: str, draw: Callable[[Config, Path], str], config: Config, run_folder: Path) -> str:
    try:
        pictures = draw(config, run_folder)
    except (CheckpointError, DataError, ValueError, OSError) as error:
        pictures = f"<p class=muted>No pictures: {escape(str(error))}</p>"
    return _section(title, pictures) if pictures else ""


def _discovery(run_folder: Path, figures: Mapping[str, Mapping[str, float]]) -> str:
    """Figures and steps of a run that found its masks itself; "" for another."""
    steps = discovery_steps(run_folder)
    if not steps:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in DISCOVERY)
    lines = ""
    for stage, found in figures.items():
        cells = "".join(
            f"<td>{found[name]:{d}}</td>" if name in found else "<td></td>" for name, d in DISCOVERY.items()
        )
        lines += f"<tr><th>{stage}</th>{cells}</tr>"
    table = f"<div class=scroll><table><tr><th></th>{heads}</tr>{lines}</table></div>" if lines else ""
    chain = "".join(
        f"<tr><th>{escape(step.name)}</th><td>{'' if step.score is None else step.score}</td>"
        f"<td>{'' if step.objects is None else step.objects}</td><td>{step.frames} of {step.among}</td></tr>"
        for step in steps
    )
    failure = why_little_was_found(steps)
    headline = f"<p class=headline>{escape(failure)}</p>" if failure else ""
    return _section(
        "Moving objects, from motion to masks",
        f"{headline}{table}<div class=scroll><table><tr><th>training frames</th><th>score above</th><th>objects</th>"
        f"<th>frames with any</th></tr>{chain}</table></div>",
    )


def _curves(logs: Logs) -> str:
    if not logs:
        return ""
    other = {"step", "seconds", "images_per_s", "lr", "validation", *PHASES}

    def line(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    blocks = ""
    for stage, rows in logs.items():
        terms = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in other]
        charts = ""
        for term in terms:
            validation = {"validation": line(rows, "validation")} if term == "total" else {}
            charts += line_chart(term.replace("_", " "), {"training": line(rows, term)} | validation)
        blocks += f"<h3>{stage}</h3><div class=charts>{charts}</div>"
    return _section("Loss curves", blocks)


def _times(metrics: Mapping[str, Any], logs: Logs) -> str:
    seconds, per_frame = metrics.get("seconds", {}), metrics.get("milliseconds_per_frame", {})
    stages = [stage for stage in STAGES if stage in seconds or stage in logs]
    if not stages:
        return ""
    colours = dict(zip(PHASES, COLOURS, strict=False))
    overview = detail = ""
    for stage in stages:
        # The first interval holds warm-up.
        timed = [row for row in logs.get(stage, ()) if "forward" in row]
        timed = timed[1:] or timed
        mean = {name: fmean(row.get(name, 0.0) for row in timed) for name in (*PHASES, "images_per_s")} if timed else {}
        step = sum(mean[phase] for phase in PHASES) if mean else 0.0
        took = f"{seconds[stage]:.0f}" if stage in seconds else "&ndash;"
        numbers, bar = "<td>&ndash;</td><td>&ndash;</td>", ""
        if step > 0:
            numbers = f"<td>{step:.0f}</td><td>{mean['images_per_s']:.0f}</td>"
            bar = "".join(
                f"<i style='width:{100 * mean[phase] / step:.2f}%;background:{colour}'></i>"
                for phase, colour in colours.items()
            )
            cells = "".join(f"<td>{mean[phase]:.1f}</td>" for phase in PHASES)
            detail += f"<tr><th>{stage}</th>{cells}</tr>"
        frame = f"{per_frame[stage]:.1f}" if stage in per_frame else "&ndash;"
        overview += (
            f"<tr><th>{stage}</th><td>{took}</td><td>{frame}</td>{numbers}<td class=bar><div>{bar}</div></td></tr>"
        )
    if seconds:
        overview += f"<tr><th>total</th><td>{sum(seconds.values()):.0f}</td><td></td><td></td><td></td><td></td></tr>"
    names = {phase: phase.replace("_", " ") for phase in PHASES}
    legend = "".join(f"<span><i style='background:{colours[p]}'></i>{name}</span>" for p, name in names.items())
    heads = "".join(f"<th>{name}</th>" for name in names.values())
    return _section(
        "Time",
        "<div class=scroll><table><tr><th></th><th>seconds</th><th>ms a frame</th><th>ms a step</th><th>images/s</th>"
        f"<th class=bar>where a step goes</th></tr>{overview}</table></div><p class=legend>{legend}</p>"
        "<details><summary>Milliseconds of each phase</summary><div class=scroll><table>"
        f"<tr><th></th>{heads}</tr>{detail}</table></div></details>",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _details(title: str, text: str) -> str:
    return f"<details class=section><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _read_json(path: Path) -> dict[str, Any]:
    return read_json("environment", path) if path.is_file() else {}


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
    parser.add_argument("--panel", type=Path, metavar="PNG", help="write only one picture of a few frames")
    parser.add_argument("--motion", type=Path, metavar="PNG", help="write only one picture of what moves by itself")
    parser.add_argument("--objects", type=Path, metavar="PNG", help="write only one picture of the objects found")
    options = parser.parse_args(arguments)
    try:
        if options.objects:
            write_detection_panel(load_config(options.run / "config.yaml"), options.run, options.objects)
            print(options.objects)
        elif options.motion:
            write_motion_panel(load_config(options.run / "config.yaml"), options.run, options.motion)
            print(options.motion)
        elif options.panel:
            write_panel(load_config(options.run / "config.yaml"), options.run, options.panel)
            print(options.panel)
        else:
            print(write_report(options.run))
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: 0 auto;
  padding: 1rem; }
h1 { margin: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; border-bottom: 1px solid #ddd; }
h3 { margin: 1.2rem 0 .3rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
td.best { font-weight: 700; }
p { margin: .5rem 0; } .muted { color: #666; font-size: .88rem; } .headline { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { font-weight: 500; color: #555; } th:first-child { text-align: left; } th[colspan] { text-align: center; }
.tiles { display: grid; gap: .4rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); }
.rows1 { grid-template-rows: auto; } .rows2 { grid-template-rows: auto auto; }
figure { margin: 0; } img { width: 100%; display: block; border-radius: 3px; }
figcaption { font-size: .78rem; color: #555; }
.near { color: #0b3c8c; } .far { color: #8c0b1d; }
.charts { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }
svg text { font: 10px system-ui, sans-serif; fill: #666; } svg .title { font-size: 12px; fill: #222; }
td.bar { width: 60%; } td.bar div { display: flex; height: .9rem; min-width: 10rem; } th.bar { text-align: left; }
.legend span { margin-right: 1rem; font-size: .85rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
summary { cursor: pointer; color: #333; margin-top: .6rem; }
.section { margin-top: 1.6rem; } .section summary { font-size: 1.1rem; }
pre { overflow-x: auto; font-size: .8rem; background: #f7f7f7; padding: .8rem; border-radius: 3px; }
@media (max-width: 640px) {
  body { padding: .7rem; } td.bar div { min-width: 6rem; }
  table { font-size: .78rem; } th, td { padding: .22rem .3rem; }
  .tiles { grid-auto-flow: row; grid-template-rows: none; grid-template-columns: 1fr 1fr; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
