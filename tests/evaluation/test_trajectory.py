"""Trajectories against evo (Grupp), which others use for them, and against what must not change their figures."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from mcd.evaluation.command import main
from mcd.evaluation.trajectory import TrajectoryError, trajectory_figures
from mcd.files import DataError
from mcd.geometry import pose_matrix
from mcd.nets import build_depth_net, build_pose_net
from mcd.run.checkpoint import save_weights
from mcd.scene.trajectory import Trajectory, follow, read_trajectory, write_kitti, write_tum

CLIP = Path(__file__).parents[2] / "shared" / "data" / "kitti_0001" / "poses.csv"


def way(frames: int, seed: int = 0, step: float = 1.0) -> Trajectory:
    """A drive of about ``step`` metres a frame that turns, rises and shakes."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for number in range(1, frames):
        turn = Rotation.from_euler("xyz", rng.normal((0, 0.02, 0), (0.003, 0.03, 0.003))).as_matrix()
        poses[number, :3, :3] = poses[number - 1, :3, :3] @ turn
        poses[number, :3, 3] = poses[number - 1, :3, 3] + poses[number, :3, 2] * step * rng.uniform(0.7, 1.3)
    return Trajectory(poses[:, :3, 3], poses[:, :3, :3])


def disturbed(truth: Trajectory, seed: int = 1, scale: float = 0.1) -> Trajectory:
    """The same way at another scale, seen from elsewhere, with errors that add up."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec((0.3, -0.8, 0.5)).as_matrix()
    shift = rng.normal(0, 0.05, truth.positions.shape).cumsum(axis=0)
    small = Rotation.from_rotvec(rng.normal(0, 0.004, truth.positions.shape)).as_matrix()
    assert truth.rotations is not None
    return Trajectory(scale * (truth.positions + shift) @ turn.T + 4, turn @ truth.rotations @ small)


def test_ate_and_rpe_are_those_of_evo(tmp_path: Path) -> None:
    file_interface = pytest.importorskip("evo.tools.file_interface")
    from evo.core import metrics, sync

    truth = way(60)
    estimate = disturbed(truth)
    own = trajectory_figures(estimate, truth)
    write_kitti(tmp_path / "truth.txt", truth)
    write_kitti(tmp_path / "estimate.txt", estimate)
    # evo reads what mcd has written.
    reference = file_interface.read_kitti_poses_file(tmp_path / "truth.txt")
    found = file_interface.read_kitti_poses_file(tmp_path / "estimate.txt")
    aligned = copy.deepcopy(found)
    aligned.align(reference, correct_scale=True)
    for name, metric in {
        "ate": metrics.APE(metrics.PoseRelation.translation_part),
        "rpe_t": metrics.RPE(metrics.PoseRelation.translation_part, 1, metrics.Unit.frames),
        "rpe_r": metrics.RPE(metrics.PoseRelation.rotation_angle_deg, 1, metrics.Unit.frames),
    }.items():
        metric.process_data((reference, aligned))
        # The files have ten digits; rotations of a few tenths of a degree keep six of them.
        assert own[name] == pytest.approx(metric.get_statistic(metrics.StatisticsType.rmse), rel=1e-5), name

    stamped = Trajectory(truth.positions, truth.rotations, 100 + 0.1 * np.arange(60))
    # Every third frame is missing, and stamps are off by some milliseconds.
    kept = np.flatnonzero(np.arange(60) % 3)
    late = estimate.take(kept)
    late = Trajectory(late.positions, late.rotations, stamped.take(kept).stamps + 0.004)
    write_tum(tmp_path / "truth.tum", stamped)
    write_tum(tmp_path / "estimate.tum", late)
    pair = [file_interface.read_tum_trajectory_file(tmp_path / f"{name}.tum") for name in ("truth", "estimate")]
    reference, found = sync.associate_trajectories(*pair, max_diff=0.02)
    found.align(reference, correct_scale=True)
    metric = metrics.APE(metrics.PoseRelation.translation_part)
    metric.process_data((reference, found))
    read = [read_trajectory(tmp_path / f"{name}.tum") for name in ("estimate", "truth")]
    again = trajectory_figures(read[0], read[1])
    assert again["ate"] == pytest.approx(metric.get_statistic(metrics.StatisticsType.rmse), rel=1e-6)
    assert again["frames"] == 40


def test_the_truth_seen_from_elsewhere_at_any_scale_has_no_error() -> None:
    truth = way(150)
    turn = Rotation.from_rotvec((0.3, -0.8, 0.5)).as_matrix()
    assert truth.rotations is not None
    found = trajectory_figures(Trajectory(0.05 * truth.positions @ turn.T - 3, turn @ truth.rotations), truth)
    assert found["scale"] == pytest.approx(20)
    assert found["metres"] > 100
    for name in ("ate", "rpe_t", "snippet", "snippet_std"):
        assert found[name] < 1e-9, name
    # An angle is the square root of what is lost of its cosine; its sine is exact.
    assert found["rpe_r"] < 1e-9
    assert found["t_rel"] < 1e-9


def test_drift_is_that_of_a_loop_over_the_way() -> None:
    truth, off = way(260, seed=3), 1.03
    # Every step is 3 % too long in the second half alone, so that no single scale mends it.
    steps = np.diff(truth.positions, axis=0)
    steps[130:] *= off
    estimate = Trajectory(np.concatenate(([[0.0] * 3], steps.cumsum(axis=0))), truth.rotations)
    figures = trajectory_figures(estimate, truth)
    scale = figures["scale"]
    along = np.concatenate(([0.0], np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).cumsum()))
    errors = []
    for first in range(0, 260, 10):
        for length in (100, 200, 300, 400, 500, 600, 700, 800):
            last = next((place for place in range(260) if along[place] > along[first] + length), None)
            if last is not None:
                own = scale * (estimate.positions[last] - estimate.positions[first])
                # Seen from the first frame, the turn of the alignment has no part.
                errors.append(np.linalg.norm(own - (truth.positions[last] - truth.positions[first])) / length)
    assert figures["t_rel"] == pytest.approx(100 * np.mean(errors), rel=1e-9)
    assert figures["r_rel"] < 1e-9


def test_snippets_have_a_scale_each() -> None:
    truth = way(40)
    rng = np.random.default_rng(0)
    estimate = Trajectory(truth.positions * np.linspace(1, 3, 40)[:, None], truth.rotations)
    figures = trajectory_figures(estimate, truth)
    assert figures["snippet"] < 0.2 * figures["ate"]
    assert truth.rotations is not None
    noisy = Trajectory(truth.positions + rng.normal(0, 0.1, truth.positions.shape), truth.rotations)
    assert 0.02 < trajectory_figures(noisy, truth)["snippet"] < 0.2


def test_steps_of_a_pose_net_become_a_way() -> None:
    truth = way(20)
    poses = np.tile(np.eye(4), (20, 1, 1))
    assert truth.rotations is not None
    poses[:, :3, :3], poses[:, :3, 3] = truth.rotations, truth.positions
    found = follow([np.linalg.inv(after) @ before for before, after in itertools.pairwise(poses)])
    np.testing.assert_allclose(found.positions, truth.positions, atol=1e-12)
    np.testing.assert_allclose(found.rotations, truth.rotations, atol=1e-12)


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    truth = way(12)
    for name, write in (("a.txt", write_kitti), ("b.tum", write_tum)):
        write(tmp_path / name, truth)
        found = read_trajectory(tmp_path / name)
        np.testing.assert_allclose(found.positions, truth.positions, atol=1e-7)
        np.testing.assert_allclose(found.rotations, truth.rotations, atol=1e-7)


def test_directions_of_a_table_are_those_of_the_way(tmp_path: Path) -> None:
    """A body that looks along its x axis drives to the north-east and up: the camera's z axis is the way."""
    path = tmp_path / "poses.csv"
    # A pitch that lifts the nose is negative about the y axis, which points to the left.
    path.write_text(
        f"x,y,z,roll,pitch,yaw\n0,0,0,0,{-np.pi / 6},{np.pi / 4}\n1,1,0.81649658,0,{-np.pi / 6},{np.pi / 4}\n"
    )
    found = read_trajectory(path)
    ahead = np.diff(found.positions, axis=0)[0]
    assert found.rotations is not None
    np.testing.assert_allclose(found.rotations[0, :, 2], ahead / np.linalg.norm(ahead), atol=1e-7)
    # The camera's x axis is level and to the right of the way.
    np.testing.assert_allclose(found.rotations[0, :, 0], (np.sqrt(0.5), -np.sqrt(0.5), 0), atol=1e-7)


def test_directions_of_the_real_clip_are_those_of_its_way() -> None:
    if not CLIP.is_file():
        pytest.skip(f"the real clip is not there: {CLIP}")
    found = read_trajectory(CLIP)
    ahead = np.diff(found.positions, axis=0)
    assert found.rotations is not None
    along = (found.rotations[:-1, :, 2] * ahead).sum(axis=1) / np.linalg.norm(ahead, axis=1)
    assert along.min() > 0.999


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("1 2 3\n", "3 numbers"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 0 0 1\n", "line 2 has 8 numbers"),
        ("1 0 0 0 0 1 0 0 0 0 1 here\n", "no numbers"),
        ("2 0 0 0 0 1 0 0 0 0 1 0\n", "no rotation"),
        ("0 0 0 0 0 0 0 0\n", "quaternion"),
        ("1 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n", "do not rise"),
        ("nan 0 0 0 0 0 0 1\n", "not finite"),
    ],
)
def test_files_that_are_no_trajectory_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "poses.txt").write_text(text)
    with pytest.raises(DataError, match=f"poses.txt.*{message}"):
        read_trajectory(tmp_path / "poses.txt")


def test_trajectories_that_cannot_be_compared_are_named() -> None:
    truth = way(10)
    with pytest.raises(TrajectoryError, match="9 poses and the true one 10"):
        trajectory_figures(truth.take(slice(9)), truth)
    with pytest.raises(TrajectoryError, match="stays where it is"):
        trajectory_figures(Trajectory(np.zeros((10, 3))), truth)
    with pytest.raises(TrajectoryError, match="too few"):
        trajectory_figures(truth.take(slice(2)), truth.take(slice(2)))
    positions = Trajectory(truth.positions)
    assert set(trajectory_figures(positions, truth)) == {"ate", "scale", "metres", "frames"}


def test_the_command_compares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = way(30)
    write_kitti(tmp_path / "truth.txt", truth)
    write_kitti(tmp_path / "mine.txt", disturbed(truth))
    assert main([str(tmp_path / "mine.txt"), "--poses", str(tmp_path / "truth.txt"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["trajectories"]["mine"]
    assert shown["ate"] == pytest.approx(trajectory_figures(disturbed(truth), truth)["ate"], rel=1e-6)
    assert main([str(tmp_path / "mine.txt")]) == 1
    assert "--poses" in capsys.readouterr().err


def test_the_way_of_a_runs_pose_net_is_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, size = np.random.default_rng(0), (64, 96)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for _ in range(8)]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    write_kitti(tmp_path / "truth.txt", way(8))
    torch.manual_seed(0)
    nets = {"depth": build_depth_net("light"), "pose": build_pose_net("light")}
    save_weights(tmp_path / "net.safetensors", nets, dict.fromkeys(nets, "light"), {"size": size})
    data = {"kind": "sequence", "root": str(tmp_path), "images": "images", "size": size, "fov": 60.0, "workers": 0}
    (tmp_path / "clip.yaml").write_text(
        yaml.safe_dump({"device": "cpu", "data": data | {"size": list(size), "eval_frames": [1, 7]}})
    )
    command = [str(tmp_path / "net.safetensors"), "--config", str(tmp_path / "clip.yaml")]
    with pytest.warns(UserWarning, match="guessed"):
        assert main([*command, "--poses", str(tmp_path / "truth.txt"), "-o", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["trajectories"]["net"]
    pose, steps = nets["pose"].eval(), []
    for first, second in itertools.pairwise(images[1:]):
        pictures = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in (first, second))
        with torch.no_grad():
            steps.append(pose_matrix(*pose(*pictures))[0].double().numpy())
    wanted = follow(steps)
    assert shown == pytest.approx(trajectory_figures(wanted, way(8).take(slice(1, 8))), rel=1e-3)
    (written,) = (tmp_path / "out").glob("*_kitti.txt")
    np.testing.assert_allclose(read_trajectory(written).positions, wanted.positions, atol=1e-6)

    write_kitti(tmp_path / "short.txt", way(7))
    with pytest.warns(UserWarning, match="guessed"):
        assert main([*command, "--poses", str(tmp_path / "short.txt")]) == 1
    assert "short.txt have 7 lines, and there are 8 frames" in capsys.readouterr().err
