"""The rounds of the detector, on a few drawn frames with a bright car on grey."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import StopAfter
from torch import Tensor, nn

from mcd.config import parse_config
from mcd.data import StepSampler, fixed_batches, to_device
from mcd.data.store import Prediction
from mcd.errors import StageError
from mcd.evaluation.stages import write_metrics
from mcd.files import frame_path
from mcd.masks.detections import VIEWS, FrameDetections, read_counts, write_counts
from mcd.masks.packed import save_masks
from mcd.masks.source import CANDIDATES, mask_source, newest_labels, round_name
from mcd.nets.layers import resnet18_backbone
from mcd.report.page import main as report
from mcd.report.page import write_report
from mcd.run.checkpoint import WEIGHTS, load_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import open_store
from mcd.stages.detector import CandidatesPreparation, DetectorStage, target
from mcd.train import run_part, run_stage
from mcd.training.profiling import ProfileWindow
from mcd.training.stop import InterruptedRun

SIZE = (64, 96)
CAR = (slice(16, 40), slice(30, 66))
FRAMES = {"train": ["a/a_1", "a/a_2", "a/a_3", "a/a_4"], "val": ["b/b_1", "b/b_2"]}


def write_frame(context: Context, split: str, frame: str, shift: int | None) -> None:
    """A frame whose car stands ``shift`` pixels to the right of CAR, and what earlier stages say of it."""
    run, root = context.run, context.config.data.root
    car = np.zeros(SIZE, dtype=bool)
    if shift is not None:
        car[CAR[0], CAR[1].start + shift : CAR[1].stop + shift] = True
    image = np.full((*SIZE, 3), 90, dtype=np.uint8)
    image[car] = (230, 60, 40)
    path = root / "triplets" / f"{frame}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([image] * 3, axis=1)).save(path)
    path.with_name(f"{path.stem}_cam.txt").write_text("50,0,47.5,0,50,31.5,0,0,1")
    depth = np.where(car, 4.0, 20.0).astype(np.float32)
    flow = np.where(car, np.float32(2), np.float32(0))[None, None].repeat(2, axis=0).repeat(2, axis=1)
    poses = np.eye(4, dtype=np.float32)[None].repeat(2, axis=0)
    store = open_store(context)
    assert store is not None
    store.write(split, {frame: Prediction(depth[None], flow, poses)})
    ground = np.zeros(SIZE, dtype=np.uint8)
    ground[40:] = 255
    path = frame_path(run.stage("ground") / "masks", split, frame, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ground).save(path)
    slots = np.zeros((2, 5, *SIZE), dtype=bool)
    slots[:, 3], slots[:, 0] = car, ~car
    save_masks(frame_path(run.stage("slots") / "masks", split, frame), slots)


def make_context(folder: Path, runs: str = "runs", shifts: dict[str, int | None] | None = None, **detector) -> Context:
    settings = {"steps": 2, "batch": 2, "checkpoint_every": 1, "scores": [None, 0.0], "filter_after": [1]} | detector
    config = parse_config({
        "runs": str(folder / runs),
        "data": {"root": str(folder / "data"), "size": SIZE, "workers": 0},
        "stages": ["scene", "predictions", "ground", "slots", "detector"],
        "store": "sqlite",
        "threads": 1,
        "detector": settings,
    })  # fmt: skip
    context = Context(config, Run(config), torch.device("cpu"))
    scene = context.run.stage("scene")
    scene.mkdir(parents=True, exist_ok=True)
    (scene / WEIGHTS).write_bytes(b"nets that a store can belong to")
    (folder / "data" / "splits").mkdir(parents=True, exist_ok=True)
    for split, frames in FRAMES.items():
        lines = "".join(f"{' '.join(frame.split('/'))}\n" for frame in frames)
        (folder / "data" / "splits" / f"{split}.txt").write_text(lines)
        for number, frame in enumerate(frames):
            write_frame(context, split, frame, (shifts or {}).get(frame, 3 * number))
    return context


def never() -> bool:
    return False


def candidates(context: Context) -> dict:
    part = CandidatesPreparation(context)
    facts = part.prepare(never)
    context.run.finish(part.name, **facts)
    return facts


def test_candidates_are_the_cars_of_the_slots(tmp_path: Path) -> None:
    context = make_context(tmp_path, shifts={"a/a_2": None})
    facts = candidates(context)
    assert facts["train"]["objects"] == 3 and facts["train"]["frames_with_objects"] == 3
    assert read_counts(context.run.stage(CANDIDATES) / "train.csv") == {"a/a_1": 1, "a/a_2": 0, "a/a_3": 1, "a/a_4": 1}
    found = FrameDetections.load(frame_path(context.run.stage(CANDIDATES), "val", "b/b_1"))
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[CAR] = True
    assert torch.equal(found.masks, expected[None])


def test_rounds_train_on_frames_with_objects_and_validate_without_augmentation(tmp_path: Path) -> None:
    # The published code mirrors the frames that it validates on after the first round.
    context = make_context(tmp_path, shifts={"a/a_2": None})
    candidates(context)
    stage = DetectorStage(context, 0)
    augment = context.config.augment.model_copy(update={"flip": 1.0})
    train, val = stage.dataset("train", augment), stage.dataset("val", None)
    assert [item.frame for item in train.items] == ["a/a_1", "a/a_3", "a/a_4"]
    mirrored, plain = train[0], val[0]
    assert torch.equal(mirrored["instances"], plain["instances"].flip(-1))
    assert torch.equal(mirrored["depth"], plain["depth"].flip(-1))
    assert torch.equal(mirrored["reference"], plain["reference"].flip(-1))  # no colour jitter


def test_targets_have_boxes_with_an_area_even_for_a_single_pixel() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 2, 1] = True
    assert target(masks)["boxes"].tolist() == [[1.0, 2.0, 2.0, 3.0]]
    # The published code puts a box with an object's label where there is none.
    assert target(masks[:0])["boxes"].shape == (0, 4)


def test_a_round_learns_from_the_last_one_that_found_enough(tmp_path: Path) -> None:
    run = make_context(tmp_path).run
    assert newest_labels(run, 0) == CANDIDATES
    run.finish(round_name(0), usable=False)
    run.finish(round_name(1), usable=True)
    run.finish(round_name(2), usable=False)
    assert newest_labels(run, 1) == CANDIDATES
    assert newest_labels(run, 2) == newest_labels(run, 3) == round_name(1)


def test_the_learning_rate_falls_from_round_to_round(tmp_path: Path) -> None:
    context = make_context(tmp_path, lr=0.01, decay=0.5, scores=[None, 0.1, 0.2], filter_after=[2])
    assert [DetectorStage(context, number).schedule.lr for number in range(3)] == [0.01, 0.005, 0.0025]


def test_rounds_see_their_items_in_another_order_and_mirror_others(tmp_path: Path) -> None:
    # The published code trains through ten epochs; here each round counts from its own.
    context = make_context(tmp_path)
    candidates(context)
    stages = [DetectorStage(context, number) for number in range(2)]
    data = stages[0].dataset("train", context.config.augment)
    samplers = [StepSampler(4, 2, 0, 0, 8, first_epoch=stage.first_epoch) for stage in stages]
    keys = [[key for batch in sampler for key in batch] for sampler in samplers]
    assert [index for index, _ in keys[0]] != [index for index, _ in keys[1]]
    plain = stages[0].dataset("train", None)
    mirrored = [
        [not torch.equal(data[key]["reference"], plain[key[0]]["reference"]) for key in sorted(p)] for p in keys
    ]
    assert mirrored[0] != mirrored[1]
    assert all(any(part) and not all(part) for part in mirrored)


def test_a_detector_that_sees_objects_in_another_size_is_warned_of(tmp_path: Path) -> None:
    given = DetectorStage(make_context(tmp_path, magnify=2.0), 0)
    given.save_weights(0, None)
    with pytest.warns(UserWarning, match=r"in images 192 pixels wide; these are 96. detector.magnify: 2 would"):
        DetectorStage(make_context(tmp_path, "small", init=str(given.folder)), 0).initialise()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DetectorStage(make_context(tmp_path, "like", init=str(given.folder), magnify=1.9), 0).initialise()


def test_a_trained_detector_is_used_as_it_is(tmp_path: Path) -> None:
    given = DetectorStage(make_context(tmp_path), 0)
    given.save_weights(0, None)
    context = make_context(tmp_path, "used", steps=0, init=str(given.folder), scores=[0.0], filter_after=[0], views=1)
    facts = run_stage(DetectorStage, context, never, ProfileWindow(None, context.run.path))
    place = context.run.stage("detector")
    assert not (context.run.stage(CANDIDATES)).exists()
    assert facts["steps"] == 0 and facts["masks_from"] == round_name(0)
    source = mask_source(context.run)
    for split, frames in FRAMES.items():
        for frame in frames:
            known = FrameDetections.load(frame_path(context.run.stage(round_name(0)), split, frame))
            assert np.array_equal(source.instances(split, frame)[0], known.masks.numpy())
    expected = given.nets["detector"].state_dict()
    found = load_weights(place / WEIGHTS).tensors["detector"]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_first_layers_of_the_published_detector_keep_their_imagenet_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcd.nets.detector.resnet18_backbone", lambda pretrained: resnet18_backbone(pretrained=False))
    context = make_context(tmp_path)
    nets = context.config.nets.model_copy(update={"detector": "resnet18", "pretrained": True})
    context = Context(context.config.model_copy(update={"nets": nets}), context.run, context.device)
    candidates(context)
    stage = DetectorStage(context, 0)
    net = stage.nets["detector"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = stage.optimizer([{"params": list(net.parameters())}])
    stage.set_mode(0)
    batch = to_device(next(iter(fixed_batches(stage.dataset("train", None), 2, 0))), context.device)
    stage.loss(batch, stage.forward(batch, 0), 0)["total"].backward()
    optimizer.step()
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    moved = {name.removeprefix("backbone.body.") for name in changed}
    assert "conv1.weight" in moved and "layer2.0.conv1.weight" in moved
    assert not [name for name in moved if name.startswith("layer1.") or ".bn" in name or "running" in name]


def test_the_first_round_starts_from_given_weights_and_the_others_from_the_round_before(tmp_path: Path) -> None:
    given = DetectorStage(make_context(tmp_path), 0)
    with torch.no_grad():
        next(given.nets["detector"].parameters()).add_(1.0)  # all fresh nets of a seed are the same
    given.save_weights(0, None)
    context = make_context(tmp_path, "others", init=str(given.folder))
    first, second = DetectorStage(context, 0), DetectorStage(context, 1)
    first.initialise()
    first.save_weights(0, None)
    second.initialise()
    expected = given.nets["detector"].state_dict()
    for stage in (first, second):
        assert all(torch.equal(value, expected[name]) for name, value in stage.nets["detector"].state_dict().items())


def test_all_static_frames_say_that_nothing_was_found(tmp_path: Path) -> None:
    context = make_context(tmp_path, shifts=dict.fromkeys(FRAMES["train"]))
    candidates(context)
    with pytest.raises(StageError, match="no training frame has a slot that passes as a moving object"):
        DetectorStage(context, 0).dataset("train", None)


def test_why_candidates_were_dropped_is_said(tmp_path: Path) -> None:
    context = make_context(tmp_path, largest_box=0.05)
    candidates(context)
    with pytest.raises(StageError, match="dropped as: 8 large"):  # four frames in two directions
        DetectorStage(context, 0).dataset("train", None)
    # After a stop as well, in the middle of the frames.
    stopped = make_context(tmp_path, "stopped", largest_box=0.05)
    with pytest.raises(KeyboardInterrupt):
        CandidatesPreparation(stopped).prepare(StopAfter(1))
    candidates(stopped)
    with pytest.raises(StageError, match="dropped as: 8 large"):
        DetectorStage(stopped, 0).dataset("train", None)


def test_too_few_frames_for_a_batch_are_counted(tmp_path: Path) -> None:
    context = make_context(tmp_path, shifts=dict.fromkeys(FRAMES["train"][1:]))
    candidates(context)
    with pytest.raises(StageError, match="stage detector/round_0: a batch of 2 cannot be drawn from 1 items"):
        run_part(DetectorStage(context, 0), context, never, ProfileWindow(None, context.run.path))


class Fixed(nn.Module):
    """A detector that finds the same in every image."""

    def __init__(self, masks: Tensor, scores: list[float]):
        super().__init__()
        self.masks, self.scores, self.seen = masks, torch.tensor(scores), []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen.append(torch.stack(images))
        return [{"masks": self.masks[:, None].float(), "scores": self.scores} for _ in images]


class FarAway(nn.Module):
    """A depth net that sees a wall, the first image's at 50 and each following one's ten times as far."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [50.0 * 10.0 ** torch.arange(len(image))[:, None, None, None].expand_as(image[:, :1])]


def test_five_views_are_looked_through_once_each_and_joined(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    stage = DetectorStage(context, 1)
    car = torch.zeros(1, *SIZE, dtype=torch.bool)
    car[0][CAR] = True
    net = Fixed(car, [0.9])
    batch = {
        "frame": ["a", "b"],
        "reference": torch.rand(2, 3, *SIZE),
        "depth": torch.rand(2, 1, *SIZE) + 1,
        "ground": torch.zeros(2, 1, *SIZE),
    }
    (one, _) = stage.detect(net, None, VIEWS[:1], batch)
    assert torch.equal(one.masks, car) and len(net.seen) == 1
    net.seen.clear()
    (found, _) = stage.detect(net, FarAway(), VIEWS, batch)
    # Every image is seen once a view; the published code runs the detector twice.
    assert len(net.seen) == len(VIEWS) and all(len(images) == 2 for images in net.seen)
    # The largest disparity is each image's own, not that of the batch.
    assert all(torch.equal(images[:, 3], torch.ones(2, *SIZE)) for images in net.seen[1:])
    assert len(found.masks) >= 1 and (found.masks[:, CAR[0], CAR[1]]).any()


def results(context: Context) -> dict[str, bytes]:
    """Every mask and weight that the stage leaves."""
    place = context.run.stage("detector")
    files = [*place.rglob("*.npz"), *place.rglob("weights.safetensors")]
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(files)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Context, dict]:
    """A run of two rounds, and what it said in the end."""
    folder = tmp_path_factory.mktemp("detector")
    context = make_context(folder, "whole", views=1, box_excess=9.0)
    facts = run_stage(DetectorStage, context, never, ProfileWindow(None, context.run.path))
    context.run.finish("detector", **facts, discovery={"found": 4, "moving": 2, "recall": 0.5}, frames=6)
    return folder, context, facts


def test_the_stage_leaves_masks_for_every_frame(whole: tuple[Path, Context, dict]) -> None:
    _, context, facts = whole
    place = context.run.stage("detector")
    assert facts["val"]["frames"] == 2 and facts["seconds"] > 0
    for split, frames in FRAMES.items():
        for frame in frames:
            found, names = mask_source(context.run).instances(split, frame)
            assert names == list(range(len(found)))
            last = FrameDetections.load(frame_path(place / "round_1", split, frame))
            assert np.array_equal(found, last.masks.numpy())
    assert facts["train"]["objects"] > 0
    assert (place / "weights.safetensors").read_bytes() == (place / "round_1" / "weights.safetensors").read_bytes()
    assert not any(place.rglob("state.pt")), "a round that is over needs no state"


def test_a_run_that_is_stopped_again_and_again_ends_as_if_it_had_not_been(whole: tuple[Path, Context, dict]) -> None:
    folder, context, _ = whole
    broken = make_context(folder, "broken", views=1, box_excess=9.0)
    stops = 0
    for attempt in range(20):
        try:
            run_stage(DetectorStage, broken, StopAfter(1 + attempt // 4), ProfileWindow(None, broken.run.path))
            break
        except InterruptedRun:
            stops += 1
    assert stops > 3
    assert results(broken).keys() == results(context).keys()
    assert results(broken) == results(context)


def test_report_and_metrics_show_rounds_and_figures(whole: tuple[Path, Context, dict], tmp_path: Path) -> None:
    _, context, _ = whole
    run = context.run.path
    document = write_metrics(run)
    assert document["discovery"] == {"detector": {"found": 4, "moving": 2, "recall": 0.5}}
    assert document["milliseconds_per_frame"]["detector"] > 0
    page = write_report(run).read_text()
    section = page[page.index("Moving objects, from motion to masks") :]
    section = section[: section.index("Loss curves")]
    assert "Moving objects, round by round" in section
    assert "round 1" in section and "slots" in section and "b/b_2" in section and "No pictures" not in section
    assert report([str(run), "--objects", str(tmp_path / "panel.png")]) == 0
    with Image.open(tmp_path / "panel.png") as sheet:
        assert sheet.width > 3 * 480


def test_a_last_round_without_detections_leaves_what_was_known_before(tmp_path: Path) -> None:
    context = make_context(tmp_path, scores=[1.0], filter_after=[0], views=1)
    facts = run_stage(DetectorStage, context, never, ProfileWindow(None, context.run.path))
    assert facts["masks_from"] == CANDIDATES and facts["train"]["objects"] == 0
    found, _ = mask_source(context.run).instances("train", "a/a_1")
    known = FrameDetections.load(frame_path(context.run.stage(CANDIDATES), "train", "a/a_1"))
    assert len(found) and np.array_equal(found, known.masks.numpy())
    assert json.loads((context.run.stage(round_name(0)) / "done.json").read_text())["usable"] is False


def test_lists_and_files_may_hold_frames_without_objects(tmp_path: Path) -> None:
    write_counts(tmp_path / "train.csv", {"a": 0})
    assert read_counts(tmp_path / "train.csv") == {"a": 0}
