"""Where a camera was and where it looked, frame after frame: files of KITTI and TUM, tables, and the pose net's motion.

    KITTI   twelve numbers a line, the rows of [R | t] (Geiger et al., CVPR 2012)
    TUM     stamp x y z qx qy qz qw (Sturm et al., IROS 2012)
    table   CSV with the columns x, y, z in metres, or latitude, longitude, altitude; with roll, pitch, yaw in radians
            (KITTI's OXTS, of a body whose x is ahead and whose z is up) it has directions too

Poses are ``T_world_camera``; camera axes are x right, y down, z forward.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mcd.files import DataError, reading, write_text

Floats = NDArray[np.float64]

# Metres of the Earth's radius at the equator.
_EARTH = 6378137.0
# Axes of a camera in those of the body that carries it.
_BODY_CAMERA = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
# Columns of a rotation matrix may be so far from length 1 and right angles: files round to six digits and more.
_ORTHONORMAL = 1e-2


@dataclass(frozen=True)
class Trajectory:
    """Poses of N frames."""

    positions: Floats
    """[N,3] of the camera in the world, in metres or in the unit of a net."""
    rotations: Floats | None = None
    """[N,3,3] from the camera's axes to the world's; None where directions are not known."""
    stamps: Floats | None = None
    """[N], seconds; None: a line a frame."""

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, chosen: Sequence[int] | NDArray[np.intp] | slice) -> Trajectory:
        """Some of the frames."""
        place = chosen if isinstance(chosen, slice) else np.asarray(chosen, np.intp)
        return Trajectory(
            self.positions[place],
            None if self.rotations is None else self.rotations[place],
            None if self.stamps is None else self.stamps[place],
        )


def read_trajectory(path: Path) -> Trajectory:
    """A trajectory of any of the three kinds; which it is, its first line says.

    Raises:
        DataError: the file is missing or empty, or a line is of no kind, not finite or no rotation.
    """
    with reading("poses", path):
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise DataError(f"poses {path} are empty")
    if "," in lines[0]:
        return _read_table(path, lines)
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("#"):
            continue
        try:
            rows.append([float(word) for word in line.split()])
        except ValueError:
            raise DataError(f"poses {path}, line {number}: '{line[:60]}' are no numbers") from None
        if len(rows[-1]) != len(rows[0]) or len(rows[-1]) not in (8, 12):
            raise DataError(
                f"poses {path}, line {number} has {len(rows[-1])} numbers; expected 12 (KITTI: [R | t]) or 8 (TUM: "
                "stamp x y z qx qy qz qw) in every line"
            )
    if not rows:
        raise DataError(f"poses {path} are empty")
    values = np.array(rows)
    if not np.isfinite(values).all():
        raise DataError(f"poses {path} hold numbers that are not finite")
    if values.shape[1] == 12:
        matrices = values.reshape(-1, 3, 4)
        _check_rotations(path, matrices[:, :, :3])
        return Trajectory(matrices[:, :, 3], matrices[:, :, :3])
    if not np.linalg.norm(values[:, 4:], axis=1).all():
        raise DataError(f"poses {path} hold a quaternion of length 0")
    if (np.diff(values[:, 0]) <= 0).any():
        raise DataError(f"poses {path}: stamps do not rise from line to line")
    return Trajectory(values[:, 1:4], Rotation.from_quat(values[:, 4:]).as_matrix(), values[:, 0])


def write_kitti(path: Path, trajectory: Trajectory) -> None:
    """Write twelve numbers a frame; a trajectory without directions cannot be written."""
    assert trajectory.rotations is not None, "KITTI's files have directions"
    rows = np.concatenate((trajectory.rotations, trajectory.positions[:, :, None]), axis=2).reshape(-1, 12)
    write_text(path, "".join(" ".join(f"{value:.9e}" for value in row) + "\n" for row in rows))


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Write stamp, position and quaternion of every frame; without stamps the number of the frame stands for it."""
    assert trajectory.rotations is not None, "TUM's files have directions"
    stamps = np.arange(len(trajectory), dtype=float) if trajectory.stamps is None else trajectory.stamps
    quaternions = Rotation.from_matrix(trajectory.rotations).as_quat()
    rows = np.concatenate((trajectory.positions, quaternions), axis=1)
    write_text(
        path,
        "".join(
            f"{stamp:.6f} " + " ".join(f"{value:.9g}" for value in row) + "\n"
            for stamp, row in zip(stamps, rows, strict=True)
        ),
    )


def follow(steps: Sequence[Floats]) -> Trajectory:
    """The trajectory of a camera that begins at the origin, from its motion ``T_next_previous`` [4,4] in every step."""
    poses = [np.eye(4)]
    for step in steps:
        poses.append(poses[-1] @ np.linalg.inv(step))
    stacked = np.stack(poses)
    return Trajectory(stacked[:, :3, 3], stacked[:, :3, :3])


def _read_table(path: Path, lines: Sequence[str]) -> Trajectory:
    table = csv.DictReader(io.StringIO("\n".join(lines)))
    columns = set(table.fieldnames or ())
    kinds = (("x", "y", "z"), ("longitude", "latitude", "altitude"))
    names = next((kind for kind in kinds if set(kind) <= columns), None)
    if names is None:
        raise DataError(f"poses {path} have neither the columns x, y, z nor latitude, longitude, altitude")
    angles = ("roll", "pitch", "yaw")
    wanted = (*names, *(angles if set(angles) <= columns else ()))
    try:
        values = np.array([[float(row[name]) for name in wanted] for row in table], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"poses {path} hold what is no number: {error}") from None
    values = values.reshape(-1, len(wanted))
    if not np.isfinite(values).all():
        raise DataError(f"poses {path} hold numbers that are not finite")
    positions = values[:, :3]
    if names[0] == "longitude" and len(positions):
        degree = math.radians(1) * _EARTH
        east = degree * math.cos(math.radians(positions[0, 1]))
        positions = (positions - positions[0]) * (east, degree, 1)
    if len(wanted) == 3:
        return Trajectory(positions)
    # Intrinsic z, y', x'': yaw, pitch, roll.
    return Trajectory(positions, Rotation.from_euler("ZYX", values[:, 5:2:-1]).as_matrix() @ _BODY_CAMERA)


def _check_rotations(path: Path, rotations: Floats) -> None:
    wrong = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2)) > _ORTHONORMAL
    wrong |= np.linalg.det(rotations) < 0
    if wrong.any():
        raise DataError(f"poses {path}: the 3x3 part of pose {int(wrong.argmax())} is no rotation")
