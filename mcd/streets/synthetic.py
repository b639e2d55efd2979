"""Synthetic driving scenes in the Cityscapes layout.

    python -m mcd.data.synthetic OUT --frames 640 --size 64x192 --seed 0

A frame is a triplet (previous, reference, next) with its intrinsics, instance masks of all vehicles, road mask and
poses. Held-out frames (another city, other streets) also get what the evaluation reads: full images, cameras, metric
depth and masks of what moves. The `train_mask_class` masks serve to measure the classification, nothing trains on them.

The same parameters give the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mcd.data.processes import process_count
from mcd.streets.ray_caster import NoiseTexture, View, render
from mcd.streets.street import Street, StreetParameters, make_street

GENERATOR = "mcd.data.synthetic"
VERSION = 1  # raise it whenever the same parameters give other files
CITIES = {"train": "north", "val": "south"}
TRIPLETS_PER_STREET = {"train": 3, "val": 2}
SMALLEST_INSTANCE = 0.001  # share of the image below which a visible vehicle gets no instance mask
EVALUATED_TOP, EVALUATED_SIDE = 1 / 3, 192 / 2048  # the evaluated window leaves out this much of the kept image


@dataclass(frozen=True)
class _Job:
    """One street of `split`, its first `frames` triplets written under `root`."""

    root: Path
    split: str
    street: int
    frames: int
    size: tuple[int, int]
    seed: int


def generate(
    out: str | os.PathLike[str],
    *,
    train: int = 640,
    val: int = 80,
    size: tuple[int, int] = (64, 192),
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> dict:
    """Write `train` + `val` triplets of `size` = (H, W) a frame to `out` and return what its meta.json says.

    A set with the same parameters is left as it is; another set of ours is replaced. The folder appears complete or not
    at all. Raises ValueError for impossible parameters, FileExistsError for a folder of somebody else and OSError where
    nothing can be written.
    """
    out = Path(out).absolute()
    parameters = _parameters(train, val, size, seed)
    if workers < 1:
        raise ValueError(f"workers is {workers}, must be at least 1")
    meta = read_meta(out)
    if meta is not None and meta["parameters"] == parameters:
        return meta
    _refuse_foreign(out)
    with _partial_folder(out) as root:
        jobs = _jobs(root, train, val, size, seed)
        statistics: dict[str, list[dict]] = {"train": [], "val": []}
        with tqdm(total=train + val, unit="frame", desc=out.name, disable=not progress) as bar:
            for job, frames in zip(jobs, _run(jobs, workers), strict=True):
                statistics[job.split] += frames
                bar.update(len(frames))
        for split, frames in statistics.items():
            lines = sorted(f"{CITIES[split]} {frame['frame']}\n" for frame in frames)
            _file(root / "splits" / f"{split}.txt").write_text("".join(lines))
        _contact_sheet(root, "val" if val else "train", size)
        meta = {
            "generator": GENERATOR,
            "parameters": parameters,
            "statistics": {split: _summarise(frames) for split, frames in statistics.items()},
        }
        (root / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        _replace(root, out)
    return meta


def read_meta(out: str | os.PathLike[str]) -> dict | None:
    """meta.json of a set written by this module, None if `out` holds none."""
    try:
        meta = json.loads((Path(out) / "meta.json").read_text())
        return meta if meta["generator"] == GENERATOR and "parameters" in meta else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def matches(out: str | os.PathLike[str], *, train: int, val: int, size: tuple[int, int], seed: int) -> bool:
    """Whether `out` already is the set that `generate` would write."""
    meta = read_meta(out)
    return meta is not None and meta["parameters"] == _parameters(train, val, size, seed)


def _parameters(train: int, val: int, size: tuple[int, int], seed: int) -> dict:
    height, width = size
    if height < 16 or width < 16:
        raise ValueError(f"size is {height}x{width}, each side must be at least 16 pixels")
    if train < 0 or val < 0 or train + val == 0:
        raise ValueError(
            f"{train} training and {val} held-out frames asked for, need at least one frame and none negative"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    parameters = {"version": VERSION, "train": train, "val": val, "size": [height, width], "seed": seed}
    # Through JSON, so that it compares equal with what is read back.
    return json.loads(json.dumps({**parameters, "street": asdict(StreetParameters())}))


def _jobs(root: Path, train: int, val: int, size: tuple[int, int], seed: int) -> list[_Job]:
    jobs = []
    for split, frames in (("train", train), ("val", val)):
        step = TRIPLETS_PER_STREET[split]
        for street, first in enumerate(range(0, frames, step)):
            jobs.append(_Job(root, split, street, min(step, frames - first), size, seed))
    return jobs


def _run(jobs: list[_Job], workers: int) -> Iterator[list[dict]]:
    if workers == 1:
        yield from map(_write_street, jobs)
        return
    # Forked from a fresh process, because a fork of one whose libraries run threads may hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([render.__module__])  # and with it the package, once for all workers
    with ProcessPoolExecutor(process_count(workers, len(jobs)), mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_write_street, jobs, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent and end with it: orphans would go on writing into a folder no longer locked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


@cache
def _texture(seed: int) -> NoiseTexture:
    return NoiseTexture(np.random.default_rng([seed, 2]))


def _intrinsics(size: tuple[int, int]) -> NDArray[np.float64]:
    height, width = size
    focal = StreetParameters.focal_length * width
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, StreetParameters.horizon * height], [0, 0, 1]])


def _write_street(job: _Job) -> list[dict]:
    """Render and write one street; returns the statistics of its frames."""
    rng = np.random.default_rng([job.seed, list(CITIES).index(job.split), job.street])
    # All streets have the same number of views: a set is the beginning of any larger set with its seed.
    street = make_street(rng, TRIPLETS_PER_STREET[job.split] + 2, StreetParameters())
    K = _intrinsics(job.size)
    views = [
        render(street.boxes.at(t), _texture(job.seed), street.light, K, job.size, street.T_world_cam[t])
        for t in range(job.frames + 2)
    ]
    return [_write_frame(job, street, K, t, views[t - 1 : t + 2]) for t in range(1, job.frames + 1)]


def _write_frame(job: _Job, street: Street, K: NDArray[np.float64], t: int, views: list[View]) -> dict:
    root, split, city = job.root, job.split, CITIES[job.split]
    frame = f"{city}_{job.street:06d}_{t:06d}"
    height, width = job.size
    reference = views[1]

    triplet = _file(root / "triplets" / city / f"{frame}.png")
    _write_image(triplet, np.concatenate([view.image for view in views], 1))
    triplet.with_name(f"{frame}_cam.txt").write_text(",".join(f"{number:.9g}" for number in K.ravel()))
    _write_image(_file(root / "road_masks" / split / city / f"{frame}.png"), reference.road)
    inverse = np.linalg.inv(street.T_world_cam[[t - 1, t + 1]])
    poses = "".join(" ".join(f"{number:.9g}" for number in T.ravel()) + "\n" for T in inverse @ street.T_world_cam[t])
    _file(root / "poses" / city / f"{frame}.txt").write_text(poses)

    instances, moving = [], []
    for owner, vehicle in enumerate(street.vehicles):
        mask = reference.owner == owner
        if mask.mean() >= SMALLEST_INSTANCE:
            instances.append(mask)
        if vehicle.role != "parked" and mask.any():
            moving.append((vehicle.role, mask))
    _write_masks(root / "masks" / split / city / frame, instances)
    # The camera's own car fills the bottom quarter of the full image; it has no depth and is no object.
    full = np.zeros((round(height / 0.75), width), bool)
    class_folder = root / f"{split}_mask_class" / city / frame
    _write_masks(class_folder, [_below(mask, full) for _, mask in moving])
    (class_folder / "labels.txt").write_text("".join(f"{role}\n" for role, _ in moving))

    if split == "val":
        image = _below(reference.image, np.full((*full.shape, 3), 16, np.uint8))
        _write_image(_file(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png"), image)
        camera = {"intrinsic": {"fx": K[0, 0], "fy": K[1, 1], "u0": K[0, 2], "v0": K[1, 2]}}
        _file(root / "camera" / split / city / f"{frame}_camera.json").write_text(json.dumps(camera))
        depth = _below(reference.depth, np.zeros(full.shape, np.float32))
        np.save(_file(root / f"{split}_gt_depths" / f"{frame}.npy"), depth)

    dynamic = np.any([mask for _, mask in moving], axis=0) if moving else np.zeros(job.size, bool)
    top, side = round(EVALUATED_TOP * height), round(EVALUATED_SIDE * width)
    seen = {role for role, mask in moving if mask.mean() >= SMALLEST_INSTANCE}
    return {
        "frame": frame,
        "dynamic_window": float(dynamic[top:, side : width - side].mean()),
        "dynamic_image": float(dynamic.sum() / full.size),
        "lead": "lead" in seen,
        "oncoming": "oncoming" in seen,
        "crossing": "crossing" in seen,
        "lead_or_oncoming": bool(seen & {"lead", "oncoming"}),
        "instances": len(instances),
    }


def _below(top: NDArray, canvas: NDArray) -> NDArray:
    """`canvas` with `top` laid over its upper rows."""
    canvas = canvas.copy()
    canvas[: len(top)] = top
    return canvas


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_image(path: Path, image: NDArray) -> None:
    pixels = image.astype(np.uint8) * 255 if image.dtype == bool else image
    Image.fromarray(pixels).save(path, compress_level=1)


def _write_masks(folder: Path, masks: list[NDArray[np.bool_]]) -> None:
    folder.mkdir(parents=True)
    for i, mask in enumerate(masks):
        _write_image(folder / f"{i}.png", mask)


def _summarise(frames: list[dict]) -> dict:
    """Means over frames; for the yes-or-no columns that is the share of frames."""
    columns = [name for name in frames[0] if name != "frame"] if frames else []
    return {"frames": len(frames)} | {name: round(float(np.mean([f[name] for f in frames])), 4) for name in columns}


def _contact_sheet(root: Path, split: str, size: tuple[int, int], rows: int = 10) -> None:
    """Up to ten frames of `split`, a row each: the triplet, the reference with road green, movers red, others blue."""
    height, width = size
    lines = (root / "splits" / f"{split}.txt").read_text().splitlines()
    sheet = []
    for i in np.unique(np.linspace(0, len(lines) - 1, rows).round().astype(int)):
        city, frame = lines[i].split()
        triplet = np.array(Image.open(root / "triplets" / city / f"{frame}.png"))
        reference = triplet[:, width : 2 * width]
        tint = reference.copy()
        road = root / "road_masks" / split / city / f"{frame}.png"
        vehicles = sorted((root / "masks" / split / city / frame).glob("*.png"))
        moving = sorted((root / f"{split}_mask_class" / city / frame).glob("*.png"))
        for paths, colour in (([road], (60, 200, 60)), (vehicles, (60, 90, 255)), (moving, (255, 40, 40))):
            for path in paths:
                tint[np.array(Image.open(path))[:height] > 127] = colour
        row = [triplet, reference // 2 + tint // 2]
        if split == "val":
            depth = np.load(root / f"{split}_gt_depths" / f"{frame}.npy")[:height]
            near = np.where(depth > 0, 255 * (4 / np.maximum(depth, 4)) ** 0.7, 0)
            row.append(np.repeat(near.astype(np.uint8)[..., None], 3, 2))
        sheet.append(np.concatenate(row, 1))
    Image.fromarray(np.concatenate(sheet)).save(root / "contact_sheet.png")


def _refuse_foreign(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()) and read_meta(out) is None:
            raise FileExistsError(
                f"{out} is not empty and not a synthetic set; it is left alone: choose another folder"
            )
    elif out.exists():
        raise FileExistsError(f"{out} is a file, must be a folder or not exist")


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, ours alone: locked against other processes, cleared of a killed one's leavings."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise type(error)(error.errno, f"cannot create {partial} ({error.strerror})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process is writing {out}") from error
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(lock)):
            raise BlockingIOError(errno.EAGAIN, f"another process has just written {out}")
        try:
            for child in partial.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _replace(root: Path, out: Path) -> None:
    """Put the complete folder `root` where `out` was."""
    if out.exists():
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        root.rename(out)
        shutil.rmtree(old)
    else:
        root.rename(out)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64x192 (height x width)")
    return int(match[1]), int(match[2])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mcd.data.synthetic", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--frames", type=int, default=640, help="training triplets (default: %(default)s)")
    parser.add_argument("--val-frames", type=int, default=80, help="held-out triplets (default: %(default)s)")
    parser.add_argument("--size", type=_size, default=(64, 192), help="HxW of one frame (default: 64x192)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: one a core, fewer for a small set)")
    args = parser.parse_args(arguments)
    frames = args.frames + args.val_frames
    workers = args.workers or min(len(os.sched_getaffinity(0)), 1 + frames // 100)
    wanted = {"train": args.frames, "val": args.val_frames, "size": args.size, "seed": args.seed}
    started = time.monotonic()
    try:
        if matches(args.out, **wanted):
            print(f"{args.out} is there already")
            return 0
        meta = generate(args.out, **wanted, workers=workers, progress=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(f"{args.out}: {frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s with {workers} workers")
    for split, means in meta["statistics"].items():
        if means["frames"]:
            print(
                f"  {split:5} {means['frames']:5} frames, {means['lead_or_oncoming']:.0%} with a lead or oncoming car,"
                f" {means['instances']:.1f} instances a frame,\n        dynamic pixels {means['dynamic_window']:.1%}"
                f" of the evaluated window, {means['dynamic_image']:.1%} of the full image"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
