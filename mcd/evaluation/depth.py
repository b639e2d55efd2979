"""Depth against ground truth: ``python -m mcd.evaluate RUN_OR_CHECKPOINT…``.

The protocol, image by image: the predicted inverse depth is resized bilinearly to the ground truth; pixels count
inside the protocol's crop where the truth lies strictly between the limits; the prediction is multiplied by the ratio
of the medians of all counted pixels (one ratio, whatever the region) and clamped to the limits. A region's figure is
the mean over the images in which it has a pixel. Regions are ``all`` and, where moving objects are known, ``static``
and ``dynamic``; the net of single objects has ``objects``, where each has a ratio of its own.

A run folder has each of its stages evaluated, and gets metrics.json and metrics.csv. With several places the table
shows them side by side. With --config or --set, which ask another question than the run's own, the run's files stay
as they are; -o names a folder for the results then.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcd.config import STAGES, Config, ConfigError, Evaluation, load_config
from mcd.data import Batch, EvaluationSet, SequenceFolder, fixed_batches, prefetch
from mcd.data.evaluation import valid_pixels
from mcd.data.files import read_depth_array, read_mask, resize_nearest
from mcd.data.kitti import split_list
from mcd.data.labels import numbered_masks
from mcd.errors import McdError
from mcd.evaluation.metrics import METRICS, depth_metrics, median_ratio
from mcd.files import DataError, write_json, write_text
from mcd.inference.predictor import DepthPredictor, choose_device, resize_depth
from mcd.run.checkpoint import DEPTH_STAGES, WEIGHTS, CheckpointError, find_weights

REGIONS = ("all", "static", "dynamic", "objects")
ROW_MEDIAN = "row_median"
WHOLE = ("scene", "pseudo", "final", "control", ROW_MEDIAN)
"""Whose depth of whole images is evaluated, as they are shown: stages, and a baseline."""

DISCOVERY = {"precision": ".3f", "recall": ".3f", "found": ".0f", "moving": ".0f", "iou": ".3f"}
"""Figures of what a run discovered, and how they are written."""

Predict = Callable[[Batch], Tensor]
"""A batch of an :class:`EvaluationSet` (``image`` [B,3,H,W], ``frame``) to depths [B,1,h,w] of any size and scale."""
Regions = dict[str, dict[str, float]]


class EvaluationError(McdError, RuntimeError):
    """A prediction that cannot be evaluated."""


def evaluate_depth(
    predict: Predict, dataset: EvaluationSet, settings: Evaluation, device: torch.device | str = "cpu", workers: int = 0
) -> Regions:
    """Evaluate a depth predictor by the protocol above.

    Returns:
        ``{region: {metric: mean over images}}``; a region that is empty in every image is left out.

    Raises:
        DataError: ground truth is missing or broken.
        EvaluationError: a prediction is not finite and positive.
    """
    found: dict[str, list[Tensor]] = {region: [] for region in REGIONS}
    for batch in prefetch(fixed_batches(dataset, settings.batch, workers, device), device):
        depths = predict(batch)
        usable = (torch.isfinite(depths) & (depths > 0)).flatten(1).all(1).tolist()
        for index, frame in enumerate(batch["frame"]):
            if not usable[index]:
                raise EvaluationError(f"the predicted depth of frame {frame} is not finite and positive")
            gt, valid = (torch.from_numpy(batch[name][index]).to(device) for name in ("depth_gt", "valid"))
            if not valid.any():
                continue
            dynamic = batch["dynamic_mask"][index]
            masks = {"all": valid}
            if dynamic is not None:
                moving = torch.from_numpy(dynamic).to(device)
                masks |= {"static": valid & ~moving, "dynamic": valid & moving}
            aligned = align(depths[index : index + 1], gt, valid, settings)
            for region, mask in masks.items():
                if mask.any():
                    metrics = depth_metrics(aligned[mask], gt[mask].double())
                    found[region].append(torch.stack([metrics[name] for name in METRICS]))
    return {
        region: dict(zip(METRICS, torch.stack(rows).mean(0).tolist(), strict=True))
        for region, rows in found.items()
        if rows
    }


def align(depth: Tensor, gt: Tensor, valid: Tensor, settings: Evaluation) -> Tensor:
    """Predicted depth [1,1,h,w] at the size, in the unit and within the limits of a ground truth [H,W]; float64."""
    disparity = F.interpolate(1 / depth.double(), gt.shape, mode="bilinear", align_corners=False)[0, 0]
    predicted = 1 / disparity
    ratio = median_ratio(predicted[valid], gt[valid].double())
    return (predicted * ratio).clamp(settings.min_depth, settings.max_depth)


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


def evaluate_objects(net: DepthPredictor, config: Config) -> dict[str, float]:
    """A depth net of single objects: each is shown alone on black, and evaluated inside its mask at its own scale.

    Truth and masks have the net's size here. Masks are those of moving objects, as in the evaluation of whole images.

    Returns:
        Means over the objects with a valid pixel; empty if there is none.
    """
    settings, size = config.evaluation, net.size
    masks_of_split = config.data.root / f"{settings.split}_mask_class"
    dataset = EvaluationSet(config)
    found = []
    for item in (dataset[index] for index in range(len(dataset))):
        kept = len(item["depth_gt"])
        paths = numbered_masks(masks_of_split / item["frame"]).values()
        masks = [torch.from_numpy(resize_nearest(read_mask(path)[:kept], size)) for path in paths]
        masks = [mask for mask in masks if mask.float().mean() >= settings.min_mask_area]
        if not masks:
            continue
        gt = torch.from_numpy(resize_nearest(item["depth_gt"], size)).double()
        valid = torch.from_numpy(valid_pixels(config, gt.numpy()))
        alone = torch.stack([item["image"].float() / 255 * mask for mask in masks])
        for mask, depth in zip(masks, net(alone).cpu().double()[:, 0], strict=True):
            inside = mask & valid
            if inside.any():
                scaled = depth[inside] * median_ratio(depth[inside], gt[inside])
                metrics = depth_metrics(scaled.clamp(settings.min_depth, settings.max_depth), gt[inside])
                found.append(torch.stack([metrics[name] for name in METRICS]))
    return dict(zip(METRICS, torch.stack(found).mean(0).tolist(), strict=True)) if found else {}


def has_ground_truth(config: Config) -> bool:
    """Whether a config says where ground truth is (it may still be broken)."""
    if config.data.kind == "sequence":
        return config.data.depth is not None
    if config.data.kind == "kitti":
        return split_list(config.data, config.evaluation.split).is_file()
    return (config.data.root / f"{config.evaluation.split}_gt_depths").is_dir()


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
        prog="mcd evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
