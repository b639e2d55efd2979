"""What the 3-D view of a report shows: frames of a clip with depth, camera motion and what moves by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mcd.config import Config
from mcd.data import Batch, FrameDataset, Reader, SequenceFolder, WholeFrame, collate, open_reader, to_device
from mcd.data.files import resize_image, resize_nearest
from mcd.evaluation.protocol import Predict
from mcd.evaluation.stages import stage_predictor
from mcd.files import frame_path
from mcd.geometry import invert_rigid, scale_intrinsics
from mcd.inference.predictor import choose_device
from mcd.masks.instances import FrameInstances
from mcd.report.gallery import WIDEST, spread
from mcd.run.checkpoint import load_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.poses import predict_poses, without_own_vehicle
from mcd.scene.predictions import ScenePredictions
from mcd.scene.residual import moving_pixels

STAGES = ("scene", "final")
LONGEST, SHOTS = 24, 12
"""Frames of a sequence, and of data whose frames are no sequence."""
POINTS, DENSEST = 480_000, 32_000
"""Of a whole clip and of a frame, at most: the page stays below 8 MB."""
# Beyond so many medians of the depth is the sky, or what a net says of it.
_FARTHEST = 6.0
# How far the inverse depth of neighbouring pixels may be from that of a plane, as a share.
_EDGE = 0.12
_SMALLEST = 12
_BATCH = 4


@dataclass(frozen=True)
class ClipFrame:
    """A frame; its maps [h,w] have a pixel a point."""

    name: str
    shot: int
    """Frames of one shot share a world."""
    image: NDArray[np.uint8]
    """[H,W,3], finer than the maps."""
    K: NDArray[np.float64]
    """[3,3] in pixels of the maps."""
    T_world_camera: NDArray[np.float64]
    """[4,4]"""
    depth: dict[str, NDArray[np.float32]]
    """By stage."""
    shown: dict[str, NDArray[np.bool_]]
    """By stage; False where there is no point: the own vehicle, the sky, between a thing and what is behind it."""
    moving: NDArray[np.uint8]
    """0 for what stands still, otherwise the number of a thing that moves."""


@dataclass(frozen=True)
class Clip:
    """Frames, those of a shot in temporal order. Lengths are in median depths."""

    frames: list[ClipFrame]
    paths: list[NDArray[np.float64]]
    """Positions [n,3] of the camera, by shot; none where the run has no pose net."""
    marks: str
    """What counts as moving, in words; empty where nothing is known of it."""

    @property
    def stages(self) -> list[str]:
        return list(self.frames[0].depth)


def collect_clip(config: Config, run_folder: Path, points: int = POINTS) -> Clip | None:
    """The frames that a run held out, as its nets see them; None for a run without a depth net.

    Of a sequence consecutive frames, through which the camera moves as the scene's pose net says; of other data frames
    spread over the split, each with the positions of its two neighbours. The depth of the final net, whose unit is its
    own, is brought to the scene's by one factor, the median ratio over the clip.

    Args:
        points: of the whole clip, at most.

    Raises:
        DataError, CheckpointError, ValueError, OSError: frames or weights cannot be read.
    """
    device = choose_device(config.device)
    predictors = {stage: stage_predictor(config, run_folder, stage, device) for stage in STAGES}
    depth_of = {stage: predict for stage, predict in predictors.items() if predict is not None}
    if not depth_of:
        return None
    # Looking at a run leaves its store as it is.
    context = Context(config.model_copy(update={"store": "none"}), Run.at(run_folder, config), device)
    weights = context.weights_of("scene")
    roles = set(load_weights(weights).nets) if weights.is_file() else set()
    split, reader, names = _clip_frames(context, chained="pose" in roles)
    chained = "pose" in roles and isinstance(reader, SequenceFolder)
    grid = grid_size(config.data.size, min(points // len(names), DENSEST))
    frames: list[ClipFrame] = []
    paths: list[NDArray[np.float64]] = []
    sources: set[str] = set()
    T_world_camera = np.eye(4)
    for batch, depths, T_src_ref, flow in _seen(context, reader, names, depth_of, roles):
        for index, name in enumerate(batch["frame"]):
            moving, source = _moving(context, split, name, None if flow is None else flow[index])
            sources.add(source)
            own = batch["own"][index, 0].numpy() if "own" in batch else np.zeros(config.data.size, bool)
            maps = {stage: depth[index, 0].numpy() for stage, depth in depths.items()}
            frames.append(
                ClipFrame(
                    name,
                    0 if chained else len(frames),
                    shown_image(reader, name),
                    scale_intrinsics(batch["K"][index].double(), *_shrunk(config.data.size, grid)).numpy(),
                    T_world_camera,
                    {stage: resize_nearest(depth, grid) for stage, depth in maps.items()},
                    {stage: resize_nearest(~(own | edges(depth)), grid) for stage, depth in maps.items()},
                    _components(resize_nearest(moving, grid)),
                )
            )
            if T_src_ref is not None:
                before, after = invert_rigid(T_src_ref[index].double()).numpy()
                if chained:
                    T_world_camera = T_world_camera @ after
                else:
                    paths.append(np.stack((before[:3, 3], np.zeros(3), after[:3, 3])))
    if chained:
        paths.append(np.stack([frame.T_world_camera[:3, 3] for frame in frames]))
    return _measured(Clip(frames, paths, " or ".join(sorted(sources - {""}))))


def grid_size(size: Sequence[int], points: int) -> tuple[int, int]:
    """The largest grid (h, w) of the shape of ``size`` with no more than so many points, and no finer than it."""
    share = min(1.0, math.sqrt(points / (size[0] * size[1])))
    return max(1, int(share * size[0])), max(1, int(share * size[1]))


def edges(depth: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a depth map [H,W] passes from one thing to another behind it: points there would hang between the two.

    The inverse depth of a plane is linear in the pixel, so that its second difference is 0, however steep the plane.
    """
    inverse = 1 / np.pad(depth.astype(np.float64), 1, mode="edge")
    centre, (left, right) = inverse[1:-1, 1:-1], (inverse[1:-1, :-2], inverse[1:-1, 2:])
    above, below = inverse[:-2, 1:-1], inverse[2:, 1:-1]
    bend = np.maximum(np.abs(left + right - 2 * centre), np.abs(above + below - 2 * centre))
    return np.maximum(bend, np.abs(left - right) / 2) > _EDGE * centre


def _clip_frames(context: Context, chained: bool) -> tuple[str, Reader, list[str]]:
    """The split, its reader, and names of frames: consecutive ones of a sequence, else some of the split."""
    data = context.data
    if data.kind != "sequence":
        reader = open_reader(data, "val")
        return "val", reader, spread(reader.frames, SHOTS)
    for split in ("eval", "val") if data.eval_frames is not None else ("val",):
        folder = SequenceFolder(data, split)
        if folder.frames:
            break
    if not chained:
        return split, folder, spread(folder.frames, LONGEST)
    shot = max(_shots(folder), key=len)
    first = max((len(shot) - LONGEST) // 2, 0)
    return split, folder, shot[first : first + LONGEST]


def _shots(folder: SequenceFolder) -> Iterator[list[str]]:
    """Frames one after the other, each the next neighbour of the one before."""
    left = dict.fromkeys(folder.frames)
    place = {name: position for position, name in enumerate(folder.names)}
    while left:
        name: str | None = next(iter(left))
        shot = []
        while name in left:
            shot.append(name)
            del left[name]
            following = place[name] + folder.spacings(name)[0]
            name = folder.names[following] if following < len(folder.names) else None
        yield shot


def _seen(
    context: Context, reader: Reader, names: Sequence[str], depth_of: Mapping[str, Predict], roles: set[str]
) -> Iterator[tuple[Batch, dict[str, Tensor], Tensor | None, Tensor | None]]:
    """Batches with depth by stage, and camera motion [B,2,4,4] and residual flow [B,2,2,H,W] where nets say them."""
    data = context.data
    dataset = FrameDataset(reader, data, items=[WholeFrame(name) for name in names])
    scene = ScenePredictions(context)
    pose = context.trained("scene", "pose") if "pose" in roles else None
    for first in range(0, len(names), _BATCH):
        batch = to_device(collate([dataset[n] for n in range(first, min(first + _BATCH, len(names)))]), context.device)
        T_src_ref: Tensor | None = None
        flow: Tensor | None = None
        with torch.no_grad():
            depths = {stage: predict({"image": batch["reference"]}).cpu() for stage, predict in depth_of.items()}
            if pose is not None and "motion" in roles:
                seen = scene("val", batch)
                T_src_ref, flow = seen.T_src_ref.cpu(), seen.flow.cpu()
            elif pose is not None:
                reference, sources = without_own_vehicle(batch)
                T_src_ref = predict_poses(context, pose, reference, sources).cpu()
        yield to_device(batch, "cpu"), depths, T_src_ref, flow


def _moving(context: Context, split: str, name: str, flow: Tensor | None) -> tuple[NDArray[np.bool_], str]:
    """What moves in a frame [H,W], and in words what counts as moving."""
    path = frame_path(context.run.stage("instances"), split, name)
    if path.is_file():
        found = FrameInstances.load(path)
        moving = found.masks[found.dynamic, 1].any(axis=0)
        return moving, "the objects that the stage instances calls dynamic"
    if flow is not None:
        threshold = context.config.instances.flow_threshold
        moving = moving_pixels(flow[None], threshold)[0, 0].numpy()
        return moving, f"residual motion of at least {threshold:g} pixels at a width of 512"
    return np.zeros(context.config.data.size, bool), ""


def shown_image(reader: Reader, name: str) -> NDArray[np.uint8]:
    """The picture of a frame, no wider than pictures of a report are."""
    native = reader.read(name, sources=False).images[0]
    share = min(1, WIDEST / native.shape[1])
    return resize_image(native, (max(1, round(share * native.shape[0])), round(share * native.shape[1])))


def _shrunk(size: Sequence[int], grid: Sequence[int]) -> tuple[float, float]:
    return grid[1] / size[1], grid[0] / size[0]


def _components(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Number the connected parts of a mask from 1, the largest first; those of a few pixels do not count."""
    parts, count = ndimage.label(mask)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    kept = sorted((part for part in range(1, count + 1) if areas[part] >= _SMALLEST), key=lambda part: -areas[part])
    numbers = np.zeros(count + 1, np.uint8)
    numbers[kept[:255]] = np.arange(1, len(kept[:255]) + 1)
    return numbers[parts]


def _measured(clip: Clip) -> Clip:
    """The clip in median depths of its first stage, the other one brought to its unit, without points too far away."""
    first, *others = clip.stages
    depths = {stage: np.stack([frame.depth[stage] for frame in clip.frames]) for stage in clip.stages}
    unit = {first: 1 / float(np.median(depths[first]))}
    for stage in others:
        unit[stage] = unit[first] * float(np.median(depths[first] / depths[stage]))
    frames = []
    for frame in clip.frames:
        depth = {stage: (unit[stage] * found).astype(np.float32) for stage, found in frame.depth.items()}
        shown = {stage: found & (depth[stage] < _FARTHEST) for stage, found in frame.shown.items()}
        T_world_camera = frame.T_world_camera.copy()
        T_world_camera[:3, 3] *= unit[first]
        frames.append(replace(frame, depth=depth, shown=shown, T_world_camera=T_world_camera))
    return replace(clip, frames=frames, paths=[unit[first] * path for path in clip.paths])
