"""Depth against ground truth: ``python -m mcd.evaluate RUN_OR_CHECKPOINT…``.

A run folder has each of its stages evaluated, and gets metrics.json and metrics.csv. With several places the table
shows them side by side. With --config or --set, which ask another question than the run's own, the run's files stay
as they are; -o names a folder for the results then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mcd.config import ConfigError, load_config
from mcd.data import EvaluationSet
from mcd.evaluation import protocol
from mcd.evaluation.protocol import EvaluationError, Regions, evaluate_depth
from mcd.evaluation.stages import evaluate_stage, has_ground_truth, write_metrics
from mcd.evaluation.tables import ROW_MEDIAN, WHOLE, Result, to_csv, to_table
from mcd.files import DataError, write_json, write_text
from mcd.inference.predictor import DepthPredictor, choose_device
from mcd.run.checkpoint import CheckpointError, find_weights


def evaluate_place(place: Path, config_path: Path | None, overrides: Sequence[str]) -> dict[str, Regions]:
    """Evaluate all that a place holds: every stage of a run folder, or one net.

    Raises:
        CheckpointError: there is nothing to evaluate, or it is broken.
        ConfigError: no config is given or found, or it is not valid.
        DataError: ground truth is missing or broken.
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
    if not has_ground_truth(config):
        raise DataError(f"{config.data.root} has no ground truth: data.depth names no folder")
    device = choose_device(config.device)
    if run_folder is not None:
        names = [stage for stage in (*WHOLE, "object") if stage != ROW_MEDIAN]
        stages = {stage: evaluate_stage(config, run_folder, stage, device) for stage in names}
        stages = {stage: regions for stage, regions in stages.items() if regions}
        if not stages:
            raise CheckpointError(f"run {run_folder} has no finished stage with a depth net")
    else:
        net = DepthPredictor.load(place, device=device, size=config.data.size)
        name = place.stem if place.is_file() else place.name
        stages = {
            name: evaluate_depth(
                lambda batch: net(batch["image"]), dataset, config.evaluation, device, config.data.workers
            )
        }
    if config.data.kind == "sequence":
        stages[ROW_MEDIAN] = evaluate_stage(config, place, ROW_MEDIAN, device)
    return stages


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
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for metrics.json and metrics.csv")
    given = parser.parse_args(arguments)
    results: list[Result] = []
    try:
        for place in given.places:
            stages = evaluate_place(place, given.config, given.set)
            results += [Result(str(place), stage, regions) for stage, regions in stages.items()]
            if (place / "config.yaml").is_file() and not given.config and not given.set:
                write_metrics(place, stages)
        if given.output:
            several = len(given.places) > 1
            stages = {f"{r.place}/{r.stage}" if several else r.stage: r.regions for r in results}
            write_json(given.output / "metrics.json", {"stages": stages})
            write_text(given.output / "metrics.csv", to_csv(results))
    except (CheckpointError, ConfigError, DataError, EvaluationError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(to_table(results))
    return 0
