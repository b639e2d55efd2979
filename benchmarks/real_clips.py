"""A depth net on real clips it was never trained on: ``python -m benchmarks.real_clips CHECKPOINT --clips FOLDER``.

FOLDER holds what is there of kitti_0001 and kitti_0926 (image_02, depth_lidar: uint16, metres * 256) and highway
(highway.mp4 and vehicles.csv with boxes frame, x0, y0, x1, y1); a clip that is not there is left out. Printed are

    abs_rel, a1   over all LiDAR points of the KITTI crop after median scaling, the protocol of mcd.evaluate
    standing      abs_rel of the points 0.3 to 2.5 m above the fitted road: what a net that knows only rows gets wrong
    row median    both figures of the median depth of each image row over the clip's training frames, as a baseline
    contact       depth of a vehicle's lower third over the road's at its foot; about 1.0
    upright       depth of its upper third over the road's at its foot; 1.0 to 1.15
    road          rms and 99th percentile of |ln(depth / plane)| over the camera's own lane: pits and bumps

and, of a run given by --masks whose frames are those of highway,

    found         share of the near boxes that one of its moving masks covers (overlap of boxes 0.4 or more)
    false         share of its moving masks that are no vehicle (overlap with every box below 0.3)
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mcd.data.evaluation import CROPS
from mcd.data.video import VideoReader
from mcd.inference.command import parse_size
from mcd.inference.predictor import DepthPredictor
from mcd.masks.instances import FrameInstances
from mcd.masks.morphology import boxes as mask_boxes
from mcd.visualize import colour_depth, to_bytes

Depth = NDArray[np.float64]
Predict = Callable[[Sequence[NDArray[np.uint8]]], list[Depth]]
# Focal lengths and centre in pixels of the images, frames of the row medians, evaluated frames.
KITTI = {
    "kitti_0001": ((230.636, 230.892, 194.503, 54.973), range(108), range(108)),
    "kitti_0926": ((721.5377, 721.5377, 609.5593, 172.854), range(41), range(41, 56)),
}
NEAR_BOX = 45  # px of width
# The camera's own lane in the highway clip, as shares of width and height.
LANE = ((0.2, 0.97), (0.84, 0.97), (0.565, 0.645), (0.46, 0.645))


def above_road(depth: Depth, K: tuple[float, ...]) -> Depth:
    """Height in m of each measured point above a plane fitted to the road; NaN where nothing is measured."""
    rows, columns = np.nonzero(depth > 0)
    z = depth[rows, columns]
    points = np.stack([(columns - K[2]) / K[0] * z, (rows - K[3]) / K[1] * z, z], -1)
    low = points[(points[:, 1] > 1.0) & (points[:, 1] < 2.6) & (np.abs(points[:, 0]) < 8) & (z < 40)]
    rng, best = np.random.default_rng(0), np.zeros(len(low), bool)
    for _ in range(200):
        sample = low[rng.choice(len(low), 3, replace=False)]
        plane, *_ = np.linalg.lstsq(np.c_[sample[:, [0, 2]], np.ones(3)], sample[:, 1], rcond=None)
        inliers = np.abs(low[:, [0, 2]] @ plane[:2] + plane[2] - low[:, 1]) < 0.08
        if abs(plane[0]) < 0.15 and abs(plane[1]) < 0.1 and inliers.sum() > best.sum():
            best = inliers
    plane, *_ = np.linalg.lstsq(np.c_[low[best][:, [0, 2]], np.ones(best.sum())], low[best][:, 1], rcond=None)
    height = np.full(depth.shape, np.nan)
    height[rows, columns] = points[:, [0, 2]] @ plane[:2] + plane[2] - points[:, 1]
    return height


def kitti(folder: Path, name: str, predict: Predict) -> dict[str, float]:
    """The figures of one KITTI clip, means over its frames."""
    K, known, frames = KITTI[name]
    files = sorted((folder / "image_02").iterdir())

    def lidar(frame: int) -> Depth:
        return np.asarray(Image.open(folder / "depth_lidar" / f"{files[frame].stem}.png")).astype(np.float64) / 256

    # The usual crop is nearly all of an image; points that are too far or too near take no part.
    height, width = lidar(0).shape
    top, bottom, left, right = (
        round(s * n) for s, n in zip(CROPS["kitti"], (height, height, width, width), strict=True)
    )
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    stacked = np.stack([np.where(lidar(frame) > 0, lidar(frame), np.nan) for frame in known])
    measured = np.isfinite(stacked).any((0, 2))
    medians = np.nanmedian(np.where(measured[None, :, None], stacked, 1.0), axis=(0, 2))
    medians = np.interp(np.arange(height), np.nonzero(measured)[0], medians[measured])
    rows = np.repeat(medians[:, None], width, 1)
    found: dict[str, list[float]] = {}
    images = [np.asarray(Image.open(files[frame]).convert("RGB")) for frame in frames]
    for frame, depth in zip(frames, predict(images), strict=True):
        truth = lidar(frame)
        valid = inside & (truth > 1e-3) & (truth < 80)
        height_above = above_road(truth, K)
        standing = valid & (height_above > 0.3) & (height_above < 2.5)
        for source, values in (("", depth), ("row median ", rows)):
            ratio = np.median(truth[valid]) / np.median(values[valid])
            error = np.abs(np.clip(values * ratio, 1e-3, 80) - truth) / np.maximum(truth, 1e-3)
            found.setdefault(source + "abs_rel", []).append(error[valid].mean())
            found.setdefault(source + "standing", []).append(error[standing].mean())
            if not source:
                relative = np.clip(values * ratio, 1e-3, 80)[valid] / truth[valid]
                found.setdefault("a1", []).append((np.maximum(relative, 1 / relative) < 1.25).mean())
    return {key: float(np.nanmean(values)) for key, values in found.items()}


def highway(folder: Path, predict: Predict) -> dict[str, float]:
    """Medians of the boxes' contact and upright, upright of the net's own row medians, and the road's evenness."""
    with (folder / "vehicles.csv").open() as file:
        boxes = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    wanted = sorted({box["frame"] for box in boxes})
    images = [image for index, image in enumerate(VideoReader(folder / "highway.mp4")) if index in wanted]
    depths = dict(zip(wanted, predict(images), strict=True))
    by_row = np.repeat(np.median(np.concatenate(list(depths.values()), 1), 1)[:, None], images[0].shape[1], 1)

    def figures(maps: dict[int, Depth]) -> Depth:
        found = []
        for box in boxes:
            depth, x0, y0, x1, y1 = maps[box["frame"]], box["x0"], box["y0"], box["x1"], box["y1"]
            w, h = x1 - x0, y1 - y0
            middle = slice(x0 + w // 5, max(x1 - w // 5, x0 + w // 5 + 1))
            road = np.median(depth[y1 + 1 : y1 + 5, middle])
            lower, upper = depth[y1 - h // 3 : y1, middle], depth[y0 + h // 8 : y0 + h // 3 + 1, middle]
            found.append((np.median(lower) / road, np.median(upper) / road))
        return np.array(found)

    near = np.array([box["x1"] - box["x0"] >= NEAR_BOX for box in boxes])
    own, rows = figures(depths), figures(dict.fromkeys(wanted, by_row))
    quartiles = np.percentile(own[:, 0], [25, 75])
    roads = np.array([road_evenness(depth) for depth in depths.values()]).mean(0)
    return {
        "contact": float(np.median(own[:, 0])),
        "contact 25 %": float(quartiles[0]),
        "contact 75 %": float(quartiles[1]),
        "upright all": float(np.median(own[:, 1])),
        "upright near": float(np.median(own[near, 1])),
        "row median upright all": float(np.median(rows[:, 1])),
        "row median upright near": float(np.median(rows[near, 1])),
        "road rms": float(roads[0]),
        "road 99 %": float(roads[1]),
    }


def discovered(folder: Path, run: Path) -> dict[str, float]:
    """How well a run that was given no masks found the vehicles of the highway: shares, and of how many."""
    with (folder / "vehicles.csv").open() as file:
        boxes = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    height, width = next(iter(VideoReader(folder / "highway.mp4"))).shape[:2]
    near = covered = things = no_vehicle = 0
    for frame in sorted({box["frame"] for box in boxes}):
        true = [tuple(box[key] for key in ("x0", "y0", "x1", "y1")) for box in boxes if box["frame"] == frame]
        large = [box for box in true if box[2] - box[0] >= NEAR_BOX]
        moving = list[Sequence[float]]()
        for split in ("train", "val"):
            for path in (run / "instances" / split).glob(f"*{frame:06d}.npz"):
                instances = FrameInstances.load(path)
                masks = torch.from_numpy(instances.masks[instances.dynamic, 1])
                scale = torch.tensor([width / masks.shape[-1], height / masks.shape[-2]] * 2)
                moving += (mask_boxes(masks) * scale).tolist()
        near += len(large)
        covered += sum(max((overlap(box, mask) for mask in moving), default=0.0) >= 0.4 for box in large)
        things += len(moving)
        no_vehicle += sum(max(overlap(box, mask) for box in true) < 0.3 for mask in moving)
    return {"found": covered / near, "false": no_vehicle / max(things, 1), "near boxes": near, "moving masks": things}


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    wide, high = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def road_evenness(depth: Depth) -> tuple[float, float]:
    """rms and 99th percentile of |ln(depth / plane)| in the own lane; inverse depth of a plane is affine."""
    height, width = depth.shape
    corners = np.array(LANE) * [width, height]
    rows, columns = np.mgrid[:height, :width]
    inside = np.ones((height, width), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) <= 0
    design = np.stack([columns[inside] / width, rows[inside] / height, np.ones(inside.sum())], -1)
    inverse = 1 / depth[inside]
    plane, *_ = np.linalg.lstsq(design / inverse[:, None], np.ones(len(inverse)), rcond=None)
    error = np.abs(np.log(np.maximum(design @ plane, 1e-6) / inverse))
    return float(np.sqrt((error**2).mean())), float(np.percentile(error, 99))


def measure(predictors: dict[str, Predict], clips: Path) -> dict[str, dict[str, float]]:
    """Figures by clip; `predictors` by the clip's name, "" for any other."""
    found = {}
    for name in (*KITTI, "highway"):
        if (clips / name).is_dir():
            predict = predictors.get(name, predictors[""])
            found[name] = highway(clips / name, predict) if name == "highway" else kitti(clips / name, name, predict)
    return found


def predictor(checkpoint: str, size: tuple[int, int] | None) -> Predict:
    net = DepthPredictor.load(checkpoint, size=size)

    def predict(images: Sequence[NDArray[np.uint8]]) -> list[Depth]:
        return [net.predict([image])[0].double().numpy() for image in images]

    return predict


def pictures(predict: Predict, clips: Path, out: Path, count: int = 4) -> None:
    """Frames of each clip above their depth, one sheet a clip."""
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in clips.iterdir() if path.is_dir()):
        if (folder / "image_02").is_dir():
            files = sorted((folder / "image_02").iterdir())
            images = [np.asarray(Image.open(f).convert("RGB")) for f in files[:: max(1, len(files) // count)][:count]]
        elif list(folder.glob("*.mp4")):
            frames = list(VideoReader(next(folder.glob("*.mp4"))))
            images = frames[:: max(1, len(frames) // count)][:count]
        else:
            continue
        tiles = [
            np.vstack([image, to_bytes(colour_depth(torch.from_numpy(depth).float()))])
            for image, depth in zip(images, predict(images), strict=True)
        ]
        columns = 1 if images[0].shape[1] > 2 * images[0].shape[0] else 2
        rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles) // columns * columns, columns)]
        sheet = Image.fromarray(np.vstack(rows))
        sheet.thumbnail((1400, 1600))
        sheet.save(out / f"{folder.name}.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_clips", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="run folder, stage folder or weights file")
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--wide", type=parse_size, help="size for the net on the KITTI clips (default: its own choice)")
    parser.add_argument("--size", type=parse_size, help="size for the net on others (default: its own choice)")
    parser.add_argument("--masks", type=Path, help="run folder whose discovered masks are counted on the highway")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the depth")
    given = parser.parse_args(arguments)
    wide_net, net = predictor(given.checkpoint, given.wide), predictor(given.checkpoint, given.size)
    found = measure({"": net, "kitti_0001": wide_net, "kitti_0926": wide_net}, given.clips)
    for clip, figures in found.items():
        print(clip, json.dumps({key: round(value, 3) for key, value in figures.items()}))
    if given.masks:
        shares = discovered(given.clips / "highway", given.masks)
        print("masks", json.dumps({key: round(value, 3) for key, value in shares.items()}))
    if given.pictures:
        pictures(net, given.clips, given.pictures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
