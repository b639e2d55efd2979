"""Pictures of held-out frames for the report: image, truth, and depth and error of each stage, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mcd.config import Config, Evaluation
from mcd.data import EvaluationSet, FrameDataset, WholeFrame, collate, open_reader, to_device
from mcd.data.files import resize_image
from mcd.evaluation.protocol import align
from mcd.evaluation.stages import has_ground_truth, stage_predictor
from mcd.files import atomic_path
from mcd.inference.predictor import choose_device, resize_depth
from mcd.masks.source import read_ground
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
    panel,
    resize_picture,
    tint,
    to_bytes,
)

FRAMES = 6
WIDEST = 480
# Frames are chosen among so many, spread over the split: looking at all masks of a big one would take minutes.
CANDIDATES = 60
SHOWN = {"scene": "first", "pseudo": "pseudo", "final": "final"}
"""Stages in the pictures, and what they are called there."""


def frame_pictures(config: Config, run_folder: Path) -> str:
    """Pictures of a few frames with every stage that the run has; "" if it has none.

    Raises:
        DataError, CheckpointError, ValueError, OSError: frames or weights cannot be read.
    """
    device = choose_device(config.device)
    predictors = {stage: stage_predictor(config, run_folder, stage, device) for stage in SHOWN}
    if not any(predictors.values()):
        return ""
    batch, chosen = choose_frames(config)
    batch = to_device(batch, device)
    with torch.no_grad():
        depths = {stage: predict(batch).cpu() for stage, predict in predictors.items() if predict is not None}
    lines = [chosen, "Depth: bright is near."]
    if len(depths) > 1:
        lines.append("First is the net of the scene stage.")
    if "depth_gt" in batch:
        lines.append(
            "All maps of a frame share their scale and colours. Error: <span class=near>blue</span> is predicted too "
            "near, <span class=far>red</span> too far, full colour at a factor of 2; the number is abs_rel."
        )
    blocks = ""
    for index, frame in enumerate(batch["frame"]):
        image = batch["image"][index].cpu()
        names = {stage: f"{SHOWN[stage]} depth" if len(depths) > 1 else "depth" for stage in depths}
        of_frame = {names[stage]: depth[index : index + 1] for stage, depth in depths.items()}
        if "depth_gt" in batch:
            gt, valid = (torch.from_numpy(batch[name][index]) for name in ("depth_gt", "valid"))
            mask = batch["dynamic_mask"][index]
            dynamic = torch.zeros_like(valid) if mask is None else torch.from_numpy(mask)
            compared = _compared(config.evaluation, image, of_frame, gt, valid, dynamic)
            tiles = "".join(tile(picture, caption) for caption, picture in compared)
        else:
            size = _shown_size(batch["native"][index])
            tiles = tile(resize_picture(image, size), "image")
            for name, depth in of_frame.items():
                tiles += tile(colour_depth(resize_depth(depth, size)[0, 0]), name)
        rows = 2 if "depth_gt" in batch else 1
        blocks += f"<h3>{escape(frame)}</h3><div class='tiles rows{rows}'>{tiles}</div>"
    return f"<p class=muted>{' '.join(lines)}</p>{blocks}"


def motion_pictures(config: Config, run_folder: Path) -> str:
    """Pictures of what moves by itself in a few held-out frames; "" if the scene stage has learned no residual motion.

    Raises:
        DataError, CheckpointError, ValueError, OSError: frames or weights cannot be read.
    """
    rows = _motion_rows(config, run_folder, FRAMES)
    blocks = "".join(
        f"<h3>{escape(frame)}</h3><div class='tiles rows1'>{''.join(tile(p, caption) for caption, p in pictures)}</div>"
        for frame, pictures in rows
    )
    explained = (
        "What the camera's own motion leaves over: hue is direction, saturation is length. Green moves by at least "
        f"{config.instances.flow_threshold:g} pixels at a width of 512."
    )
    return f"<p class=muted>{explained}</p>{blocks}" if rows else ""


def write_motion_panel(config: Config, run_folder: Path, path: Path) -> None:
    """One PNG of what :func:`motion_pictures` shows.

    Raises:
        DataError, CheckpointError, ValueError, OSError: there is no residual motion; frames or weights cannot be read.
    """
    rows = _motion_rows(config, run_folder, FRAMES)
    if not rows:
        raise ValueError(f"{run_folder} has no net of residual motion")
    sheet = panel([[p for _, p in pictures] for _, pictures in rows], [caption for caption, _ in rows[0][1]])
    with atomic_path(path) as temporary:
        Image.fromarray(to_bytes(sheet)).save(temporary, "PNG")


def _motion_rows(config: Config, run_folder: Path, wanted: int) -> list[tuple[str, list[tuple[str, Tensor]]]]:
    """Frames, and the captions and pictures of each."""
    device = choose_device(config.device)
    context = Context(config, Run.at(run_folder, config), device)
    weights = context.weights_of("scene")
    if not weights.is_file() or "motion" not in load_weights(weights).nets:
        return []
    reader = open_reader(config.data, "val")
    items = [WholeFrame(reader.frames[index]) for index in _spread(len(reader.frames), wanted)]
    dataset = FrameDataset(reader, config.data, items=items)
    batch = to_device(collate([dataset[index] for index in range(len(items))]), device)
    scene = ScenePredictions(context)("val", batch)
    moving = moving_pixels(scene.flow, config.instances.flow_threshold).float()
    return [
        (
            frame,
            [
                ("image", image),
                ("motion to the previous frame", colour_flow(flow[0])),
                ("motion to the next frame", colour_flow(flow[1])),
                ("moves", tint(image, mask[0])),
            ],
        )
        for frame, image, flow, mask in zip(batch["frame"], batch["reference"], scene.flow, moving, strict=True)
    ]


def discovery_pictures(config: Config, run_folder: Path) -> str:
    """Pictures of what the run found by itself in a few held-out frames, stage by stage; "" if it looked for nothing.

    Raises:
        DataError, OSError: frames, or what a stage left, cannot be read.
    """
    left = {stage: run_folder / stage for stage in ("ground", "slots")}
    if not any((folder / "done.json").is_file() for folder in left.values()):
        return ""
    reader = open_reader(config.data, "val")
    blocks = ""
    for frame in (reader.frames[index] for index in _spread(len(reader.frames), FRAMES)):
        image = from_bytes(resize_image(reader.read(frame, sources=False).images[0], config.data.size))
        tiles = tile(image, "image")
        for stage, draw in (("ground", _ground_tiles), ("slots", _slot_tiles)):
            if (left[stage] / "done.json").is_file():
                tiles += draw(left[stage], frame, image)
        blocks += f"<h3>{escape(frame)}</h3><div class='tiles rows1'>{tiles}</div>"
    explained = "Ground is green. Each slot has a colour, the background is light grey."
    return f"<p class=muted>{explained}</p>{blocks}"


def _ground_tiles(folder: Path, frame: str, image: Tensor) -> str:
    share = torch.from_numpy(read_ground(folder.parent, "val", frame))
    return tile(tint(image, share[0]), "ground")


def _slot_tiles(folder: Path, frame: str, image: Tensor) -> str:
    tiles = ""
    for masks, where in zip(read_candidates(folder, "val", frame), ("previous", "next"), strict=True):
        shares = torch.from_numpy(masks).float()
        tiles += tile(colour_shares(shares / shares.sum(dim=0).clamp(min=1)), f"slots, {where} frame")
    return tiles


def write_panel(config: Config, run_folder: Path, path: Path, frames: int = 4) -> None:
    """One PNG of a few frames: image, truth, and the depth of each stage that the run has.

    Raises:
        DataError, CheckpointError, ValueError, OSError: there is no ground truth; frames or weights cannot be read.
    """
    if not has_ground_truth(config):
        raise ValueError(f"{run_folder} has no ground truth to lay beside its depth")
    device = choose_device(config.device)
    predictors = {stage: stage_predictor(config, run_folder, stage, device) for stage in SHOWN}
    batch, _ = choose_frames(config)
    batch = to_device(batch, device)
    with torch.no_grad():
        depths = {f"{SHOWN[stage]} depth": predict(batch).cpu() for stage, predict in predictors.items() if predict}
    rows, titles = [], []
    for index in range(min(frames, len(batch["frame"]))):
        gt, valid = (torch.from_numpy(batch[name][index]) for name in ("depth_gt", "valid"))
        mask = batch["dynamic_mask"][index]
        dynamic = torch.zeros_like(valid) if mask is None else torch.from_numpy(mask)
        of_frame = {name: depth[index : index + 1] for name, depth in depths.items()}
        compared = _compared(config.evaluation, batch["image"][index].cpu(), of_frame, gt, valid, dynamic)
        shown = [entry for entry in compared if not entry[0].startswith("error")]
        titles = [caption for caption, _ in shown]
        rows.append([picture for _, picture in shown])
    with atomic_path(path) as temporary:
        Image.fromarray(to_bytes(panel(rows, titles))).save(temporary, "PNG")


def choose_frames(config: Config) -> tuple[dict[str, Any], str]:
    """A batch of frames for the pictures, and how they were chosen."""
    evenly = "Frames spread evenly over the split."
    items = _items_with_truth(config)
    if not items:
        reader = open_reader(config.data, "val")
        frames = [reader.frames[index] for index in _spread(len(reader.frames), FRAMES)]
        images = [reader.read(frame, sources=False).images[0] for frame in frames]
        small = torch.stack([from_bytes(resize_image(image, config.data.size)) for image in images])
        return {"image": small, "frame": frames, "native": [image.shape[:2] for image in images]}, evenly
    if any(item["dynamic_mask"] is None for item in items):
        return collate([items[index] for index in _spread(len(items), FRAMES)]), evenly
    parts = min(FRAMES, len(items))
    groups = [items[part * len(items) // parts : (part + 1) * len(items) // parts] for part in range(parts)]
    most = [max(group, key=lambda item: int((item["dynamic_mask"] & item["valid"]).sum())) for group in groups]
    return collate(most), "Of each part of the split, the frame with the most moving pixels; these are outlined."


def _items_with_truth(config: Config) -> list[dict[str, Any]]:
    """Frames to choose from of which some pixel counts in the evaluation."""
    if not has_ground_truth(config):
        return []
    dataset = EvaluationSet(config)
    items = (dataset[index] for index in _spread(len(dataset), CANDIDATES))
    return [item for item in items if item["valid"].any()]


def _compared(
    settings: Evaluation, image: Tensor, depths: Mapping[str, Tensor], gt: Tensor, valid: Tensor, dynamic: Tensor
) -> list[tuple[str, Tensor]]:
    """Captions and pictures: image, truth, then the depth and the error of each stage."""
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


def _shown_size(native: tuple[int, ...]) -> tuple[int, int]:
    height, width = native
    return max(round(height * min(1, WIDEST / width)), 1), min(width, WIDEST)


def _enlarge(picture: Tensor, times: int) -> Tensor:
    return picture.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _spread(length: int, wanted: int) -> list[int]:
    """At most ``wanted`` positions spread evenly over ``length``."""
    count = min(length, wanted)
    return [(2 * index + 1) * length // (2 * count) for index in range(count)]


def tile(picture: Tensor, caption: str) -> str:
    """A picture with its caption, as HTML."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(buffer, "JPEG", quality=90, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    caption = escape(caption)
    return f"<figure><img alt='{caption}' src='{source}'><figcaption>{caption}</figcaption></figure>"
