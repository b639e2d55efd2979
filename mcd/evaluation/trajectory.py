"""How far a trajectory is from the true one, as papers print it.

    ate        m        root mean square distance of the positions, after the similarity that brings them nearest
                        (Umeyama, PAMI 1991; Sturm et al., IROS 2012)
    rpe_t      m        root mean square error of the translation from frame to frame, at the scale of that similarity
    rpe_r      degrees  the same of the rotation
    snippet    m        ate over five frames, with one factor for their scale, and its standard deviation over all five
                        neighbouring frames (Zhou et al., CVPR 2017)
    t_rel      %        error of the translation over 100, 200 … 800 m of the way, mean (Geiger et al., CVPR 2012)
    r_rel      °/100 m  the same of the rotation

A monocular trajectory has no unit: its scale is that of the similarity, one for the whole of it. Where a truth knows no
directions, there is the ate alone; where its way is shorter than 100 m, there is no t_rel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcd.errors import McdError
from mcd.scene.trajectory import Floats, Trajectory

FIGURES = {"ate": "m", "rpe_t": "m", "rpe_r": "°", "snippet": "m", "snippet_std": "m", "t_rel": "%", "r_rel": "°/100 m"}
"""Names and units, as they are shown."""

SNIPPET = 5
LENGTHS = tuple(range(100, 900, 100))
"""Metres of way over which the drift is measured, from every tenth frame on."""
_EVERY = 10
# Seconds by which stamps of one moment may differ.
_APART = 0.02


class TrajectoryError(McdError, ValueError):
    """Trajectories that cannot be compared."""


@dataclass(frozen=True)
class Similarity:
    """truth = scale · rotation · estimate + translation."""

    scale: float
    rotation: Floats
    translation: Floats

    def apply(self, trajectory: Trajectory) -> Trajectory:
        turned = None if trajectory.rotations is None else self.rotation @ trajectory.rotations
        moved = self.scale * trajectory.positions @ self.rotation.T + self.translation
        return Trajectory(moved, turned, trajectory.stamps)


def align(estimate: Floats, truth: Floats) -> Similarity:
    """The similarity that brings positions [N,3] nearest to the true ones, in the sense of least squares (Umeyama).

    Raises:
        TrajectoryError: one of them does not move.
    """
    centre, target = estimate.mean(axis=0), truth.mean(axis=0)
    spread = float(np.square(estimate - centre).sum())
    if not spread > 1e-18 or not np.square(truth - target).sum() > 1e-18:
        raise TrajectoryError("a camera that stays where it is has no scale: its trajectory cannot be aligned")
    left, singular, right = np.linalg.svd((truth - target).T @ (estimate - centre))
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left * mirror @ right
    scale = float((singular * mirror).sum()) / spread
    return Similarity(scale, rotation, target - scale * rotation @ centre)


def trajectory_figures(estimate: Trajectory, truth: Trajectory) -> dict[str, float]:
    """The figures above, ``scale`` (metres of the truth in a unit of the estimate), ``metres`` of way and ``frames``.

    Trajectories that both have stamps are brought together by them, within 20 ms; others frame by frame.

    Raises:
        TrajectoryError: they differ in length, share fewer than three stamps, or do not move.
    """
    estimate, truth = together(estimate, truth)
    similarity = align(estimate.positions, truth.positions)
    moved = similarity.apply(estimate)
    along = np.concatenate(([0.0], np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).cumsum()))
    figures = {"ate": _rms(np.linalg.norm(moved.positions - truth.positions, axis=1))}
    if moved.rotations is not None and truth.rotations is not None:
        found, wanted = _matrices(moved), _matrices(truth)
        errors = np.linalg.inv(_steps(wanted)) @ _steps(found)
        figures |= {
            "rpe_t": _rms(np.linalg.norm(errors[:, :3, 3], axis=1)),
            "rpe_r": _rms(np.degrees(_angle(errors))),
            **_snippets(found, wanted),
            **_drift(found, wanted, along),
        }
    return figures | {"scale": similarity.scale, "metres": float(along[-1]), "frames": len(truth)}


def together(estimate: Trajectory, truth: Trajectory) -> tuple[Trajectory, Trajectory]:
    """The frames that both have.

    Raises:
        TrajectoryError: fewer than three, or without stamps another number.
    """
    if estimate.stamps is not None and truth.stamps is not None:
        right = np.searchsorted(truth.stamps, estimate.stamps).clip(1, len(truth) - 1)
        nearest = right - (estimate.stamps - truth.stamps[right - 1] < truth.stamps[right] - estimate.stamps)
        apart = np.abs(truth.stamps[nearest] - estimate.stamps)
        # A true pose serves the one nearest to it.
        order = np.lexsort((apart, nearest))
        order = order[np.unique(nearest[order], return_index=True)[1]]
        order = order[apart[order] <= _APART]
        estimate, truth = estimate.take(order), truth.take(nearest[order])
        if len(order) < 3:
            raise TrajectoryError(f"the two trajectories have {len(order)} stamps in common, within {_APART:g} s")
    elif len(estimate) != len(truth):
        raise TrajectoryError(
            f"the trajectory has {len(estimate)} poses and the true one {len(truth)}: without stamps in both, they "
            "should be of the same frames"
        )
    if len(truth) < 3:
        raise TrajectoryError(f"{len(truth)} poses are too few to align; there should be three and more")
    return estimate, truth


def _matrices(trajectory: Trajectory) -> Floats:
    poses = np.tile(np.eye(4), (len(trajectory), 1, 1))
    assert trajectory.rotations is not None
    poses[:, :3, :3], poses[:, :3, 3] = trajectory.rotations, trajectory.positions
    return poses


def _steps(poses: Floats) -> Floats:
    return np.linalg.inv(poses[:-1]) @ poses[1:]


def _angle(errors: Floats) -> Floats:
    """Radians [...] of rotations [...,4,4], exact for small ones too."""
    off = errors[..., :3, :3] - np.swapaxes(errors[..., :3, :3], -1, -2)
    sine = np.sqrt(np.square(off).sum(axis=(-1, -2)) / 8)
    return np.arctan2(sine, (np.trace(errors[..., :3, :3], axis1=-2, axis2=-1) - 1) / 2)


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _snippets(found: Floats, wanted: Floats) -> dict[str, float]:
    if len(found) < SNIPPET:
        return {}
    errors = []
    for first in range(len(found) - SNIPPET + 1):
        own, true = (
            (np.linalg.inv(poses[first]) @ poses[first : first + SNIPPET])[:, :3, 3] for poses in (found, wanted)
        )
        length = float(np.square(own).sum())
        factor = float((own * true).sum()) / length if length else 0.0
        errors.append(_rms(np.linalg.norm(factor * own - true, axis=1)))
    return {"snippet": float(np.mean(errors)), "snippet_std": float(np.std(errors))}


def _drift(found: Floats, wanted: Floats, along: Floats) -> dict[str, float]:
    shifts: list[float] = []
    turns: list[float] = []
    for first, length in itertools.product(range(0, len(found), _EVERY), LENGTHS):
        last = _first_beyond(along, along[first] + length)
        if last is None:
            continue
        own, true = (np.linalg.inv(poses[first]) @ poses[last] for poses in (found, wanted))
        error = np.linalg.inv(own) @ true
        shifts.append(float(np.linalg.norm(error[:3, 3])) / length)
        turns.append(float(np.degrees(_angle(error))) / length)
    return {"t_rel": 100 * float(np.mean(shifts)), "r_rel": 100 * float(np.mean(turns))} if shifts else {}


def _first_beyond(along: NDArray[np.float64], distance: float) -> int | None:
    place = int(np.searchsorted(along, distance, side="right"))
    return place if place < len(along) else None
