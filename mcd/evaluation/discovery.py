"""How well a run without given masks found what moves: its instances and its ground against those of the data set.

Only data sets that know the answer, such as the synthetic streets, can be asked; nothing is trained on it. Held-out
frames count, at the networks' size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcd.data import open_reader
from mcd.data.files import read_mask, resize_nearest
from mcd.data.labels import numbered_masks
from mcd.files import frame_path, read_json, reading
from mcd.masks.instances import FrameInstances, read_rows
from mcd.masks.morphology import areas, match, overlap
from mcd.masks.source import CANDIDATES, OBJECT_STAGES, GivenMasks, mask_source, round_name
from mcd.run.context import Context

OVERLAP = 0.5
"""Intersection over union from which an instance is the true one."""


@dataclass(frozen=True)
class TrueInstances:
    """What moves in one frame, bool [n,H,W]."""

    moving: Tensor
    """Objects that should be found."""
    small: Tensor
    """Moving objects that need not be found, and are no mistake."""


def evaluate_discovery(context: Context, stage: str) -> dict[str, float]:
    """Figures of a finished stage; empty for other stages, and without the truth.

    ``ground`` has an ``iou``; the stage that finds objects, and ``instances`` (of their masks, those that are dynamic),
    have what :func:`score_instances` gives.
    """
    if stage == "ground":
        return _ground(context)
    finder = OBJECT_STAGES & set(context.config.stages)
    asked = bool(finder) and stage in finder | {"instances"}
    if not asked or context.config.data.kind != "triplets" or not _class_folder(context).is_dir():
        return {}
    # Of the others nobody knows what moves.
    known = [
        frame for frame in open_reader(context.config.data, "val").frames if (_class_folder(context) / frame).is_dir()
    ]
    if not known:
        return {}
    return score_instances(
        (_found(context, stage, frame) for frame in known), (true_instances(context, frame) for frame in known)
    )


def score_instances(found: Iterable[Tensor], truth: Iterable[TrueInstances]) -> dict[str, float]:
    """Compare found masks with true ones, frame by frame.

    Args:
        found: masks [n,H,W] bool of each frame.

    Returns:
        ``found`` and ``moving``, the numbers of masks that count; ``recall``, the share of moving objects that are
        found, and ``precision``, the share of found ones that move; a share of nothing is left out. Whatever overlaps
        with a small object, and with no other, does not count.
    """
    pairs = objects = counted = 0
    for masks, true in zip(found, truth, strict=True):
        matched = match(masks, true.moving, OVERLAP)
        near_small = (overlap(masks, true.small) >= OVERLAP).any(dim=1)
        near_small[[row for row, _ in matched]] = False
        pairs += len(matched)
        objects += len(true.moving)
        counted += len(masks) - int(near_small.sum())
    scores: dict[str, float] = {"found": counted, "moving": objects}
    if counted:
        scores["precision"] = pairs / counted
    if objects:
        scores["recall"] = pairs / objects
    return scores


def ground_iou(found: Iterable[Tensor], truth: Iterable[Tensor]) -> float | None:
    """Intersection over union of ground masks, all frames together; None if no pixel is ground in either."""
    shared = union = 0
    for mask, true in zip(found, truth, strict=True):
        shared += int((mask & true).sum())
        union += int((mask | true).sum())
    return shared / union if union else None


def true_instances(context: Context, frame: str) -> TrueInstances:
    """The moving objects of a held-out frame, apart by the area from which the evaluation of depth counts them."""
    config = context.config
    masks, large = [], []
    for path in numbered_masks(_class_folder(context) / frame).values():
        mask = read_mask(path)
        large.append(mask.sum() >= config.evaluation.min_mask_area * mask.size)
        kept = mask[: round(config.evaluation.keep_rows * len(mask))]
        masks.append(torch.from_numpy(resize_nearest(kept, config.data.size).copy()))
    every = torch.stack(masks) if masks else torch.zeros(0, *config.data.size, dtype=torch.bool)
    counts = torch.tensor(large, dtype=torch.bool)
    return TrueInstances(every[counts], every[~counts & (areas(every) > 0)])


@dataclass(frozen=True)
class Step:
    """What one step from motion to moving objects found in the training frames."""

    name: str
    frames: int
    """Frames in which it found something."""
    among: int
    objects: int | None = None
    score: float | None = None
    """Detections count above this."""


def finders(run_folder: Path) -> dict[str, str]:
    """Finished parts of the detector stage that left objects, or the stage segment, by a name for the reader."""
    parts = {"slots": CANDIDATES}
    count = len(list((run_folder / "detector").glob("round_*")))
    parts |= {f"round {number}": round_name(number) for number in range(count)}
    parts |= {"segmenter": "segment", "proposals": "proposals"}
    return {name: part for name, part in parts.items() if "train" in _facts(run_folder, part)}


def discovery_steps(run_folder: Path) -> list[Step]:
    """The steps that a run has finished, in their order."""
    steps = []
    with reading("facts of a stage", run_folder / "predictions" / "done.json"):
        # Proposals do not ask the residual motion.
        if "train" in (seen := _facts(run_folder, "predictions")) and not _facts(run_folder, "proposals"):
            steps.append(Step("motion", seen["train"]["frames_with_motion"], seen["train"]["frames"]))
    for name, part in finders(run_folder).items():
        with reading("facts of a stage", run_folder / part / "done.json"):
            facts = _facts(run_folder, part)
            train = facts["train"]
            steps.append(
                Step(name, train["frames_with_objects"], train["frames"], train["objects"], facts.get("score"))
            )
    with reading("facts of a stage", run_folder / "instances" / "done.json"):
        if steps and "train" in (classified := _facts(run_folder, "instances")):
            dynamic = [row for row in read_rows(run_folder / "instances", "train") if row.dynamic and row.large]
            frames = classified["train"]["frames"]
            steps.append(Step("dynamic", len({row.frame for row in dynamic}), frames, len(dynamic)))
    return steps


def why_little_was_found(steps: Sequence[Step]) -> str:
    """Where the moving objects were lost, if fewer than half of the frames have one in the end; else ""."""
    if not steps or 2 * steps[-1].frames >= steps[-1].among:
        return ""
    reasons = {
        "motion": "hardly any frame has residual motion: the scene stage explains all by the camera",
        "slots": "what moves is seen, but no slot of it passes as an object",
        "proposals": "nothing that stands on the road moves by itself, or no road is seen: the keys of proposals",
        "segmenter": "it knows too little of what is seen: segment.classes, segment.score",
        "dynamic": "objects are found, but they do not move enough to count as dynamic, or are too small",
    }
    first = next(step for step in steps if 2 * step.frames < step.among)
    reason = reasons.get(first.name, f"in {first.name} the detector finds too little")
    return (
        f"Discovery failed, or there is little to discover: {steps[-1].frames} of {steps[-1].among} training frames "
        f"have an object in the end. It is lost at '{first.name}': {reason}."
    )


def _facts(run_folder: Path, part: str) -> dict[str, Any]:
    path = run_folder / part / "done.json"
    return read_json("facts of a stage", path) if path.is_file() else {}


def _class_folder(context: Context) -> Path:
    return context.config.data.root / "val_mask_class"


def _found(context: Context, stage: str, frame: str) -> Tensor:
    if stage in OBJECT_STAGES:
        return torch.from_numpy(mask_source(context.run).instances("val", frame)[0])
    path = frame_path(context.run.stage("instances"), "val", frame)
    if not path.is_file():
        return torch.zeros(0, *context.config.data.size, dtype=torch.bool)
    found = FrameInstances.load(path)
    return torch.from_numpy(found.masks[found.dynamic, 1])


def _ground(context: Context) -> dict[str, float]:
    data = context.config.data
    if data.kind != "triplets" or not (data.root / data.road_masks / "val").is_dir():
        return {}
    place = data.root / data.road_masks / "val"
    frames = [frame for frame in open_reader(data, "val").frames if (place / f"{frame}.png").is_file()]
    found, given = mask_source(context.run), GivenMasks(data)
    iou = ground_iou(
        (torch.from_numpy(found.ground("val", frame)) for frame in frames),
        (torch.from_numpy(given.ground("val", frame)) for frame in frames),
    )
    return {} if iou is None else {"iou": iou}
