"""Points of pictures and clips: ``mcd predict --ply`` and ``--rerun``.

A point is what a pixel sees, in the axes of the camera (x right, y down, z forward), of a clip those of its first
frame's camera. Frames of a clip are brought together by the pose net, step by step; its errors add up.
"""

from __future__ import annotations

import argparse
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.config import load_config
from mcd.data import SequenceFolder
from mcd.data.files import resize_image, resize_nearest, text
from mcd.errors import McdError
from mcd.extras import extra
from mcd.files import atomic_path, frame_path
from mcd.geometry import backproject
from mcd.inference.camera import Shares, camera_matrix
from mcd.inference.inputs import RGB, named
from mcd.inference.motion import CameraMotion
from mcd.inference.predictor import DepthPredictor, Estimate
from mcd.masks.instances import FrameInstances
from mcd.visualize import from_bytes

Moving = Literal["keep", "drop", "mark"]
MARK = (255, 0, 200)
_VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
_HEADER = 320


class PointsError(McdError, ValueError):
    """Points that cannot be made: no camera, no pose net, no masks of what moves."""


@dataclass(frozen=True)
class PointSettings:
    """Which points, and into which files."""

    ply: bool
    rerun: bool
    camera: Shares | None
    fov: float | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    """fx, fy, cx, cy in pixels of the pictures; what counts where it is given."""
    step: int = 1
    edges: float | None = None
    """Leave pixels out whose depth differs from a neighbour's by more than this share."""
    farthest: float | None = None
    """Leave points out that are farther, in the unit of the result."""
    moving: Moving = "keep"
    clip: bool = False
    """Pictures are frames of one clip."""
    motion: CameraMotion | None = None
    masks: MovingMasks | None = None
    unit: str = "arbitrary"

    def camera_matrix(self, height: int, width: int) -> NDArray[Any]:
        if self.intrinsics is not None:
            fx, fy, cx, cy = self.intrinsics
            return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return camera_matrix(self.camera, self.fov, height, width)


class MovingMasks:
    """What moves in the frames of a run, as its stage ``instances`` has found.

    Raises:
        PointsError: the run has not finished that stage.
    """

    def __init__(self, run_folder: Path):
        self._folder = run_folder / "instances"
        if not (self._folder / "done.json").is_file():
            raise PointsError(f"{run_folder} does not know what moves: it has not finished the stage 'instances'")

    def __call__(self, frame: str, size: tuple[int, int]) -> NDArray[np.bool_]:
        """[H,W] of a frame of the run; nothing moves in others."""
        for split in ("train", "val"):
            path = frame_path(self._folder, split, frame)
            if path.is_file():
                found = FrameInstances.load(path)
                return resize_nearest(found.masks[found.dynamic, 1].any(axis=0), size)
        return np.zeros(size, bool)


def edges_of(depth: Tensor, share: float) -> Tensor:
    """Pixels [H,W] whose depth differs from that of one of their four neighbours by more than a share of the nearer."""
    edge = torch.zeros_like(depth, dtype=torch.bool)
    for axis in (0, 1):
        inner = depth.shape[axis] - 1
        first, second = depth.narrow(axis, 0, inner), depth.narrow(axis, 1, inner)
        apart = torch.maximum(first, second) / torch.minimum(first, second) - 1 > share
        for begin in (0, 1):
            edge.narrow(axis, begin, inner).logical_or_(apart)
    return edge


def points_of(
    settings: PointSettings,
    image: RGB,
    depth: Tensor,
    moving: NDArray[np.bool_] | None = None,
    T_world_cam: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Points as vertices of a PLY file, in the order of the pixels.

    Args:
        image: [H,W,3]; depth: [H,W], in the unit of the result.
        moving: [H,W], what is left out or marked.
        T_world_cam: [4,4]; None: the points are in the axes of the camera.
    """
    height, width = depth.shape
    K = torch.from_numpy(settings.camera_matrix(height, width)).float()
    depth = depth.detach().cpu().float()
    points = backproject(depth[None, None], K[None])[0].permute(1, 2, 0).double().numpy()
    kept = np.isfinite(points).all(axis=-1)
    if settings.edges is not None:
        kept &= ~edges_of(depth, settings.edges).numpy()
    if settings.farthest is not None:
        kept &= depth.numpy() <= settings.farthest
    if moving is not None and settings.moving == "drop":
        kept &= ~moving
    grid = np.zeros((height, width), bool)
    grid[:: settings.step, :: settings.step] = True
    kept &= grid
    places = points[kept]
    if T_world_cam is not None:
        places = places @ T_world_cam[:3, :3].T + T_world_cam[:3, 3]
    marks = settings.moving == "mark"
    found = np.zeros(len(places), dtype=_VERTEX + [("moving", "u1")] * marks)
    for axis, name in enumerate("xyz"):
        found[name] = places[:, axis]
    colours = image[kept]
    if marks and moving is not None:
        found["moving"] = moving[kept]
        colours = np.where(moving[kept][:, None], np.array(MARK, np.uint8), colours)
    for channel, name in enumerate(("red", "green", "blue")):
        found[name] = colours[:, channel]
    return found


class PlyWriter:
    """Writes a binary PLY file as its points come; it takes its place only when the block ends well.

    Memory does not grow with the points.
    """

    def __init__(self, path: Path, unit: str, marks: bool):
        self._atomic, self._unit, self._marks, self._count = atomic_path(path), unit, marks, 0
        self._file: BinaryIO

    def __enter__(self) -> PlyWriter:
        self._file = self._atomic.__enter__().open("wb")
        self._file.write(self._header())
        return self

    def write(self, vertices: NDArray[Any]) -> None:
        self._file.write(vertices.tobytes())
        self._count += len(vertices)

    def _header(self) -> bytes:
        kinds = {"<f4": "float", "u1": "uchar"}
        fields = _VERTEX + [("moving", "u1")] * self._marks
        lines = ["ply", "format binary_little_endian 1.0", f"comment unit {self._unit}"]
        lines += [f"element vertex {self._count}", *(f"property {kinds[kind]} {name}" for name, kind in fields)]
        # As long with every count, so that the last can be written over the first.
        rest = _HEADER - len("\n".join([*lines, "comment ", "end_header", ""]))
        lines.insert(3, "comment " + "-" * rest)
        return "\n".join([*lines, "end_header", ""]).encode()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.seek(0)
            self._file.write(self._header())
        self._file.close()
        self._atomic.__exit__(kind, error, trace)


class RerunWriter:
    """Writes a recording of rerun: images, depth and camera by frame, and the points of each."""

    def __init__(self, path: Path, unit: str):
        with extra("rerun", "--rerun"):
            import rerun

        self._rerun: Any = rerun
        self._atomic = atomic_path(path)
        self._recording: Any = None
        self._metre = 1.0 if unit == "metres" else None
        self._frame = 0

    def __enter__(self) -> RerunWriter:
        rerun = self._rerun
        self._recording = rerun.RecordingStream("mcd")
        self._recording.save(str(self._atomic.__enter__()))
        self._recording.log("world", rerun.ViewCoordinates.RDF, static=True)
        return self

    def write(self, image: RGB, depth: Tensor, K: NDArray[Any], T: NDArray[Any], vertices: NDArray[Any]) -> None:
        rerun, recording = self._rerun, self._recording
        recording.set_time("frame", sequence=self._frame)
        height, width = depth.shape
        recording.log("world/camera", rerun.Transform3D(translation=T[:3, 3], mat3x3=T[:3, :3]))
        recording.log("world/camera/image", rerun.Pinhole(image_from_camera=K, resolution=[width, height]))
        recording.log("world/camera/image/colours", rerun.Image(image))
        recording.log("world/camera/image/depth", rerun.DepthImage(depth.cpu().numpy(), meter=self._metre))
        places = np.stack([vertices[name] for name in "xyz"], axis=-1)
        colours = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=-1)
        recording.log(f"world/points/{self._frame:06d}", rerun.Points3D(places, colors=colours))
        self._frame += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recording.flush()
        self._recording.disconnect()
        self._atomic.__exit__(kind, error, trace)


class Cloud:
    """The points of one picture or, with a pose net, of the frames of a clip in their order.

    Raises:
        PointsError: on adding: there is no camera, or a frame of a clip has another size than those before.
    """

    def __init__(self, settings: PointSettings, target: Path):
        self._settings, self._target = settings, target
        self._T = np.eye(4)
        self._shape: tuple[int, ...] | None = None
        self._before: Tensor | None = None
        self._files = ExitStack()
        self._ply: PlyWriter | None = None
        self._rerun: RerunWriter | None = None

    def __enter__(self) -> Cloud:
        settings = self._settings
        if settings.ply:
            path = named(self._target, "_points.ply")
            self._ply = self._files.enter_context(PlyWriter(path, settings.unit, settings.moving == "mark"))
        if settings.rerun:
            path = named(self._target, ".rrd")
            self._rerun = self._files.enter_context(RerunWriter(path, settings.unit))
        return self

    def add(self, name: str, image: RGB, estimate: Estimate, scale: float = 1.0) -> None:
        """A picture [H,W,3], the next of a clip; ``scale`` is metres per unit, beside what the estimate has."""
        self._move(image, estimate, scale)
        settings, size = self._settings, (image.shape[0], image.shape[1])
        moving = None if settings.masks is None or settings.moving == "keep" else settings.masks(name, size)
        depth = estimate.depth * scale
        vertices = points_of(settings, image, depth, moving, self._T)
        if self._ply is not None:
            self._ply.write(vertices)
        if self._rerun is not None:
            self._rerun.write(image, depth, settings.camera_matrix(*size), self._T, vertices)

    def _move(self, image: RGB, estimate: Estimate, scale: float) -> None:
        if self._settings.motion is None:
            return
        if self._shape is not None and self._shape != image.shape:
            raise PointsError(
                f"the frames of a clip have one size, not both {text(self._shape)} and {text(image.shape)}"
            )
        self._shape = image.shape
        picture = from_bytes(resize_image(image, estimate.size))[None]
        if self._before is not None:
            T_now_before = self._settings.motion(self._before, picture)[0].double().cpu().numpy()
            T_now_before[:3, 3] *= estimate.metres * scale
            self._T = self._T @ np.linalg.inv(T_now_before)
        self._before = picture

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


def camera_of_run(place: Path) -> Shares | None:
    """The camera of the sequence that a run was trained on; None for other runs, and for what is no run.

    Raises:
        DataError: the run's data is not there any more.
    """
    if not (place / "config.yaml").is_file():
        return None
    data = load_config(place / "config.yaml").data
    if data.kind != "sequence" or data.intrinsics == "learn":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of intrinsics that are guessed, which training has said
        folder = SequenceFolder(data, "eval")
    (height, width), K = folder.size, folder.K
    return K[0, 0] / width, K[1, 1] / height, (K[0, 2] + 0.5) / width, (K[1, 2] + 0.5) / height


def point_settings(given: argparse.Namespace, predictor: DepthPredictor, films: bool) -> PointSettings | None:
    """What --ply and --rerun ask for; None without them.

    Raises:
        PointsError: there is no camera, or nothing that says what moves.
        CheckpointError: frames are to be brought together, and there is no pose net.
        MissingPackage: --rerun, and rerun is not installed.
    """
    if not (given.ply or given.rerun):
        if given.clip or given.moving != "keep":
            raise PointsError("--clip and --moving are of points: give --ply or --rerun, too")
        return None
    if given.rerun:
        with extra("rerun", "--rerun"):
            import rerun  # noqa: F401 - before anything is written
    camera = predictor.camera
    if given.intrinsics is None and given.fov is None and camera is None:
        camera = camera_of_run(Path(given.checkpoint))
        if camera is None:
            raise PointsError(
                "points need a camera, and the weights do not say which: give --intrinsics FX FY CX CY or --fov DEGREES"
            )
    return PointSettings(
        ply=given.ply,
        rerun=given.rerun,
        camera=camera,
        fov=given.fov,
        intrinsics=None if given.intrinsics is None else tuple(given.intrinsics),
        step=given.step,
        edges=given.drop_edges,
        farthest=given.max_depth,
        moving=given.moving,
        clip=given.clip,
        motion=CameraMotion.load(given.checkpoint, given.stage, device=predictor.device) if films else None,
        masks=None if given.moving == "keep" else MovingMasks(Path(given.checkpoint)),
        unit="metres" if given.camera_height is not None or given.scale != 1 else "arbitrary",
    )
