"""Figures of a run, stage by stage: whose depth is evaluated, and the metrics files that gather what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from mcd.config import STAGES, Config, load_config
from mcd.data import Batch, EvaluationSet, SequenceFolder
from mcd.data.files import read_depth_array
from mcd.data.kitti import split_list
from mcd.evaluation.protocol import Predict, Regions, evaluate_depth, evaluate_objects
from mcd.evaluation.tables import ROW_MEDIAN, WHOLE, Result, discovery_table, to_csv, to_table
from mcd.files import DataError, write_json, write_text
from mcd.inference.predictor import DepthPredictor, resize_depth
from mcd.run.checkpoint import DEPTH_STAGES, WEIGHTS


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


def row_median(config: Config) -> Tensor:
    """A baseline without a net: median depth [1,1,H,1] of each image row over the training frames' measurements.

    A row without a measurement takes the nearest one that has some.
    """
    folder = SequenceFolder(config.data, "train")
    limits = config.evaluation
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(folder.size[0])]
    for frame in folder.every_frame:
        for values, row in zip(found, folder.read_depth(frame), strict=True):
            values.append(row[(row > limits.min_depth) & (row < limits.max_depth)])
    measured = [np.concatenate(values) for values in found]
    rows = np.flatnonzero([values.size for values in measured])
    if not rows.size:
        raise DataError(f"the training frames of {config.data.root} have no measured depth")
    medians = np.array([np.median(measured[row]) for row in rows])
    nearest = np.abs(np.arange(len(measured))[:, None] - rows).argmin(axis=1)
    return torch.from_numpy(medians[nearest]).float()[None, None, :, None]


def evaluate_stage(config: Config, run_folder: Path, stage: str, device: torch.device | str) -> Regions:
    """Evaluate one stage of a run; empty where the stage leaves no depth, or there is no ground truth.

    The object stage has one region, ``objects``: see :func:`evaluate_objects`.
    """
    if not has_ground_truth(config):
        return {}
    if stage == "object":
        if config.data.kind != "triplets" or not (run_folder / stage / WEIGHTS).is_file():
            return {}
        net = DepthPredictor.load(run_folder, stage, device=device, size=config.data.size)
        metrics = evaluate_objects(net, config)
        return {"objects": metrics} if metrics else {}
    predict = stage_predictor(config, run_folder, stage, device)
    if predict is None:
        return {}
    return evaluate_depth(predict, EvaluationSet(config), config.evaluation, device, config.data.workers)


def write_metrics(
    run_folder: Path, evaluated: Mapping[str, Regions] | None = None, *, show: bool = False
) -> dict[str, Any]:
    """Gather ``metrics.json`` and ``metrics.csv`` of a run from its finished stages; returns the document.

    Args:
        evaluated: newer results by stage.
        show: print the table too.
    """
    path = run_folder / "metrics.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    stages: dict[str, Regions] = before.get("stages", {})
    stages["object"] = {region: before[region] for region in ("objects",) if region in before}
    seconds: dict[str, float] = before.get("seconds", {})
    discovery: dict[str, dict[str, float]] = before.get("discovery", {})
    per_frame: dict[str, float] = before.get("milliseconds_per_frame", {})
    for stage in STAGES:
        done = run_folder / stage / "done.json"
        facts = json.loads(done.read_text()) if done.is_file() else {}
        if facts.get("metrics"):
            stages[stage] = facts["metrics"]
        if facts.get("discovery"):
            discovery[stage] = facts["discovery"]
        if "seconds" in facts:
            seconds[stage] = facts["seconds"]
            if facts.get("frames"):
                per_frame[stage] = round(1e3 * facts["seconds"] / facts["frames"], 3)
    stages |= evaluated or {}
    objects = stages.pop("object")
    config = load_config(run_folder / "config.yaml")
    if stages and config.data.kind == "sequence" and ROW_MEDIAN not in stages:
        stages[ROW_MEDIAN] = evaluate_stage(config, run_folder, ROW_MEDIAN, "cpu")
    stages = {stage: stages[stage] for stage in WHOLE if stage in stages}
    document = {
        "stages": stages,
        **objects,
        **({"discovery": discovery} if discovery else {}),
        "seconds": {stage: seconds[stage] for stage in STAGES if stage in seconds},
        **({"milliseconds_per_frame": per_frame} if per_frame else {}),
    }
    write_json(path, document)
    results = [Result(run_folder.name, stage, regions) for stage, regions in (stages | {"object": objects}).items()]
    write_text(run_folder / "metrics.csv", to_csv(results))
    if show:
        Console().print(to_table(results) if results else "nothing was evaluated: the data have no ground truth")
        if discovery:
            Console().print(discovery_table(discovery))
    return document
