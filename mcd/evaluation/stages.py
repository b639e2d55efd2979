"""Figures of a run, stage by stage: whose depth is evaluated, and the metrics files that gather what was found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mcd.config import STAGES, Config, load_config
from mcd.data import Batch, EvaluationSet
from mcd.data.files import read_depth_array
from mcd.data.kitti import split_list
from mcd.evaluation.bootstrap import FrameFigures
from mcd.evaluation.figures import Regions, read_facts, read_figures
from mcd.evaluation.protocol import Predict, evaluate_depth, evaluate_objects
from mcd.evaluation.row_median import row_median
from mcd.evaluation.scale import scale_of
from mcd.evaluation.stage_contact import Contact, contact_table, stage_contact
from mcd.evaluation.tables import ROW_MEDIAN, WHOLE, Result, discovery_table, to_csv, to_table
from mcd.files import DataError, write_json, write_text
from mcd.inference.predictor import DepthPredictor, resize_depth
from mcd.run.checkpoint import DEPTH_STAGES, WEIGHTS
from mcd.run.context import with_learned_camera
from mcd.run.warned import read_warnings


def has_ground_truth(config: Config) -> bool:
    """Whether a config says where ground truth is (it may still be broken)."""
    if config.data.kind == "sequence":
        return config.data.depth is not None
    if config.data.kind == "kitti":
        return split_list(config.data, config.evaluation.split).is_file()
    return (config.data.root / f"{config.evaluation.split}_gt_depths").is_dir()


def stage_predictor(config: Config, run_folder: Path, stage: str, device: torch.device | str) -> Predict | None:
    """The depth of a stage of a run, or None where the run has not got it.

    Depth nets predict; ``pseudo`` reads its files, and the scene's net stands in for frames without one, as it does
    in the labels themselves; ``row_median`` is :func:`row_median`.
    """
    if stage == ROW_MEDIAN:
        rows = row_median(config).to(device)
        return lambda batch: rows.expand(len(batch["frame"]), -1, -1, -1)
    if stage in DEPTH_STAGES:
        if not (run_folder / stage / WEIGHTS).is_file():
            return None
        net = DepthPredictor.load(run_folder, stage, device=device, size=config.data.size)
        return lambda batch: net(batch["image"])
    folder = run_folder / "pseudo" / config.evaluation.split
    scene = stage_predictor(config, run_folder, "scene", device) if stage == "pseudo" and folder.is_dir() else None
    if scene is None:
        return None

    def pseudo(batch: Batch) -> Tensor:
        depths = scene(batch)
        for index, frame in enumerate(batch["frame"]):
            path = folder / f"{frame}.npy"
            if path.is_file():
                label = torch.from_numpy(read_depth_array(path)).to(depths)
                depths[index] = resize_depth(label[None, None], depths.shape[-2:])[0]
        return depths

    return pseudo


def evaluate_stage(
    config: Config,
    run_folder: Path,
    stage: str,
    device: torch.device | str,
    notes: list[str] | None = None,
    frames: FrameFigures | None = None,
) -> Regions:
    """Evaluate one stage of a run; empty where the stage leaves no depth, or there is no ground truth.

    ``frames`` gets the figures of every frame. The object stage has one region, ``objects``: see
    :func:`evaluate_objects`.
    """
    if not has_ground_truth(config):
        return {}
    config = with_learned_camera(config, run_folder)
    if stage == "object":
        if config.data.kind != "triplets" or not (run_folder / stage / WEIGHTS).is_file():
            return {}
        net = DepthPredictor.load(run_folder, stage, device=device, size=config.data.size)
        metrics = evaluate_objects(net, config)
        return {"objects": metrics} if metrics else {}
    predict = stage_predictor(config, run_folder, stage, device)
    if predict is None:
        return {}
    weights = None if stage == ROW_MEDIAN else run_folder / ("scene" if stage == "pseudo" else stage) / WEIGHTS
    scale = scale_of(config, weights, device)
    dataset, workers = EvaluationSet(config), config.data.workers
    return evaluate_depth(predict, dataset, config.evaluation, device, workers, scale, notes, frames)


def baseline(
    config: Config, place: Path, device: torch.device | str, frames: FrameFigures | None = None
) -> dict[str, Regions]:
    """The figures of :func:`row_median`, of data whose training frames have measurements; else nothing."""
    try:
        regions = evaluate_stage(config, place, ROW_MEDIAN, device, frames=frames)
    except DataError as error:
        warnings.warn(f"no baseline {ROW_MEDIAN}: {error}", stacklevel=2)
        return {}
    return {ROW_MEDIAN: regions} if regions else {}


def run_contact(config: Config, run_folder: Path, device: torch.device | str) -> dict[str, dict[str, Contact]]:
    """Contact and upright of every stage of a run, by source; stages without objects or without depth are left out."""
    found = {}
    for stage in (stage for stage in WHOLE if stage != ROW_MEDIAN):
        predict = stage_predictor(config, run_folder, stage, device)
        figures = stage_contact(config, run_folder, predict, device) if predict is not None else {}
        if figures:
            found[stage] = figures
    return found


def write_metrics(
    run_folder: Path,
    evaluated: Mapping[str, Regions] | None = None,
    contact: Mapping[str, Mapping[str, Contact]] | None = None,
    *,
    show: bool = False,
) -> dict[str, Any]:
    """Gather ``metrics.json`` and ``metrics.csv`` of a run from its finished stages; returns the document.

    Args:
        evaluated: newer results by stage.
        contact: newer figures of :func:`run_contact`.
        show: print the table too.
    """
    path = run_folder / "metrics.json"
    before = read_figures(path)
    stages: dict[str, Regions] = before.get("stages", {})
    stages["object"] = {region: before[region] for region in ("objects",) if region in before}
    seconds: dict[str, float] = before.get("seconds", {})
    discovery: dict[str, dict[str, float]] = before.get("discovery", {})
    per_frame: dict[str, float] = before.get("milliseconds_per_frame", {})
    camera: dict[str, float] = before.get("camera", {})
    for stage in STAGES:
        facts = read_facts(run_folder / stage / "done.json")
        camera = facts.get("camera", camera)
        if facts.get("metrics"):
            stages[stage] = facts["metrics"]
        if facts.get("discovery"):
            discovery[stage] = facts["discovery"]
        if "seconds" in facts:
            seconds[stage] = facts["seconds"]
            if facts.get("frames"):
                per_frame[stage] = round(1e3 * facts["seconds"] / facts["frames"], 3)
    stages |= evaluated or {}
    contact = before.get("contact", {}) | dict(contact or {})
    objects = stages.pop("object")
    config = load_config(run_folder / "config.yaml")
    if stages and ROW_MEDIAN not in stages:
        stages |= baseline(config, run_folder, "cpu")
    stages = {stage: stages[stage] for stage in WHOLE if stage in stages}
    document = {
        "stages": stages,
        **objects,
        **({"camera": camera} if camera else {}),
        **({"contact": contact} if contact else {}),
        **({"discovery": discovery} if discovery else {}),
        "seconds": {stage: seconds[stage] for stage in STAGES if stage in seconds},
        **({"milliseconds_per_frame": per_frame} if per_frame else {}),
        **({"warnings": said} if (said := read_warnings(run_folder)) else {}),
    }
    write_json(path, document)
    results = [Result(run_folder.name, stage, regions) for stage, regions in (stages | {"object": objects}).items()]
    write_text(run_folder / "metrics.csv", to_csv(results))
    if show:
        Console().print(to_table(results) if results else "nothing was evaluated: the data have no ground truth")
        if contact:
            Console().print(contact_table(contact))
        if discovery:
            Console().print(discovery_table(discovery))
    return document
