"""What a run says of results that cannot be used: in its log, its metrics and at the top of its report."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import load_config
from mcd.data import EvaluationSet
from mcd.evaluation.protocol import NothingCountsError, evaluate_depth
from mcd.files import DataError
from mcd.run.checkpoint import load_weights
from mcd.run.folder import run_folder
from mcd.run.lock import lock_run
from mcd.run.warned import read_warnings, warn
from mcd.train import main
from mcd.training.checks import CollapseWatch, look_at_frames

SIZE = (64, 96)


def texture(shift: int, seed: int = 0) -> np.ndarray:
    """A street that passes sideways, in blocks so that it survives being resized."""
    blocks = np.random.default_rng(seed).integers(0, 256, (SIZE[0] // 4, 60, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:, shift : shift + SIZE[1]]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


def settings(tmp_path, **changes):
    document = {
        "run": "run",
        "runs": str(tmp_path / "runs"),
        "threads": 1,
        "stages": ["scene"],
        "data": {"kind": "sequence", "root": str(tmp_path / "frames"), "size": SIZE, "workers": 0, "fov": 70},
        "loss": {"scales": 1},
        "scene": {"steps": 2, "batch": 2, "validate_batches": 1},
    }
    for section, values in changes.items():
        document[section] = document.get(section, {}) | values if isinstance(values, dict) else values
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(document))
    return path


CASES = {
    "black": ([np.zeros((*SIZE, 3), np.uint8)] * 12, "have one colour only: without texture, as in black frames"),
    "equal": ([texture(0)] * 12, "equal their neighbours: the camera stands still"),
    "each twice": ([texture(3 * (number // 2)) for number in range(12)], "neighbouring frames looked at are equal"),
    "moving": ([texture(3 * number) for number in range(12)], None),
}


@pytest.mark.parametrize("kind", CASES)
def test_frames_from_which_nothing_can_be_learned_are_told_from_others(tmp_path, kind):
    images, message = CASES[kind]
    write_frames(tmp_path / "frames", images)
    said = look_at_frames(load_config(settings(tmp_path)))
    assert len(said) == (message is not None)
    assert message is None or message in said[0]


@pytest.mark.parametrize(
    "size, better", [((64, 96), None), ((96, 128), None), ((64, 160), "96, 128"), ((96, 96), "96, 128")]
)
def test_a_size_of_another_shape_than_the_frames_is_said_with_one_that_fits(tmp_path, size, better):
    tall = [np.concatenate([texture(3 * number)] * 2)[:72] for number in range(12)]
    write_frames(tmp_path / "frames", tall)
    said = look_at_frames(load_config(settings(tmp_path, data={"size": size})))
    assert len(said) == (better is not None)
    if better is not None:
        assert f"data.size {size[0]}x{size[1]} has another shape than the frames, 72x96" in said[0]
        assert f'--set "data.size=[{better}]"' in said[0]


def test_equal_frames_are_said_in_the_log_once_in_the_metrics_and_at_the_top_of_the_report(tmp_path, capsys):
    write_frames(tmp_path / "frames", CASES["equal"][0])
    path = settings(tmp_path)
    assert main([str(path)]) == 0
    said = capsys.readouterr().err
    assert said.count("the camera stands still") == 1
    run = tmp_path / "runs" / "run"
    told = json.loads((run / "metrics.json").read_text())["warnings"]
    assert any("the camera stands still" in line for line in told)
    # Equal neighbours fit perfectly without any net.
    assert any("the auto-mask takes" in line for line in told)
    page = (run / "report.html").read_text()
    assert page.index("What to look at first") < page.index("the camera stands still") < page.index("Loss curves")
    # The same command again has nothing new to say.
    assert main([str(path)]) == 0
    assert "stands still" not in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["warnings"] == told


def test_a_warning_is_said_when_it_is_new_and_goes_with_what_it_was_said_of(tmp_path, capsys):
    warn(tmp_path, "scene", ["a", "b", "a"])
    warn(tmp_path, "scene", ["a", "b"])
    warn(tmp_path, "data", ["c"])
    assert capsys.readouterr().err == "warning: a\nwarning: b\nwarning: c\n"
    assert read_warnings(tmp_path) == ["a", "b", "c"]
    warn(tmp_path, "scene", [])
    assert read_warnings(tmp_path) == ["c"]
    (tmp_path / "log" / "warnings.json").write_text('{"scene": 3}')
    with pytest.raises(DataError, match=r"warnings\.json are no lists of lines"):
        read_warnings(tmp_path)


def write_depth(tmp_path, metres):
    (tmp_path / "frames" / "depth").mkdir(parents=True)
    for number, value in enumerate(metres):
        levels = np.full(SIZE, round(256 * value), np.uint16)
        Image.fromarray(levels).save(tmp_path / "frames" / "depth" / f"{number:06d}.png")


@pytest.mark.parametrize(
    ("metres", "evaluation", "message"),
    [
        (0, {}, "000000: nothing was measured, its depth is 0 everywhere"),
        (90, {}, "nothing lies between evaluation.min_depth, 0.001, and evaluation.max_depth, 80: depths are 90 to 90"),
        (5, {"crop": [0, 0.001, 0, 1]}, "nothing was measured inside the crop (evaluation.crop"),
    ],
)
def test_ground_truth_of_which_nothing_counts_costs_no_results(tmp_path, capsys, metres, evaluation, message):
    write_frames(tmp_path / "frames" / "images", CASES["moving"][0])
    write_depth(tmp_path, [metres] * 12)
    data = {"images": "images", "depth": "depth"}
    assert main([str(settings(tmp_path, data=data, evaluation=evaluation))]) == 0
    said = capsys.readouterr().err
    assert said.count("no pixel of the ground truth counts in any of 12 frames") == 1
    assert message in said
    run = tmp_path / "runs" / "run"
    document = json.loads((run / "metrics.json").read_text())
    assert document["stages"] == {} and any(message in line for line in document["warnings"])
    assert (run / "scene" / "done.json").is_file() and (run / "report.html").is_file()


def test_a_frame_without_ground_truth_is_left_out_and_counted(tmp_path):
    write_frames(tmp_path / "frames" / "images", CASES["moving"][0][:3])
    write_depth(tmp_path, [5, 0, 7])
    config = load_config(settings(tmp_path, data={"images": "images", "depth": "depth"}))
    notes: list[str] = []
    found = evaluate_depth(
        lambda batch: torch.full((len(batch["frame"]), 1, *SIZE), 5.0),
        EvaluationSet(config),
        config.evaluation,
        notes=notes,
    )
    assert found["all"]["abs_rel"] == pytest.approx(0)
    assert notes == [
        "1 of 3 evaluated frames are left out, for none of their pixels counts; 000001: nothing was measured, its "
        "depth is 0 everywhere"
    ]
    near = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_depth": 1.0})})
    with pytest.raises(NothingCountsError, match="in any of 3 frames"):
        evaluate_depth(lambda batch: torch.ones(len(batch["frame"]), 1, *SIZE), EvaluationSet(near), near.evaluation)


def test_a_video_in_which_no_object_moves_ends_with_the_scenes_net(tmp_path, capsys):
    write_frames(tmp_path / "frames", CASES["moving"][0])
    stages = ["scene", "predictions", "ground", "slots", "detector", "instances", "object", "scale", "pseudo", "final"]
    few = {"steps": 1, "batch": 2, "validate_batches": 1}
    path = settings(
        tmp_path,
        stages=stages,
        store="sqlite",
        predictions={"flow_threshold": 1e6},
        ground={**few, "distance": 30},
        scene={"steps": 3, "motion_from": 1, "joint_from": 2},
        slots={**few, "size": [32, 48]},
        detector={**few, "scores": [0.5], "filter_after": [0], "views": 1},
        object=few,
        scale=few,
        final=few,
    )
    assert main([str(path)]) == 0
    run = tmp_path / "runs" / "run"
    assert capsys.readouterr().err.count("the final net is the scene's") == 1
    (line,) = [line for line in read_warnings(run) if "Left out: " in line]
    assert line.startswith("stage slots: no training frame has a pixel whose residual flow reaches")
    assert (run / "final" / "weights.safetensors").read_bytes() == (run / "scene" / "weights.safetensors").read_bytes()
    assert load_weights(run / "final" / "weights.safetensors").nets["depth"] == "light"
    assert line.partition(".")[0] in (run / "report.html").read_text().replace("&#x27;", "'")
    before = (run / "metrics.json").read_text()
    assert main([str(path)]) == 0
    assert (run / "metrics.json").read_text() == before


def test_a_second_trainer_of_a_run_is_refused(tmp_path, capsys):
    write_frames(tmp_path / "frames", CASES["moving"][0])
    path = settings(tmp_path)
    with lock_run(run_folder(load_config(path))):
        assert main([str(path)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"mcd.train: run folder {tmp_path / 'runs' / 'run'} is in use by process ")
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


def test_depth_that_becomes_constant_is_said_once_while_it_trains(tmp_path, capsys):
    write_frames(tmp_path / "frames", CASES["moving"][0])
    # A rate at which the sigmoid of the net's last layer saturates at once.
    path = settings(
        tmp_path, log_every=10, scene={"steps": 140, "lr": 1.0, "validate_every": 1000, "checkpoint_every": 130}
    )
    assert main([str(path)]) == 0
    said = capsys.readouterr().err
    (line,) = re.findall(r"warning: stage scene, from step (\d+) on: the depth is the same everywhere", said)
    assert int(line) <= 30
    # It was said before the stage was over, which says what holds at its end in the place of it.
    assert said.index("from step") < said.index("warning: stage scene: the depth is the same everywhere")
    (kept,) = [line for line in read_warnings(tmp_path / "runs" / "run") if "same everywhere" in line]
    assert kept.startswith("stage scene: the depth")


def test_depth_that_spreads_again_is_no_collapse(tmp_path, capsys):
    watch = CollapseWatch(tmp_path, "scene")
    for step, spread in ((20, 0.001), (100, 0.002), (110, 0.02), (130, 0.001), (220, 0.001)):
        watch.look(step, spread)
    watch.look(225, None)
    watch.look(300, 0.001)
    assert capsys.readouterr().err == ""
    watch.look(400, 0.001)
    watch.look(500, 0.001)
    assert capsys.readouterr().err == (
        "warning: stage scene, from step 300 on: the depth is the same everywhere "
        "(its logarithm has a spread of 0.0010)\n"
    )
