"""Depth of images and videos: ``mcd predict [CHECKPOINT] INPUT… [-o OUT]``.

Without a checkpoint, or with the word start, the nets that come with mcd are used: trained on rendered roads alone,
they know streets and motorways. OUT is the folder depth unless another is named.

An input is an image, a folder of images and videos, a quoted glob, a video, or a stream: a camera (/dev/video0), an
address (rtsp://…) or a pipe (-). Every image gives

    OUT/NAME_depth.png      colours, bright near and dark far                      (--format png, the default)
    OUT/NAME_depth.npy      float32 [H, W], depth in the net's unit times --scale  (--format npy)
    OUT/NAME_depth16.png    16 bit, depth * --factor; the factor is in its text    (--format 16bit)

and a video OUT/NAME_depth.mp4, with its frames' npy and 16-bit files in the folder OUT/NAME. All have the resolution
of the input. Monocular depth has no unit of its own: --camera-height puts it into metres by the road that is seen,
picture by picture, and --scale where a length is known.

--ply writes the points that are seen as OUT/NAME_points.ply, --rerun a recording OUT/NAME.rrd for the viewer of that
name; of a video, or with --clip of all images as OUT/clip, those of all frames as one cloud, brought together by the
pose net. They need a camera: that of the run, --intrinsics or --fov.

A stream gives the same as a video, as long as it lasts; with -o - its depth goes to the standard output. What comes
faster than it is worked on is left out and counted, unless --every-frame lets the source wait.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from mcd.errors import out_of_memory
from mcd.files import atomic_path
from mcd.geometry import MAX_DEPTH, MIN_DEPTH
from mcd.inference.inputs import IMAGES, RGB, VIDEOS, InputError, Job, find_inputs, is_stream, named, plan, read_image
from mcd.inference.metric import AnyPredictor, MetricPredictor, NoRoadError
from mcd.inference.motion import CameraMotion
from mcd.inference.points import Cloud, PointsError, PointSettings, point_settings
from mcd.inference.predictor import DepthPredictor, Estimate, choose_device
from mcd.inference.smooth import SmoothPredictor
from mcd.run.checkpoint import CheckpointError
from mcd.visualize import RunningRange, colour_depth, to_bytes

FORMATS = ("png", "npy", "16bit")
# The nets' farthest depth is 100, so that no pixel of theirs saturates.
FACTOR = 650.0
MOST_AT_ONCE = 4096


@dataclass(frozen=True)
class Options:
    """How predictions are made and written; see ``--help``."""

    formats: tuple[str, ...] = ("png",)
    batch: int = 8
    scale: float = 1.0
    factor: float = FACTOR
    with_image: bool = False
    points: PointSettings | None = None


def save_depth(target: Path, depth: Tensor, options: Options) -> None:
    """Write the npy and 16-bit files of one depth map [H, W]; depths above 65535 / factor saturate."""
    if "npy" in options.formats:
        with atomic_path(named(target, "_depth.npy")) as path:
            np.save(path, depth.cpu().numpy())
    if "16bit" in options.formats:
        text = PngInfo()
        text.add_text("depth_factor", f"{options.factor:g}")
        levels = levels_of(depth, options.factor)
        with atomic_path(named(target, "_depth16.png")) as path:
            Image.fromarray(levels).save(path, pnginfo=text)


def levels_of(depth: Tensor, factor: float) -> NDArray[np.uint16]:
    """Depth [H, W] in levels of 16 bits, ``factor`` a unit; 0 stays free, and what is too far is at the last."""
    return (depth.double() * factor).round().clamp(1, 65535).cpu().numpy().astype(np.uint16)


def predict_images(predictor: AnyPredictor, jobs: Sequence[Job], options: Options, out: Path) -> Iterator[str | None]:
    """Predict and write images; yields for each None, or why it could not be read. Points of a clip go to ``out``."""

    def read(job: Job) -> tuple[Job, RGB | InputError]:
        try:
            return job, read_image(job.source)
        except InputError as error:
            return job, error

    def write(job: Job, image: RGB, estimate: Estimate) -> None:
        depth = estimate.depth * options.scale
        save_depth(job.target, depth, options)
        if options.points is not None and clip is None:
            with Cloud(replace(options.points, motion=None), job.target) as cloud:
                cloud.add(job.source.stem, image, estimate, options.scale)
        if "png" in options.formats:
            with atomic_path(named(job.target, "_depth.png")) as path:
                Image.fromarray(draw(image, depth, options.with_image)).save(path)

    with ThreadPoolExecutor(max_workers=8) as pool, ExitStack() as stack:
        clip = None
        if options.points is not None and options.points.clip:
            clip = stack.enter_context(Cloud(options.points, out / "clip"))
        # While the net works on a batch, the next one is decoded and the one before is encoded.
        batches = [jobs[start : start + options.batch] for start in range(0, len(jobs), options.batch)]
        reads = [pool.submit(read, job) for job in (batches[0] if batches else ())]
        writes: list[Future[None]] = []
        for number in range(len(batches)):
            found = [done.result() for done in reads]
            reads = [pool.submit(read, job) for job in (batches[number + 1] if number + 1 < len(batches) else ())]
            good = [(job, image) for job, image in found if not isinstance(image, InputError)]
            estimates = predictor.estimate([image for _, image in good])
            for done in writes:
                done.result()
            writes = [
                pool.submit(write, job, image, estimate) for (job, image), estimate in zip(good, estimates, strict=True)
            ]
            if clip is not None:
                for (job, image), estimate in zip(good, estimates, strict=True):
                    clip.add(job.source.stem, image, estimate, options.scale)
            yield from (str(image) if isinstance(image, InputError) else None for _, image in found)
        for done in writes:
            done.result()


def predict_video(predictor: AnyPredictor, job: Job, options: Options) -> Iterator[str | None]:
    """Predict and write a video; yields None for each frame and last, if it broke off, why.

    What was decoded before a broken frame is kept.
    """
    from mcd.data.video import VideoError, VideoReader, VideoWriter

    done, colours = 0, RunningRange()
    try:
        clip = VideoReader(job.source)
        with ExitStack() as stack:
            movie = None
            if "png" in options.formats:
                movie = stack.enter_context(VideoWriter(named(job.target, "_depth.mp4"), clip.rate))
            cloud = None if options.points is None else stack.enter_context(Cloud(options.points, job.target))
            frames = iter(clip)
            while images := list(islice(frames, options.batch)):
                for image, estimate in zip(images, predictor.estimate(images), strict=True):
                    depth = estimate.depth * options.scale
                    if cloud is not None:
                        cloud.add(f"{done:010d}", image, estimate, options.scale)
                    save_depth(job.target / f"{done:06d}", depth, options)
                    if movie is not None:
                        movie.write(draw(image, depth, options.with_image, colours.update(depth)))
                    done += 1
                    yield None
            if not done:
                raise VideoError(f"video {job.source} cannot be read: {clip.problem or 'it has no frames'}")
    except VideoError as error:
        yield str(error)
        return
    if clip.problem:
        yield f"video {job.source} breaks off after {done} frames: {clip.problem}"


def draw(image: RGB, depth: Tensor, with_image: bool, limits: tuple[float, float] | None = None) -> RGB:
    """Coloured depth, below its image if ``with_image``."""
    coloured = to_bytes(colour_depth(depth, limits))
    return np.vstack([image, coloured]) if with_image else coloured


def parse_size(text: str) -> tuple[int, int]:
    """``HxW`` as (height, width)."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form HxW, for example 192x640") from None
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"size {text} has no pixel")
    return height, width


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None
    if not 1 <= value <= MOST_AT_ONCE:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to {MOST_AT_ONCE}")
    return value


def check_range(options: Options) -> None:
    """Raise InputError if every depth that a net can predict would be written as the same number."""
    nearest, farthest = (depth * options.scale for depth in (MIN_DEPTH, MAX_DEPTH))
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not (nearest >= least and farthest <= most):
        raise InputError(f"--scale {options.scale:g} makes depths of {nearest:g} to {farthest:g}, beyond float32")
    if "16bit" in options.formats and not (farthest * options.factor >= 1.5 and nearest * options.factor < 65535):
        raise InputError(
            f"--scale {options.scale:g} and --factor {options.factor:g} make levels of {nearest * options.factor:g} to "
            f"{farthest * options.factor:g}, all outside 1 to 65535"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mcd predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run folder, stage folder or weights file (default: start)"
    )
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="image, folder, glob or video")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("depth"),
        metavar="OUT",
        help="folder for the results (default: depth)",
    )
    parser.add_argument(
        "--format", choices=FORMATS, nargs="+", default=["png"], metavar="FORMAT", help="any of png, npy, 16bit"
    )
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="size for the net (default: as trained)")
    parser.add_argument("--stage", help="of a run folder: which stage's net (default: final, else scene)")
    parser.add_argument("--batch", type=_count, default=8, help="images at a time (default 8)")
    parser.add_argument("--scale", type=_positive, default=1.0, help="metres per unit of the net (default 1)")
    parser.add_argument(
        "--camera-height", type=_positive, metavar="METRES", help="of the camera above the road: results are in metres"
    )
    parser.add_argument(
        "--fov", type=_positive, metavar="DEGREES", help="horizontal field of view (default: of the camera trained on)"
    )
    parser.add_argument(
        "--factor", type=_positive, default=FACTOR, help=f"16-bit levels per unit of depth (default {FACTOR:g})"
    )
    parser.add_argument(
        "--smooth",
        action="store_true",
        help="videos and streams: steady by the depth before, as the camera moves it",
    )
    parser.add_argument("--every-frame", action="store_true", help="streams: let the source wait, leave no frame out")
    parser.add_argument("--with-image", action="store_true", help="show the image above its coloured depth")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--force", action="store_true", help="overwrite results that exist")
    points = parser.add_argument_group("points")
    points.add_argument("--ply", action="store_true", help="write the points, binary and in the image's colours")
    points.add_argument("--rerun", action="store_true", help="write a recording for rerun's viewer (extra rerun)")
    points.add_argument("--clip", action="store_true", help="the images are frames of one clip: one cloud, OUT/clip")
    points.add_argument(
        "--intrinsics",
        type=_positive,
        nargs=4,
        metavar=("FX", "FY", "CX", "CY"),
        help="camera in pixels of the pictures (default: --fov, else that of the run)",
    )
    points.add_argument("--step", type=_count, default=1, metavar="N", help="every N-th row and column (default: 1)")
    points.add_argument(
        "--drop-edges",
        type=_positive,
        nargs="?",
        const=0.1,
        metavar="SHARE",
        help="leave out pixels whose depth differs from a neighbour's by more than a share (0.1)",
    )
    points.add_argument("--max-depth", type=_positive, metavar="DEPTH", help="leave out what is farther, such as sky")
    points.add_argument(
        "--moving",
        choices=("keep", "drop", "mark"),
        default="keep",
        help="what the run has found to move in its frames: left out, or marked (magenta, and a property)",
    )
    given = parser.parse_intermixed_args(arguments)
    if not given.inputs and given.checkpoint == "start":
        parser.error("no INPUT is named: an image, folder, glob or video")
    if not given.inputs or Path(given.checkpoint).suffix.lower() in IMAGES | VIDEOS:
        given.checkpoint, given.inputs = "start", [given.checkpoint, *given.inputs]
    return given


def in_series(predictor: DepthPredictor, given: argparse.Namespace) -> Callable[..., AnyPredictor]:
    """What makes the predictor of a series of pictures: each has a running scale, and a last depth, of its own.

    Its argument ``film`` says whether the pictures follow one another in time.

    Raises:
        ValueError: --camera-height has no camera to go with, or goes with --scale.
        CheckpointError: --smooth, and no pose net is there.
    """
    if given.camera_height is not None and given.scale != 1:
        raise ValueError("--scale and --camera-height both say how many metres a unit has: give one of them")
    if given.fov is not None and given.fov >= 180:
        raise ValueError(f"--fov is {given.fov:g} degrees; a pinhole camera sees less than 180")
    motion = CameraMotion.load(given.checkpoint, given.stage, device=predictor.device) if given.smooth else None

    def make(*, film: bool) -> AnyPredictor:
        steady = predictor if motion is None or not film else SmoothPredictor(predictor, motion, given.fov)
        if given.camera_height is None:
            return steady
        return MetricPredictor(steady, predictor.camera, given.fov, given.camera_height, predictor.own)

    make(film=False)
    return make


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 where some input could not be read, 2 where nothing was done."""
    given = _parse(arguments)
    options = Options(tuple(given.format), given.batch, given.scale, given.factor, given.with_image)
    try:
        check_range(options)
        streams = [name for name in given.inputs if is_stream(name)]
        if streams and len(given.inputs) > 1:
            raise InputError(f"{streams[0]} is a stream: it is the only input of a command")
        if streams and (given.ply or given.rerun):
            raise PointsError(f"{streams[0]} is a stream: points are of images and videos")
        points = ["ply"] * given.ply + ["rerun"] * given.rerun
        outputs = [*options.formats, *points]
        jobs = [] if streams else plan(find_inputs(given.inputs), given.output, outputs, given.force)
        if given.clip:
            plan([Path("clip")], given.output, points, given.force)
        predictor = DepthPredictor.load(
            given.checkpoint, given.stage, device=choose_device(given.device), size=given.size
        )
        series = in_series(predictor, given)
        if streams:
            from mcd.inference.stream import follow

            return follow(
                streams[0], series(film=True), given.output, options, every=given.every_frame, force=given.force
            )
        clip = bool(given.clip)
        films = clip or any(job.is_video for job in jobs)
        options = replace(options, points=point_settings(given, predictor, films))
        given.output.mkdir(parents=True, exist_ok=True)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    images = [job for job in jobs if not job.is_video]
    work: list[tuple[str, int | None, Iterator[str | None]]] = []
    if images:
        work.append(("images", len(images), predict_images(series(film=clip), images, options, given.output)))
    if videos := [job for job in jobs if job.is_video]:
        from mcd.data.video import frame_count

        work += [
            (job.source.name, frame_count(job.source), predict_video(series(film=True), job, options)) for job in videos
        ]
    problems: list[str] = []
    for title, total, results in work:
        bar = tqdm(results, desc=title, total=total, unit="image", dynamic_ncols=True)
        try:
            problems += [problem for problem in bar if problem]
        except (NoRoadError, CheckpointError, PointsError) as error:
            problems.append(f"{title}: {error}")
        except OSError as error:
            problems.append(f"results of {title} cannot be written: {error}")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            problems.append(f"not enough memory for {title}: lower --batch or --size")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0
