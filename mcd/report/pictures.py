"""Pictures of held-out frames: depth and error of each stage, what moves, ground, slots, detections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from mcd.config import Config, Evaluation
from mcd.data import EvaluationSet, FrameDataset, WholeFrame, collate, open_reader, to_device
from mcd.data.files import resize_image, resize_nearest
from mcd.evaluation.discovery import finders
from mcd.evaluation.protocol import align
from mcd.evaluation.stages import has_ground_truth, stage_predictor
from mcd.files import frame_path
from mcd.inference.predictor import choose_device, resize_depth
from mcd.masks.detections import FrameDetections, read_counts
from mcd.masks.instances import FrameInstances
from mcd.masks.source import read_ground
from mcd.report.gallery import WIDEST, Gallery, Tiles, greatest, spread
from mcd.run.checkpoint import load_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import moving_pixels
from mcd.stages.slots import read_candidates
from mcd.visualize import (
    colour_depth,
    colour_error,
    colour_flow,
    colour_shares,
    depth_range,
    from_bytes,
    gather_points,
    outline,
    resize_picture,
    tint,
)

FRAMES, DETECTION_FRAMES = 6, 4
ROUNDS = 3
# Frames are chosen among so many, spread over the split: looking at all masks of a big one would take minutes.
CANDIDATES = 60
SHOWN = {"scene": "first", "pseudo": "pseudo", "final": "final"}
"""Stages in the pictures, and what they are called there."""
DYNAMIC, STATIC = (1.0, 0.2, 0.15), (0.25, 0.5, 1.0)
_CHOSEN = "Of each part of the held-out frames, the one with the most"


def depth_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """Image, truth, and depth and error of every stage that the run has; None if it has none.

    Raises:
        DataError, CheckpointError, ValueError, OSError: frames or weights cannot be read.
    """
    device = choose_device(config.device)
    predictors = {stage: stage_predictor(config, run_folder, stage, device) for stage in SHOWN}
    if not any(predictors.values()):
        return None
    batch, chosen = _chosen_frames(config)
    batch = to_device(batch, device)
    with torch.no_grad():
        depths = {stage: predict(batch).cpu() for stage, predict in predictors.items() if predict is not None}
    names = {stage: f"{SHOWN[stage]} depth" if len(depths) > 1 else "depth" for stage in depths}
    measured = "depth_gt" in batch
    frames = []
    for index, frame in enumerate(batch["frame"]):
        image = batch["image"][index].cpu()
        of_frame = {names[stage]: depth[index : index + 1] for stage, depth in depths.items()}
        if measured:
            gt, valid = (torch.from_numpy(batch[name][index]) for name in ("depth_gt", "valid"))
            mask = batch["dynamic_mask"][index]
            dynamic = torch.zeros_like(valid) if mask is None else torch.from_numpy(mask)
            tiles = _compared(config.evaluation, image, of_frame, gt, valid, dynamic)
        else:
            size = _shown_size(batch["native"][index])
            tiles = [("image", resize_picture(image, size))]
            tiles += [(name, colour_depth(resize_depth(depth, size)[0, 0])) for name, depth in of_frame.items()]
        frames.append((frame, tiles))
    note = Markup(f"{chosen} Depth: bright is near.")
    if len(depths) > 1:
        note += " First is the net of the scene stage."
    if measured:
        note += Markup(
            " All maps of a frame share their scale and colours. Error: <span class=near>blue</span> is predicted too "
            "near, <span class=far>red</span> too far, full colour at a factor of 2; the number is abs_rel."
        )
    return Gallery(note, frames, lines=2 if measured else 1)


def depth_panel(config: Config, run_folder: Path) -> Gallery | None:
    """The same without errors, and of fewer frames."""
    gallery = depth_gallery(config, run_folder)
    if gallery is None:
        return None
    frames = [(frame, [t for t in tiles if not t[0].startswith("error")]) for frame, tiles in gallery.frames[:4]]
    return Gallery(gallery.note, frames)


def motion_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """What moves by itself; None if the scene stage has learned no residual motion. Raises as above."""
    device = choose_device(config.device)
    context = Context(config, Run.at(run_folder, config), device)
    weights = context.weights_of("scene")
    if not weights.is_file() or "motion" not in load_weights(weights).nets:
        return None
    reader = open_reader(config.data, "val")
    items = [WholeFrame(frame) for frame in spread(reader.frames, FRAMES)]
    dataset = FrameDataset(reader, config.data, items=items)
    batch = to_device(collate([dataset[index] for index in range(len(items))]), device)
    scene = ScenePredictions(context)("val", batch)
    moving = moving_pixels(scene.flow, config.instances.flow_threshold).float()
    frames: list[tuple[str, Tiles]] = []
    for frame, image, flow, mask in zip(batch["frame"], batch["reference"], scene.flow, moving, strict=True):
        arrows = [(f"motion to the {name} frame", colour_flow(flow[s])) for s, name in enumerate(("previous", "next"))]
        frames.append((frame, [("image", image), *arrows, ("moves", tint(image, mask[0]))]))
    note = (
        "What the camera's own motion leaves over: hue is direction, saturation is length. Green moves by at least "
        f"{config.instances.flow_threshold:g} pixels at a width of 512."
    )
    return Gallery(note, frames)


def slots_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """Ground and slots, as far as the run has looked for them; None if it has not. Raises as above."""
    finished = [stage for stage in ("ground", "slots") if (run_folder / stage / "done.json").is_file()]
    if not finished:
        return None
    frames: list[tuple[str, Tiles]] = []
    for frame in spread(open_reader(config.data, "val").frames, FRAMES):
        image, _ = _image(config, frame)
        tiles: Tiles = [("image", image)]
        if "ground" in finished:
            share = torch.from_numpy(read_ground(run_folder, "val", frame))
            tiles.append(("ground", tint(image, share[0])))
        if "slots" in finished:
            slots = torch.from_numpy(read_candidates(run_folder / "slots", "val", frame)).float()
            for shares, where in zip(slots, ("previous", "next"), strict=True):
                tiles.append((f"slots, {where} frame", colour_shares(shares / shares.sum(dim=0).clamp(min=1))))
        frames.append((frame, tiles))
    return Gallery("Ground is green. Each slot has a colour, the background is light grey.", frames)


def detection_gallery(config: Config, run_folder: Path) -> Gallery | None:
    """What slots and rounds, or a segmenter, found, and what is dynamic; None if no part is over. Raises as above."""
    parts = finders(run_folder)
    rounds = [name for name in parts if name != "slots"]
    shown = {rounds[max((index + 1) * len(rounds) // ROUNDS - 1, 0)] for index in range(ROUNDS)} if rounds else set()
    parts = {name: part for name, part in parts.items() if name in shown or name == "slots"}
    if not parts:
        return None
    counts = read_counts(run_folder / list(parts.values())[-1] / "val.csv")
    seen = [frame for frame in open_reader(config.data, "val").frames if frame in counts]
    frames: list[tuple[str, Tiles]] = []
    for frame in greatest(seen, DETECTION_FRAMES, counts.__getitem__):
        image, _ = _image(config, frame)
        width = max(image.shape[2], WIDEST)
        image = resize_picture(image, (round(image.shape[1] * width / image.shape[2]), width))
        tiles: Tiles = [("image", image)]
        for name, part in parts.items():
            path = frame_path(run_folder / part, "val", frame)
            if path.is_file():
                masks = FrameDetections.load(path).masks
                tiles.append((f"{name}: {len(masks)}", _outlined(image, masks)))
        path = frame_path(run_folder / "instances", "val", frame)
        if path.is_file():
            found = FrameInstances.load(path)
            colours = [DYNAMIC if dynamic else STATIC for dynamic in found.dynamic]
            outlined = _outlined(image, torch.from_numpy(found.masks[:, 1]), colours)
            tiles.append((f"dynamic: {int(found.dynamic.sum())} of {len(found.dynamic)}", outlined))
        frames.append((frame, tiles))
    note = Markup(
        f"{_CHOSEN} objects. Outlined is what was found; at the end, <span class=far>red</span> is what counts as "
        "moving, <span class=near>blue</span> what does not."
    )
    return Gallery(note, frames)


def _chosen_frames(config: Config) -> tuple[dict[str, Any], str]:
    """A batch of frames for the pictures of depth, and how they were chosen."""
    evenly = "Frames spread evenly over the split."
    items = _items_with_truth(config)
    if not items:
        frames = spread(open_reader(config.data, "val").frames, FRAMES)
        images = [_image(config, frame) for frame in frames]
        small = torch.stack([image for image, _ in images])
        return {"image": small, "frame": frames, "native": [native for _, native in images]}, evenly
    if any(item["dynamic_mask"] is None for item in items):
        return collate(spread(items, FRAMES)), evenly
    most = greatest(items, FRAMES, lambda item: int((item["dynamic_mask"] & item["valid"]).sum()))
    return collate(most), f"{_CHOSEN} moving pixels; these are outlined."


def _items_with_truth(config: Config) -> list[dict[str, Any]]:
    """Candidate frames with at least one pixel that counts in the evaluation."""
    if not has_ground_truth(config):
        return []
    dataset = EvaluationSet(config)
    items = (dataset[index] for index in spread(range(len(dataset)), CANDIDATES))
    return [item for item in items if item["valid"].any()]


def _image(config: Config, frame: str) -> tuple[Tensor, tuple[int, ...]]:
    """The picture of a held-out frame at the networks' size, and its native size."""
    image = open_reader(config.data, "val").read(frame, sources=False).images[0]
    return from_bytes(resize_image(image, config.data.size)), image.shape[:2]


def _compared(
    settings: Evaluation, image: Tensor, depths: Mapping[str, Tensor], gt: Tensor, valid: Tensor, dynamic: Tensor
) -> Tiles:
    """Image, truth, then the depth and the error of each stage."""
    size = _shown_size(gt.shape)
    # Points of LiDAR would be too fine to see.
    cell = 1 if (gt > 0).float().mean() > 0.5 else 2
    grid = (size[0] // cell, size[1] // cell)
    truth = gather_points(gt, grid)
    limits = depth_range(gt[valid]) if valid.any() else None
    picture = outline(resize_picture(image, size), gather_points(dynamic.float(), size) > 0)
    tiles = [("image", picture), ("ground truth", _enlarge(colour_depth(truth, limits), cell))]
    for name, depth in depths.items():
        aligned = align(depth, gt, valid, settings)
        relative = (aligned - gt).abs() / gt
        error = f"error {relative[valid].mean():.2f}"
        if (dynamic & valid).any():
            error += f", moving {relative[dynamic & valid].mean():.2f}"
        tiles.append((name, colour_depth(resize_depth(aligned[None, None], size)[0, 0], limits)))
        wrong = colour_error(resize_depth(aligned[None, None], grid)[0, 0], truth)
        tiles.append((error, _enlarge(wrong, cell)))
    return tiles


def _outlined(picture: Tensor, masks: Tensor, colours: list[tuple[float, float, float]] | None = None) -> Tensor:
    size = (picture.shape[1], picture.shape[2])
    for index, mask in enumerate(torch.from_numpy(resize_nearest(masks.numpy(), size))):
        picture = outline(picture, mask) if colours is None else outline(picture, mask, colours[index])
    return picture


def _shown_size(native: tuple[int, ...]) -> tuple[int, int]:
    height, width = native
    return max(round(height * min(1, WIDEST / width)), 1), min(width, WIDEST)


def _enlarge(picture: Tensor, times: int) -> Tensor:
    return picture.repeat_interleave(times, 1).repeat_interleave(times, 2)
