"""Depth against ground truth: ``python -m mcd.evaluate RUN_OR_CHECKPOINT…``.

A run folder has each of its stages evaluated, and gets metrics.json and metrics.csv. With several places the table
shows them side by side. With --config or --set, which ask another question than the run's own, the run's files stay
as they are; -o names a folder for the results then.

Where a run has masks or --boxes has boxes, contact and upright say whether what they show stands on the road
(:mod:`mcd.evaluation.contact`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from mcd.config import ConfigError, load_config
from mcd.data import Batch, EvaluationSet
from mcd.evaluation import protocol
from mcd.evaluation.protocol import EvaluationError, Regions, evaluate_depth
from mcd.evaluation.scale import scale_of
from mcd.evaluation.stage_contact import Contact, contact_table, stage_contact
from mcd.evaluation.stages import baseline, evaluate_stage, has_ground_truth, run_contact, write_metrics
from mcd.evaluation.tables import ROW_MEDIAN, WHOLE, Result, scale_lines, to_csv, to_table
from mcd.files import DataError, write_json, write_text
from mcd.inference.predictor import DepthPredictor, choose_device
from mcd.run.checkpoint import CheckpointError, find_weights


def evaluate_place(
    place: Path, config_path: Path | None, overrides: Sequence[str]
) -> tuple[dict[str, Regions], dict[str, dict[str, Contact]]]:
    """Evaluate all that a place holds, every stage of a run folder, or one net: regions and contact by stage.

    Raises:
        CheckpointError: there is nothing to evaluate, or it is broken.
        ConfigError: no config is given or found, or it is not valid.
        DataError: ground truth or boxes are missing or broken.
    """
    run_folder = place if (place / "config.yaml").is_file() else None
    if run_folder is None:
        find_weights(place)
    found = config_path or next(
        (f for f in (p / "config.yaml" for p in (place, *place.absolute().parents[:2])) if f.is_file()), None
    )
    if found is None:
        raise ConfigError(f"{place} has no config.yaml beside it; say with --config on what to evaluate it")
    config = load_config(found, overrides)
    dataset = EvaluationSet(config)
    known = has_ground_truth(config)
    if not known and config.evaluation.boxes is None:
        raise DataError(
            f"{config.data.root} has no ground truth: data.depth names no folder, and no --boxes are to be looked at"
        )
    device = choose_device(config.device)
    notes: list[str] = []
    if run_folder is not None:
        names = [stage for stage in (*WHOLE, "object") if stage != ROW_MEDIAN]
        stages = {stage: evaluate_stage(config, run_folder, stage, device, notes) for stage in names}
        stages = {stage: regions for stage, regions in stages.items() if regions}
        contact = run_contact(config, run_folder, device)
        if not stages and not contact:
            raise CheckpointError(f"run {run_folder} has no finished stage with a depth net")
    else:
        net = DepthPredictor.load(place, device=device, size=config.data.size)

        def predict(batch: Batch) -> Tensor:
            return net(batch["image"])

        name = place.stem if place.is_file() else place.name
        settings, workers = config.evaluation, config.data.workers
        scale = scale_of(config, find_weights(place), device) if known else None
        stages = {name: evaluate_depth(predict, dataset, settings, device, workers, scale, notes)} if known else {}
        figures = stage_contact(config, None, predict, device)
        contact = {name: figures} if figures else {}
    for note in dict.fromkeys(notes):
        print(f"warning: {note}", file=sys.stderr)
    return stages | (baseline(config, place, device) if known else {}), contact


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(
        prog="mcd evaluate",
        description=f"{__doc__}\n{protocol.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=Path, metavar="RUN_OR_CHECKPOINT")
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
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for metrics.json and metrics.csv")
    given = parser.parse_args(arguments)
    boxes = [f"evaluation.boxes={given.boxes}"] if given.boxes else []
    metres = [f"data.camera_height={given.camera_height}"] if given.camera_height is not None else []
    scale = given.scale or ("height" if metres else None)
    metres += [f"evaluation.scale={scale}"] if scale else []
    results: list[Result] = []
    contacts: dict[str, dict[str, Contact]] = {}
    try:
        for place in given.places:
            stages, contact = evaluate_place(place, given.config, given.set + boxes + metres)
            several = len(given.places) > 1
            results += [Result(str(place), stage, regions) for stage, regions in stages.items()]
            contacts |= {f"{place}/{stage}" if several else stage: figures for stage, figures in contact.items()}
            # Boxes are a figure more, and no other question.
            if (place / "config.yaml").is_file() and not (given.config or given.set or metres):
                write_metrics(place, stages, contact)
        if given.output:
            stages = {f"{r.place}/{r.stage}" if several else r.stage: r.regions for r in results}
            write_json(
                given.output / "metrics.json",
                {"stages": stages, **({"contact": contacts} if contacts else {})},
            )
            write_text(given.output / "metrics.csv", to_csv(results))
    except (CheckpointError, ConfigError, DataError, EvaluationError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if results:
        Console().print(to_table(results))
        for line in scale_lines(results):
            print(line)
    if contacts:
        Console().print(contact_table(contacts))
    return 0
