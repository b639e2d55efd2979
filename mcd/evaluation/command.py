"""Depth against ground truth: ``mcd evaluate RUN_OR_CHECKPOINT_OR_PREDICTIONS…``.

A run folder has each of its stages evaluated, and gets metrics.json and metrics.csv. With several places the table
shows them side by side, and a second one which differences are real (:mod:`mcd.evaluation.bootstrap`). With --config
or --set, which ask another question than the run's own, the run's files stay as they are; -o names a folder for the
results then.

Depth of any other method is evaluated in the same way: a folder with an .npy or 16-bit .png a frame, or one .npy of all
frames (:mod:`mcd.evaluation.predictions`); --config says on what, --kind, --unit and --factor what the numbers are.

Where a run has masks or --boxes has boxes, contact and upright say whether what they show stands on the road
(:mod:`mcd.evaluation.contact`). --along says how much depth jumps between frames (:mod:`mcd.evaluation.consistency`).
With --poses the pose nets' way is compared with the true one, as is a trajectory file of KITTI's or TUM's form
(:mod:`mcd.evaluation.trajectory`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mcd.errors import McdError
from mcd.evaluation import protocol, tables
from mcd.evaluation.places import Found, Question, evaluate_place
from mcd.evaluation.predictions import Reading
from mcd.evaluation.stage_contact import contact_table
from mcd.evaluation.stages import write_metrics
from mcd.evaluation.tables import Result
from mcd.files import write_json, write_text
from mcd.scene.trajectory import write_kitti, write_tum


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message."""
    given = _parse(arguments)
    question, plain = _question(given)
    found: list[Found] = []
    try:
        for place in given.places:
            found.append(evaluate_place(place, question))
            # Boxes are a figure more, and no other question.
            if (place / "config.yaml").is_file() and plain:
                write_metrics(place, found[-1].regions, found[-1].contact)
        if given.output:
            _write(given.output, found)
    except (McdError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = _once([result for each in found for result in each.results])
    if given.form == "json":
        print(json.dumps(document(found), indent=2))
    elif given.form == "csv":
        print(tables.to_csv(results, with_intervals=True), end="")
    elif given.form == "latex":
        print(tables.to_latex(results), end="")
    else:
        _show(found, results)
    return 0


def document(found: Sequence[Found]) -> dict[str, Any]:
    """All that was found, by stage, or with several places by "PLACE/STAGE"."""
    results = [result for each in found for result in each.results]
    names = {id(result): f"{result.place}/{result.stage}" if len(found) > 1 else result.stage for result in results}
    stages = {names[id(result)]: result.regions for result in results}
    intervals = {
        names[id(result)]: {
            region: {"frames": len(result.frames[region])} | {m: list(ends) for m, ends in bounds.items()}
            for region in result.regions
            if (bounds := result.intervals(region))
        }
        for result in results
    }
    differences = []
    for region in protocol.REGIONS:
        best = tables.best_of(results, region)
        for result in results:
            if best is None or result is best or (above := result.over(best, region)) is None:
                continue
            differences.append({
                "region": region, "metric": "abs_rel", "of": names[id(result)], "minus": names[id(best)],
                "mean": above.mean, "interval": list(above.interval), "frames": above.frames, "real": above.real,
            })  # fmt: skip
    made: dict[str, Any] = {"stages": stages}
    for name in ("contact", "consistency", "trajectories"):
        made[name] = _by_stage(found, name)
    made |= {"intervals": {name: regions for name, regions in intervals.items() if regions}, "differences": differences}
    return {name: value for name, value in made.items() if value or name == "stages"}


def _once(results: Sequence[Result]) -> list[Result]:
    """Without the baseline of places that have the same as one before."""
    kept: list[Result] = []
    for result in results:
        if result.stage != tables.ROW_MEDIAN or not any(result.regions == other.regions for other in kept):
            kept.append(result)
    return kept


def _by_stage(found: Sequence[Found], what: str) -> dict[str, Any]:
    several = len(found) > 1
    return {
        f"{each.place}/{stage}" if several else stage: figures
        for each in found
        for stage, figures in getattr(each, what).items()
    }


def _write(folder: Path, found: Sequence[Found]) -> None:
    write_json(folder / "metrics.json", document(found))
    write_text(folder / "metrics.csv", tables.to_csv([result for each in found for result in each.results]))
    for name, path in _by_stage(found, "paths").items():
        if path.rotations is not None:
            stem = name.strip("./").replace("/", "_")
            write_kitti(folder / f"{stem}_kitti.txt", path)
            write_tum(folder / f"{stem}_tum.txt", path)


def _show(found: Sequence[Found], results: Sequence[Result]) -> None:
    console = Console()
    if results:
        console.print(tables.to_table(results))
        for line in tables.scale_lines(results):
            print(line)
        intervals = tables.intervals_table(results)
        if intervals is not None:
            console.print(intervals)
    if contact := _by_stage(found, "contact"):
        console.print(contact_table(contact))
    if consistency := _by_stage(found, "consistency"):
        console.print(
            tables.figures_table("change of depth from frame to frame that no motion explains, %", consistency)
        )
    if trajectories := _by_stage(found, "trajectories"):
        console.print(tables.figures_table("trajectory, aligned in scale: m, °, %", trajectories, ".4f"))


def _question(given: argparse.Namespace) -> tuple[Question, bool]:
    """What is asked, and whether it is the run's own question."""
    boxes = [f"evaluation.boxes={given.boxes}"] if given.boxes else []
    metres = [f"data.camera_height={given.camera_height}"] if given.camera_height is not None else []
    scale = given.scale or ("height" if metres else None)
    metres += [f"evaluation.scale={scale}"] if scale else []
    poses = [f"data.poses={given.poses.absolute()}"] if given.poses else []
    reading = Reading(given.kind, given.unit, given.factor)
    overrides = (*given.set, *boxes, *metres, *poses)
    question = Question(given.config, overrides, reading, given.along, given.poses)
    return question, not (given.config or given.set or metres)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mcd evaluate",
        description=f"{__doc__}\n{protocol.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=Path, metavar="PLACE", help="run, checkpoint, predictions, poses")
    parser.add_argument("--config", type=Path, help="evaluate on the data of this config instead of the run's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the config")
    parser.add_argument(
        "--boxes", type=Path, metavar="CSV", help="frame, x0, y0, x1, y1 of vehicles: short for --set evaluation.boxes="
    )
    parser.add_argument(
        "--scale",
        choices=("none", "median", "height", "poses"),
        help="what puts depth into metres: nothing, the truth's median (the default, as published), the height of the "
        "camera, or data.poses",
    )
    parser.add_argument(
        "--camera-height", type=float, metavar="METRES", help="of the camera above the road; implies --scale height"
    )
    parser.add_argument("--kind", choices=("depth", "disparity"), default="depth", help="of other predictions")
    parser.add_argument(
        "--unit", type=_positive, default=1.0, metavar="METRES", help="of other predictions: 0.001 for millimetres"
    )
    parser.add_argument(
        "--factor", type=_positive, metavar="LEVELS", help="of 16-bit PNG a unit (default: as the file says, else 256)"
    )
    parser.add_argument(
        "--along",
        type=Path,
        metavar="PLACE",
        help="temporal consistency along the camera's motion as the nets of this run or file see it; start: mcd's own",
    )
    parser.add_argument(
        "--poses",
        type=Path,
        metavar="FILE",
        help="the true way of the camera: KITTI, TUM, or CSV; short for --set data.poses=",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for metrics.json and metrics.csv")
    for form, text in (
        ("json", "all figures as JSON"),
        ("csv", "the table as CSV, with intervals"),
        ("latex", "the table for LaTeX"),
    ):
        parser.add_argument(f"--{form}", action="store_const", const=form, dest="form", help=text)
    return parser.parse_args(arguments)
