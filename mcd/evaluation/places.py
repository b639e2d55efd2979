"""What ``mcd evaluate`` is given, and all that is found there: a run, a net, depth of another method, a trajectory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcd.config import Config, ConfigError, load_config
from mcd.data import Batch, EvaluationSet, SequenceFolder
from mcd.evaluation.bootstrap import FrameFigures
from mcd.evaluation.camera_path import camera_path, true_path
from mcd.evaluation.consistency import FIGURES as CONSISTENCY
from mcd.evaluation.consistency import consistency
from mcd.evaluation.figures import Regions
from mcd.evaluation.predictions import Predictions, Reading, is_predictions, oddities
from mcd.evaluation.protocol import evaluate_depth
from mcd.evaluation.scale import scale_of
from mcd.evaluation.stage_contact import Contact, stage_contact
from mcd.evaluation.stages import baseline, evaluate_stage, has_ground_truth, run_contact, stage_predictor
from mcd.evaluation.tables import ROW_MEDIAN, WHOLE, Result
from mcd.evaluation.trajectory import TrajectoryError, trajectory_figures
from mcd.files import DataError
from mcd.inference.predictor import DepthPredictor, choose_device
from mcd.run.checkpoint import WEIGHTS, CheckpointError, find_weights, load_weights
from mcd.run.context import with_learned_camera
from mcd.scene.trajectory import Trajectory, read_trajectory

Predict = Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Question:
    """What is asked of every place."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    along: Path | None = None
    """Whose motion temporal consistency is measured along; None: it is not asked for."""
    poses: Path | None = None
    """The true trajectory of trajectory files."""


@dataclass
class Found:
    """What was found at a place."""

    place: Path
    results: list[Result] = field(default_factory=list)
    contact: dict[str, dict[str, Contact]] = field(default_factory=dict)
    consistency: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage: means over pairs of frames, and how many these are."""
    trajectories: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage."""
    paths: dict[str, Trajectory] = field(default_factory=dict)
    """The trajectories themselves, by stage, in the unit of the nets or of the file."""

    @property
    def regions(self) -> dict[str, Regions]:
        return {result.stage: result.regions for result in self.results}


def evaluate_place(place: Path, question: Question) -> Found:
    """Evaluate all that a place holds: every stage of a run folder, one net, other predictions, or a trajectory.

    Raises:
        CheckpointError: there is nothing to evaluate, or it is broken.
        ConfigError: no config is given or found, or it is not valid.
        DataError: ground truth, boxes or predictions are missing or broken.
        TrajectoryError: a trajectory cannot be compared.
    """
    if place.is_file() and place.suffix.lower() in (".txt", ".tum", ".kitti", ".csv"):
        return _trajectory(place, question)
    is_run = (place / "config.yaml").is_file()
    files = not is_run and _is_other_method(place)
    if not is_run and not files:
        find_weights(place)
    config = _config_of(place, question)
    device = choose_device(config.device)
    found, notes = Found(place), list[str]()
    if is_run:
        _run(config, place, device, found, notes, question)
    else:
        _single(config, place, device, found, notes, question, files=files)
    for note in dict.fromkeys(notes):
        print(f"warning: {note}", file=sys.stderr)
    if has_ground_truth(config) and found.results:
        frames = FrameFigures()
        rows = baseline(config, place, device, frames)
        found.results += [_result(config, place, stage, regions, frames) for stage, regions in rows.items()]
    return found


def _is_other_method(place: Path) -> bool:
    try:
        find_weights(place)
    except CheckpointError:
        return is_predictions(place)
    return place.suffix == ".npy"


def _config_of(place: Path, question: Question) -> Config:
    found = question.config or next(
        (f for f in (p / "config.yaml" for p in (place, *place.absolute().parents[:2])) if f.is_file()), None
    )
    if found is None:
        raise ConfigError(f"{place} has no config.yaml beside it; say with --config on what to evaluate it")
    return load_config(found, question.overrides)


def _result(config: Config, place: Path, stage: str, regions: Regions, frames: FrameFigures) -> Result:
    return Result(str(place), stage, regions, frames.regions, config.data.kind == "sequence")


def _run(config: Config, run: Path, device: torch.device, found: Found, notes: list[str], question: Question) -> None:
    _wants_something(config, question)
    for stage in (*WHOLE, "object"):
        frames = FrameFigures()
        regions = evaluate_stage(config, run, stage, device, notes, frames) if stage != ROW_MEDIAN else {}
        if regions:
            found.results.append(_result(config, run, stage, regions, frames))
    found.contact = run_contact(config, run, device)
    learned = with_learned_camera(config, run)
    for stage in (stage for stage in WHOLE if stage != ROW_MEDIAN):
        predict = stage_predictor(learned, run, stage, device) if question.along is not None else None
        if predict is not None:
            _consistency(learned, stage, predict, device, found, question)
        weights = run / stage / WEIGHTS
        if config.data.poses is not None and weights.is_file() and "pose" in load_weights(weights).nets:
            _path(learned, stage, weights, device, found, notes, question)
    if not (found.results or found.contact or found.consistency or found.trajectories):
        raise CheckpointError(f"run {run} has no finished stage with a depth net")


def _single(
    config: Config,
    place: Path,
    device: torch.device,
    found: Found,
    notes: list[str],
    question: Question,
    *,
    files: bool,
) -> None:
    """A net, or the files of another method."""
    _wants_something(config, question)
    known, name = has_ground_truth(config), place.stem if place.is_file() else place.name
    dataset = EvaluationSet(config)
    weights = None if files else find_weights(place)
    predict: Predict
    others: Predictions | None = None
    if files:
        if config.evaluation.scale == "poses":
            raise DataError(f"{place} holds depth and no pose net: --scale poses has nothing to compare poses with")
        wanted = [item.frame for item in dataset.items]
        others = Predictions(place, wanted, question.reading)
        if wanted:
            others.check_shape(wanted[0], _frame_size(config, dataset))
        predict = others
    else:
        net = DepthPredictor.load(place, device=device, size=config.data.size)

        def predict(batch: Batch) -> Tensor:
            return net(batch["image"])

    if known:
        frames, scale = FrameFigures(), scale_of(config, weights, device)
        workers = config.data.workers
        regions = evaluate_depth(predict, dataset, config.evaluation, device, workers, scale, notes, frames)
        found.results.append(_result(config, place, name, regions, frames))
        if others is not None:
            notes += oddities(frames.agreement, question.reading, config.evaluation.scale == "none")
    if others is None or config.evaluation.boxes is not None:
        figures = stage_contact(config, None, predict, device)
        found.contact = {name: figures} if figures else {}
    if question.along is not None:
        _consistency(config, name, predict, device, found, question)
    if weights is not None and config.data.poses is not None and "pose" in load_weights(weights).nets:
        _path(config, name, weights, device, found, notes, question)
    notes += [] if others is None else others.notes


def _wants_something(config: Config, question: Question) -> None:
    asked = config.evaluation.boxes is not None or question.along is not None or config.data.poses is not None
    if not config.data.root.exists():
        raise DataError(f"the data of the run, {config.data.root}, are not there")
    if not has_ground_truth(config) and not asked:
        raise DataError(
            f"{config.data.root} has no ground truth: data.depth names no folder, and no --boxes, --along or --poses "
            "are to be looked at"
        )


def _frame_size(config: Config, dataset: EvaluationSet) -> Sequence[int]:
    if config.data.kind == "sequence":
        return SequenceFolder(config.data, "eval").size
    return dataset[0]["depth_gt"].shape


def _consistency(
    config: Config, stage: str, predict: Predict, device: torch.device, found: Found, question: Question
) -> None:
    assert question.along is not None
    pairs = consistency(config, predict, question.along, device)
    means = {name: sum(pair[name] for pair in pairs.values()) / len(pairs) for name in CONSISTENCY}
    found.consistency[stage] = means | {"pairs": len(pairs)}


def _path(
    config: Config,
    stage: str,
    weights: Path,
    device: torch.device,
    found: Found,
    notes: list[str],
    question: Question,
) -> None:
    try:
        path = camera_path(config, weights, device)
        found.trajectories[stage] = trajectory_figures(path, true_path(config))
        found.paths[stage] = path
    except TrajectoryError as error:
        # A config may name poses for the sake of the scale alone.
        if question.poses is not None:
            raise
        notes.append(f"no trajectory: {error}")


def _trajectory(place: Path, question: Question) -> Found:
    if question.poses is None:
        raise TrajectoryError(f"{place} is a trajectory: --poses names the true one")
    path = read_trajectory(place)
    figures = trajectory_figures(path, read_trajectory(question.poses))
    return Found(place, trajectories={place.stem: figures}, paths={place.stem: path})
