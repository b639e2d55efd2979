"""The evaluation protocol, against a NumPy loop and against what must not change its figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcd.config import Config, parse_config
from mcd.data import EvaluationSet
from mcd.evaluation.command import main
from mcd.evaluation.protocol import EvaluationError, evaluate_depth, evaluate_objects
from mcd.evaluation.row_median import row_median
from mcd.evaluation.stages import evaluate_stage, write_metrics
from mcd.files import write_json
from mcd.inference.predictor import DepthPredictor
from mcd.nets import build_depth_net
from mcd.run.checkpoint import save_weights

FULL = (64, 96)  # height and width of the images with ground truth; 48 rows of them are kept
NET = (64, 64)  # the smallest size that the light net takes; another shape than the ground truth
FRAMES = ("town/town_000000_000000", "town/town_000000_000001", "town/town_000000_000002")
CLIP = Path(__file__).parents[2] / "shared" / "data" / "kitti_0926"


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three frames in the Cityscapes layout: two with moving objects, one of them below the smallest area."""
    root = tmp_path_factory.mktemp("streets")
    generator = np.random.default_rng(0)
    for number, frame in enumerate(FRAMES):
        name = frame.split("/")[1]
        image = root / "leftImg8bit" / "val" / f"{frame}_leftImg8bit.png"
        camera = root / "camera" / "val" / f"{frame}_camera.json"
        masks = root / "val_mask_class" / frame
        for folder in (image.parent, camera.parent, masks, root / "val_gt_depths"):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*FULL, 3), dtype=np.uint8)).save(image)
        write_json(camera, {"intrinsic": {"fx": 80.0, "fy": 80.0, "u0": 48.0, "v0": 24.0}})
        # Beyond both limits at times, and a tenth without depth.
        depth = generator.uniform(2, 95, FULL).astype(np.float32) * (generator.random(FULL) > 0.1)
        np.save(root / "val_gt_depths" / f"{name}.npy", depth)
        mask = np.zeros(FULL, np.uint8)
        if number == 0:
            mask[20:40, 30:60] = 255
        elif number == 1:
            mask[20:24, 30:37] = 255  # 28 pixels; 0.5 % of the full image are 30.7
        Image.fromarray(mask).save(masks / "0.png")
    return parse_config({"run": "r", "device": "cpu", "data": {"root": str(root), "size": NET, "workers": 0}})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Six frames of a sequence with sparse 16-bit depth; three to train on, three to evaluate."""
    root = tmp_path_factory.mktemp("clip")
    generator = np.random.default_rng(1)
    (root / "images").mkdir()
    (root / "depth").mkdir()
    for number in range(6):
        Image.fromarray(generator.integers(0, 255, (*FULL, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
        depth = generator.uniform(2, 95, FULL) * (generator.random(FULL) < 0.2)
        depth[:20] = 0  # LiDAR does not reach the upper rows
        Image.fromarray((depth * 256).astype(np.uint16)).save(root / "depth" / f"{number}.png")
    data = {
        "kind": "sequence", "root": str(root), "images": "images", "depth": "depth", "size": NET, "workers": 0,
        "intrinsics": [80.0, 80.0, 48.0, 32.0], "train_frames": [0, 2], "eval_frames": [3, 5],
    }  # fmt: skip
    return parse_config({"run": "r", "device": "cpu", "data": data, "evaluation": {"protocol": "kitti"}})


def predictions(config: Config, size: tuple[int, int], seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = [item.frame for item in EvaluationSet(config).items]
    return {frame: 0.1 + 5 * torch.rand(1, *size, generator=generator) for frame in frames}


def evaluate(config: Config, depths: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    return evaluate_depth(by_frame(depths), EvaluationSet(config), config.evaluation)


def by_frame(depths: dict[str, Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    return lambda batch: torch.stack([depths[frame] for frame in batch["frame"]])


def truth(config: Config) -> dict[str, Tensor]:
    """The ground truth itself, 1 where there is none."""
    dataset = EvaluationSet(config)
    items = [dataset[index] for index in range(len(dataset))]
    return {i["frame"]: torch.from_numpy(np.where(i["depth_gt"] > 0, i["depth_gt"], 1))[None] for i in items}


def bilinear(values: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resize with aligned pixel areas and clamped borders, as OpenCV does."""
    out = np.empty(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * values.shape[0] / size[0] - 0.5, 0), values.shape[0] - 1)
            u = min(max((x + 0.5) * values.shape[1] / size[1] - 0.5, 0), values.shape[1] - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, values.shape[0] - 1), min(x0 + 1, values.shape[1] - 1)
            top = values[y0, x0] * (1 - u + x0) + values[y0, x1] * (u - x0)
            bottom = values[y1, x0] * (1 - u + x0) + values[y1, x1] * (u - x0)
            out[y, x] = top * (1 - v + y0) + bottom * (v - y0)
    return out


def metrics_of(predicted: NDArray[np.float64], gt: NDArray[np.float64]) -> list[float]:
    ratio = np.maximum(predicted / gt, gt / predicted)
    return [
        np.mean(np.abs(predicted - gt) / gt),
        np.mean((predicted - gt) ** 2 / gt),
        np.sqrt(np.mean((predicted - gt) ** 2)),
        np.sqrt(np.mean((np.log(predicted) - np.log(gt)) ** 2)),
        *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
    ]


def expected(
    depths: dict[str, Tensor],
    truths: dict[str, NDArray[np.float64]],
    dynamic: dict[str, NDArray[np.bool_]] | None,
    window: tuple[slice, slice],
) -> dict[str, list[float]]:
    """The protocol, written down once more: whole arrays cut to the window first."""
    rows: dict[str, list[list[float]]] = {"all": [], "static": [], "dynamic": []}
    for frame, whole in truths.items():
        predicted = (1 / bilinear(1 / depths[frame][0].double().numpy(), whole.shape))[window]
        gt = whole[window]
        valid = (gt > 1e-3) & (gt < 80)
        predicted = np.clip(predicted * np.median(gt[valid]) / np.median(predicted[valid]), 1e-3, 80)
        regions = {"all": valid}
        if dynamic is not None:
            moving = dynamic[frame][window]
            regions |= {"static": valid & ~moving, "dynamic": valid & moving}
        for region, mask in regions.items():
            if mask.any():
                rows[region].append(metrics_of(predicted[mask], gt[mask]))
    return {region: list(np.mean(found, axis=0)) for region, found in rows.items() if found}


def test_cityscapes_figures_are_those_of_a_numpy_loop(streets: Config) -> None:
    root = streets.data.root
    kept = 48
    truths, dynamic = {}, {}
    for number, frame in enumerate(FRAMES):
        truths[frame] = np.load(root / "val_gt_depths" / f"{frame.split('/')[1]}.npy")[:kept].astype(np.float64)
        # Only the object of the first frame is large enough to count.
        mask = np.asarray(Image.open(root / "val_mask_class" / frame / "0.png")) > 0
        dynamic[frame] = mask[:kept] if number == 0 else np.zeros((kept, FULL[1]), bool)
    depths = predictions(streets, (12, 16))
    # A third of 48 rows and 3/32 of 96 columns.
    wanted = expected(depths, truths, dynamic, (slice(16, 48), slice(9, 87)))
    found = evaluate(streets, depths)
    assert set(found) == {"all", "static", "dynamic"}
    for region, metrics in found.items():
        # Both in float64; only the order of sums differs.
        np.testing.assert_allclose(list(metrics.values()), wanted[region], rtol=1e-9, err_msg=region)


def test_kitti_figures_are_those_of_a_numpy_loop(clip: Config) -> None:
    truths = {
        str(number): np.asarray(Image.open(clip.data.root / "depth" / f"{number}.png")).astype(np.float64) / 256
        for number in (3, 4, 5)
    }
    depths = predictions(clip, (16, 24))
    # Garg et al.: shares of 64 rows and 96 columns, cut off.
    window = (slice(int(0.40810811 * 64), int(0.99189189 * 64)), slice(int(0.03594771 * 96), int(0.96405229 * 96)))
    found = evaluate(clip, depths)
    assert set(found) == {"all"}
    np.testing.assert_allclose(list(found["all"].values()), expected(depths, truths, None, window)["all"], rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 0.01, 7.0])
def test_the_truth_at_any_scale_has_no_error(streets: Config, scale: float) -> None:
    for region, metrics in evaluate(streets, {f: scale * depth for f, depth in truth(streets).items()}).items():
        # float32 depth times the scale rounds by 6e-8.
        assert max(metrics["abs_rel"], metrics["rmse_log"]) < 3e-7, region
        assert metrics["a1"] == metrics["a2"] == metrics["a3"] == 1, region


def test_one_scale_serves_all_regions(streets: Config) -> None:
    depths = truth(streets)
    item = EvaluationSet(streets)[0]
    gt, valid, moving = item["depth_gt"], item["valid"], item["dynamic_mask"]
    halved = np.where(moving, gt / 2, gt)
    depths[FRAMES[0]] = torch.from_numpy(np.where(gt > 0, halved, 1))[None]
    ratio = np.median(gt[valid]) / np.median(halved[valid])
    # A ratio of their own would hide that the objects are at half their distance.
    assert evaluate(streets, depths)["dynamic"]["abs_rel"] == pytest.approx(1 - ratio / 2, rel=1e-6)


def test_images_without_a_moving_pixel_do_not_dilute_the_dynamic_mean(streets: Config) -> None:
    right = truth(streets)
    wrong = predictions(streets, (48, 96))
    mixed = evaluate(streets, {frame: (wrong if frame == FRAMES[0] else right)[frame] for frame in FRAMES})
    alone = evaluate(streets, wrong)
    assert mixed["dynamic"] == alone["dynamic"]
    assert mixed["static"]["abs_rel"] < alone["static"]["abs_rel"]


def test_the_batch_size_does_not_change_the_figures(streets: Config) -> None:
    depths = predictions(streets, (12, 16))
    found = [
        evaluate_depth(by_frame(depths), EvaluationSet(streets), streets.evaluation.model_copy(update={"batch": batch}))
        for batch in (1, 2, 3)  # 2 leaves a batch of one
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_prediction_that_is_no_depth_is_named(streets: Config, bad: float) -> None:
    depths = predictions(streets, (12, 16))
    depths[FRAMES[1]][0, 3, 4] = bad
    with pytest.raises(EvaluationError, match=FRAMES[1]):
        evaluate(streets, depths)


def test_the_row_baseline_is_the_median_of_each_row_of_the_training_frames(clip: Config) -> None:
    depths = np.stack([np.asarray(Image.open(clip.data.root / "depth" / f"{n}.png")) / 256.0 for n in (0, 1, 2)])
    wanted = np.empty(FULL[0])
    for row in range(FULL[0]):
        values = depths[:, row]
        values = values[(values > 1e-3) & (values < 80)]
        wanted[row] = np.median(values) if values.size else np.nan
    wanted[:20] = wanted[20]  # rows that LiDAR does not reach
    np.testing.assert_allclose(row_median(clip)[0, 0, :, 0].numpy(), wanted, rtol=1e-6)


def test_the_row_baseline_of_the_real_clip() -> None:
    if not CLIP.is_dir():
        pytest.skip(f"the real clip is not there: {CLIP}")
    data = {
        "kind": "sequence", "root": str(CLIP), "images": "image_02", "depth": "depth_lidar", "workers": 0,
        "calibration": "calib_cam_to_cam.txt", "train_frames": [0, 40], "eval_frames": [41, 55],
    }  # fmt: skip
    config = parse_config({"data": data, "evaluation": {"protocol": "kitti"}})
    # Found by an experiment with other code.
    found = evaluate_stage(config, Path("unused"), "row_median", "cpu")["all"]
    assert found["abs_rel"] == pytest.approx(0.360, abs=1e-3)
    assert found["a1"] == pytest.approx(0.33, abs=5e-3)


@pytest.fixture
def run_folder(streets: Config, tmp_path: Path) -> Path:
    """A run whose pseudo label of the first frame is the same depth everywhere; the others have none."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(streets.model_dump(mode="json")))
    for seed, stage in enumerate(("scene", "final")):
        torch.manual_seed(seed)
        net = build_depth_net("light")
        save_weights(folder / stage / "weights.safetensors", {"depth": net}, {"depth": "light"}, {"size": NET})
    path = folder / "pseudo" / "val" / f"{FRAMES[0]}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.ones(NET, np.float32))
    return folder


def test_frames_without_a_pseudo_label_have_the_depth_of_the_scene(streets: Config, run_folder: Path) -> None:
    pseudo = evaluate_stage(streets, run_folder, "pseudo", "cpu")
    scene = evaluate_stage(streets, run_folder, "scene", "cpu")
    constant = evaluate(streets, {frame: torch.ones(1, 1, 1) for frame in FRAMES})
    # Only the first frame has moving objects, and it has a label.
    assert pseudo["dynamic"] == pytest.approx(constant["dynamic"])
    assert pseudo["dynamic"] != pytest.approx(scene["dynamic"])
    (run_folder / "pseudo" / "val" / f"{FRAMES[0]}.npy").unlink()
    assert evaluate_stage(streets, run_folder, "pseudo", "cpu") == scene


def test_stages_without_depth_have_no_figures(streets: Config, run_folder: Path) -> None:
    # The object and control stages are not there yet.
    for stage in ("instances", "object", "scale", "control"):
        assert evaluate_stage(streets, run_folder, stage, "cpu") == {}


class Wrong(torch.nn.Module):
    """Right inside a mask up to a scale; elsewhere far off."""

    def __init__(self, truth: Tensor, mask: Tensor):
        super().__init__()
        self.truth, self.mask = truth, mask

    def forward(self, images: Tensor) -> list[Tensor]:
        # What is outside the mask is black.
        assert (images.amax(1) * ~self.mask == 0).all()
        assert images.amax() > 0
        return [torch.where(self.mask, 7 * self.truth, 1e4)[None, None].expand(len(images), 1, -1, -1)]


def test_objects_have_a_scale_of_their_own(streets: Config) -> None:
    # At the net's size the object of the second frame would be large enough too, for it is a larger share there.
    evaluation = streets.evaluation.model_copy(update={"min_mask_area": 0.02})
    config = streets.model_copy(update={"evaluation": evaluation})
    item = EvaluationSet(config)[0]
    rows = ((np.arange(64) + 0.5) * 48 / 64).astype(int)
    columns = ((np.arange(64) + 0.5) * 96 / 64).astype(int)
    gt = torch.from_numpy(item["depth_gt"][rows][:, columns])
    mask = torch.from_numpy(item["dynamic_mask"][rows][:, columns])
    net = DepthPredictor(Wrong(torch.where(gt > 0, gt, 1), mask), NET)
    found = evaluate_objects(net, config)
    assert found["abs_rel"] < 3e-7
    assert found["a1"] == 1


def test_metrics_of_a_run_are_gathered_from_its_stages(run_folder: Path) -> None:
    figures = {"all": dict.fromkeys(("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3"), 0.5)}
    write_json(run_folder / "final" / "done.json", {"metrics": figures, "seconds": 2.0})
    write_json(run_folder / "scene" / "done.json", {"metrics": figures, "seconds": 1.0})
    write_json(run_folder / "object" / "done.json", {"metrics": {"objects": figures["all"]}, "seconds": 3.0})
    write_json(run_folder / "scale" / "done.json", {"metrics": {}, "seconds": 4.0})
    write_metrics(run_folder)
    document = json.loads((run_folder / "metrics.json").read_text())
    baseline = document["stages"].pop("row_median")
    assert set(baseline) == {"all", "static", "dynamic"}
    assert document == {
        "stages": {"scene": figures, "final": figures},
        "objects": figures["all"],
        "seconds": {"scene": 1, "object": 3, "scale": 4, "final": 2},
    }
    assert list(document["stages"]) == ["scene", "final"]
    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    assert [(row["place"], row["stage"], row["region"], row["a1"]) for row in rows if row["stage"] != "row_median"] == [
        ("demo", "scene", "all", "0.5"),
        ("demo", "final", "all", "0.5"),
        ("demo", "object", "objects", "0.5"),
    ]
    before = (run_folder / "metrics.json").read_bytes()
    write_metrics(run_folder)
    assert (run_folder / "metrics.json").read_bytes() == before


def test_the_command_evaluates_every_stage_and_keeps_the_seconds(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(run_folder / "metrics.json", {"stages": {}, "seconds": {"scene": 12.0}})
    assert main([str(run_folder)]) == 0
    document = json.loads((run_folder / "metrics.json").read_text())
    assert list(document["stages"]) == ["scene", "pseudo", "final", "row_median"]
    assert document["seconds"] == {"scene": 12.0}
    assert set(document["stages"]["scene"]) == {"all", "static", "dynamic"}
    shown = capsys.readouterr().out
    assert "pseudo" in shown
    assert "abs_rel" in shown


def test_another_question_leaves_the_runs_own_answer_alone(run_folder: Path, tmp_path: Path) -> None:
    assert main([str(run_folder), str(run_folder / "final")]) == 0
    before = (run_folder / "metrics.json").read_bytes()
    out = tmp_path / "out"
    assert main([str(run_folder / "scene"), "--set", "evaluation.max_depth=20", "-o", str(out)]) == 0
    assert (run_folder / "metrics.json").read_bytes() == before
    near = json.loads((out / "metrics.json").read_text())["stages"]["scene"]
    assert near["all"]["rmse"] < json.loads(before)["stages"]["scene"]["all"]["rmse"]


def test_a_file_elsewhere_needs_a_config(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "other" / "deep" / "down" / "net.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes((run_folder / "scene" / "weights.safetensors").read_bytes())
    assert main([str(weights)]) == 1
    assert "--config" in capsys.readouterr().err
    assert main([str(weights), "--config", str(run_folder / "config.yaml"), "-o", str(tmp_path / "out")]) == 0
    main([str(run_folder)])
    stages = json.loads((run_folder / "metrics.json").read_text())["stages"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["stages"]["net"] == stages["scene"]


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "does not exist"), ("empty", "holds no weights"), ("broken/weights.safetensors", "safetensors")],
)
def test_what_cannot_be_evaluated_is_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "weights.safetensors").write_text("no weights")
    assert main([str(tmp_path / place), "--config", str(run_folder / "config.yaml")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert place in error
