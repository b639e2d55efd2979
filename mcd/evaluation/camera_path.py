"""The way of the camera as the pose net of a run sees it, beside the true one."""

from __future__ import annotations

from pathlib import Path

import torch

from mcd.config import Config
from mcd.data import SequenceFolder
from mcd.data.files import resize_image, resize_nearest
from mcd.data.sequence import consecutive_runs
from mcd.evaluation.trajectory import TrajectoryError
from mcd.inference.motion import CameraMotion
from mcd.scene.poses import hide_own_vehicle
from mcd.scene.trajectory import Trajectory, follow, read_trajectory
from mcd.visualize import from_bytes


def camera_path(config: Config, weights: Path, device: torch.device | str = "cpu") -> Trajectory:
    """Poses of the evaluated frames of a sequence, the first being the origin, in the unit of the nets.

    Raises:
        CheckpointError: the weights hold no pose net.
        DataError: the data are no sequence, or cannot be read.
        TrajectoryError: a gap in the numbers of the frames interrupts the way.
    """
    folder = _folder(config)
    names = folder.every_frame
    if not config.data.bridge_gaps and len(runs := consecutive_runs(names)) > 1:
        raise TrajectoryError(
            f"the numbers of the frames of {config.data.root} leave a gap after {names[runs[0][1]]}: evaluate each "
            "part by its own (data.eval_frames), or set data.bridge_gaps=true"
        )
    motion, own = CameraMotion.load(weights, device=device), folder.own_mask
    hidden = None if own is None else torch.from_numpy(resize_nearest(own, config.data.size))
    steps, before = [], None
    for name in names:
        picture = from_bytes(resize_image(folder.read_image(name), config.data.size))[None]
        picture = picture if hidden is None else hide_own_vehicle(picture, hidden)
        if before is not None:
            steps.append(motion(before, picture)[0].double().cpu().numpy())
        before = picture
    return follow(steps)


def true_path(config: Config) -> Trajectory:
    """What ``data.poses`` says of the evaluated frames.

    Raises:
        DataError: it names no file, or the file is broken, or has not a line a frame.
    """
    folder = _folder(config)
    if config.data.poses is None:
        raise TrajectoryError("data.poses names no file with the true way of the camera (--poses FILE)")
    path = config.data.root / config.data.poses
    trajectory = read_trajectory(path)
    if len(trajectory) != len(folder.names):
        raise TrajectoryError(f"poses {path} have {len(trajectory)} lines, and there are {len(folder.names)} frames")
    position = {name: number for number, name in enumerate(folder.names)}
    found = trajectory.take([position[name] for name in folder.every_frame])
    # Frame by frame: the stamps of a video's frames are not known.
    return Trajectory(found.positions, found.rotations)


def _folder(config: Config) -> SequenceFolder:
    if config.data.kind != "sequence":
        raise TrajectoryError(f"trajectories are for data of kind sequence, not {config.data.kind}")
    return SequenceFolder(config.data, "eval")
