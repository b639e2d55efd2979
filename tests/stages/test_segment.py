"""Objects from a segmenter that was trained elsewhere: which are kept, where they go, what is said without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from small_segmenter import teach

from mcd.config import ConfigError, load_config, parse_config
from mcd.data import open_reader
from mcd.data.labels import instance_masks
from mcd.evaluation.discovery import TrueInstances, finders, score_instances
from mcd.files import DataError, frame_path
from mcd.masks.detections import FrameDetections, distinct, read_counts
from mcd.masks.morphology import areas, overlap
from mcd.masks.packed import load_arrays
from mcd.masks.source import mask_source
from mcd.nets.segmenter import CLASSES, COCO, build_segmenter, coco_weights, seen_size
from mcd.report.pictures import detection_gallery
from mcd.run.checkpoint import CheckpointError
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages.segment import SegmentPreparation, class_labels, load_segmenter
from mcd.streets.synthetic import generate
from mcd.train import main as train

FRAMES, NATIVE, SIZE = 4, (96, 160), (32, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of the small net."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "light.pth"
    torch.save(build_segmenter("light", (64, 64)).state_dict(), path)
    return path


def make_context(folder: Path, weights: Path, runs: str = "runs", **settings: Any) -> Context:
    """Four frames of noise; every score counts, and every class."""
    root = folder / "data"
    if not root.is_dir():
        root.mkdir()
        for number, noise in enumerate(np.random.default_rng(0).integers(0, 255, (FRAMES, *NATIVE, 3), dtype=np.uint8)):
            Image.fromarray(noise).save(root / f"{number:03d}.png")
    data = {"kind": "sequence", "root": str(root), "size": SIZE, "fov": 70, "workers": 0}
    segment = {"weights": str(weights), "score": 0.0, "side": 64, "classes": [n for n in CLASSES[1:] if n != "N/A"]}
    config = parse_config({
        "runs": str(folder / runs),
        "device": "cpu",
        "stages": ["segment", "instances"],
        "data": data | settings.pop("data", {}),
        "nets": {"segmenter": "light"},
        "segment": segment | settings,
    })  # fmt: skip
    return Context(config, Run(config), torch.device("cpu"))


def never() -> bool:
    return False


def finish(context: Context) -> dict[str, Any]:
    facts = SegmentPreparation(context).prepare(never)
    context.run.finish("segment", **facts)
    return facts


def test_frames_are_shown_as_torchvision_resizes_them() -> None:
    assert seen_size((480, 640), 800) == (800, 1067)
    assert seen_size((540, 960), 800) == (750, 1333)
    assert seen_size((1080, 1920), 480) == (450, 800)


def test_the_net_is_the_one_that_the_coco_weights_are_of() -> None:
    with torch.device("meta"):
        net = build_segmenter("resnet50_v2", (64, 96))
    assert sum(parameter.numel() for parameter in net.parameters()) == COCO.meta["num_params"]
    assert net.transform.fixed_size == (96, 64), "images are resized once, by the data set"


def test_objects_of_every_frame_are_what_later_stages_work_with(tmp_path: Path, weights: Path) -> None:
    context = make_context(tmp_path, weights)
    with pytest.raises(DataError, match="the stage 'segment' comes first"):
        mask_source(context.run).instances("train", "001")
    facts = finish(context)
    frames = open_reader(context.config.data, "train").frames
    counts = read_counts(context.run.stage("segment") / "train.csv")
    assert list(counts) == frames and facts["train"]["objects"] == sum(counts.values()) > 0
    for frame in frames:
        path = frame_path(context.run.stage("segment"), "train", frame)
        found, (labels,) = FrameDetections.load(path), load_arrays(path, "labels")
        assert found.masks.shape == (counts[frame], *SIZE) and len(labels) == counts[frame]
        assert areas(found.masks).min() > 0
        assert torch.equal(found.scores, found.scores.sort(descending=True)[0])
        masks, names = mask_source(context.run).instances("train", frame)
        assert np.array_equal(masks, found.masks.numpy()) and names == list(range(counts[frame]))
    assert finders(context.run.path) == {"segmenter": "segment"}
    gallery = detection_gallery(context.config, context.run.path)
    assert gallery is not None and any("segmenter" in name for _, tiles in gallery.frames for name, _ in tiles)


def test_only_the_classes_that_are_asked_for_are_kept(tmp_path: Path, weights: Path) -> None:
    every = make_context(tmp_path, weights)
    finish(every)
    frame = open_reader(every.config.data, "train").frames[0]
    seen = load_arrays(frame_path(every.run.stage("segment"), "train", frame), "labels")[0]
    name = CLASSES[seen[0]]
    one = make_context(tmp_path, weights, "one", classes=[name])
    finish(one)
    left = load_arrays(frame_path(one.run.stage("segment"), "train", frame), "labels")[0]
    assert set(left) == {seen[0]} and len(set(seen)) > 1


def test_a_stage_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path, weights: Path) -> None:
    undisturbed, stopped = make_context(tmp_path, weights), make_context(tmp_path, weights, "stopped")
    finish(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        SegmentPreparation(stopped).prepare(lambda: True)
    (first,) = (stopped.run.stage("segment") / "train").glob("*1.npz")
    written = first.stat().st_mtime_ns
    finish(stopped)
    assert first.stat().st_mtime_ns == written, "what was there is kept"
    for path in undisturbed.run.stage("segment").rglob("*.npz"):
        assert (
            path.read_bytes()
            == (stopped.run.stage("segment") / path.relative_to(undisturbed.run.stage("segment"))).read_bytes()
        )


def test_the_own_vehicle_is_no_object(tmp_path: Path, weights: Path) -> None:
    free = make_context(tmp_path, weights)
    finish(free)
    own = np.zeros(NATIVE, np.uint8)
    own[NATIVE[0] // 2 :] = 255
    Image.fromarray(own).save(tmp_path / "own.png")
    context = make_context(tmp_path, weights, "own", data={"own_mask": str(tmp_path / "own.png")})
    finish(context)
    frame = open_reader(context.config.data, "train").frames[0]

    def shares(run: Run) -> np.ndarray:
        masks = mask_source(run).instances("train", frame)[0]
        return masks[:, SIZE[0] // 2 :].sum((1, 2)) / masks.sum((1, 2))

    assert shares(free.run).max() > 0.6
    assert shares(context.run).max() <= 0.5


def test_an_object_that_two_classes_claim_is_one(tmp_path: Path) -> None:
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, :4, :3] = masks[2, :4, 2:] = masks[3, 6:] = True
    kept = distinct(FrameDetections(masks, torch.tensor([0.7, 0.9, 0.6, 0.8])))
    assert kept.tolist() == [1, 3, 2], "best first; the first mask is three quarters the second"
    assert overlap(masks[kept], masks[kept]).triu(1).max() <= 0.5
    assert distinct(FrameDetections(masks[:0], torch.zeros(0))).tolist() == []


def test_a_class_that_coco_does_not_have_is_named_with_those_near() -> None:
    assert class_labels(("person", "car", "truck")) == [1, 3, 8]
    with pytest.raises(ConfigError, match="names 'trucks', which is none of COCO's 80 classes; near are truck"):
        class_labels(("car", "trucks"))


def test_weights_that_cannot_be_had_are_said_in_one_line(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    command = ["video_masks", "--set", f"runs={tmp_path / 'runs'}", "--set", f"data.root={tmp_path}"]
    assert train(command) == 1
    said = capsys.readouterr().err
    place = tmp_path / "torch" / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    assert f"https://download.pytorch.org/models/{place.name}" in said and str(place) in said
    assert "segment.weights=FILE" in said and said.count("\n") == 1
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(weights.read_bytes())
    assert coco_weights() == place, "what was put there is taken"
    with pytest.raises(CheckpointError, match="does not fit the segmenter net 'resnet50_v2'"):
        load_segmenter(load_config("video_masks"), (64, 64))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"nets": {"segmenter": "light"}}, "the segmenter 'light' has no COCO weights"),
        ({"nets": {"segmenter": "yolo"}, "segment": {"weights": "FILE"}}, "no segmenter 'yolo'"),
        ({"segment": {"weights": "nowhere.pth"}}, "nowhere.pth does not exist"),
        ({"segment": {"weights": "BROKEN"}, "nets": {"segmenter": "light"}}, "broken.pth cannot be read"),
    ],
)
def test_a_segmenter_that_cannot_be_made_is_said(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK no weights")
    document = json.loads(json.dumps(settings).replace("BROKEN", str(broken)).replace("FILE", str(broken)))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_segmenter(parse_config({"stages": ["segment", "instances"], **document}), (64, 64))


def test_two_stages_that_find_objects_are_one_too_many() -> None:
    stages = ["scene", "predictions", "ground", "slots", "detector", "segment", "instances"]
    with pytest.raises(ConfigError, match="both find the objects"):
        parse_config({"stages": stages, "store": "sqlite"})


def test_the_two_configs_of_own_footage_say_the_same_of_what_they_share() -> None:
    found, masks = (load_config(name).model_dump() for name in ("video", "video_masks"))
    for key in ("run", "stages", "slots", "detector", "segment", "proposals"):
        del found[key], masks[key]
    assert found == masks


@pytest.mark.slow
def test_a_segmenter_of_own_weights_finds_the_cars_that_it_was_taught(tmp_path: Path) -> None:
    size = (64, 192)
    generate(tmp_path / "data", train=12, val=2, size=size, workers=1)
    data = {"kind": "triplets", "root": str(tmp_path / "data"), "size": size, "fov": None}
    reader = open_reader(parse_config({"data": data}).data, "train")
    images = [
        torch.from_numpy(reader.read(frame, sources=False).images[0].copy()).permute(2, 0, 1) / 255
        for frame in reader.frames
    ]
    truth = []
    for frame in reader.frames:
        masks = torch.from_numpy(instance_masks(parse_config({"data": data}).data, "train", frame)[0].copy())
        large = areas(masks) > 0.005 * size[0] * size[1]
        truth.append(TrueInstances(masks[large], masks[~large]))
    assert seen_size(size, 115) == size
    net = build_segmenter("light", size)
    teach(net, images, [true.moving for true in truth], steps=240)
    torch.save(net.state_dict(), tmp_path / "taught.pth")
    context = make_context(tmp_path, tmp_path / "taught.pth", data=data, classes=["car"], score=0.5, side=115)
    finish(context)
    found = (torch.from_numpy(mask_source(context.run).instances("train", frame)[0]) for frame in reader.frames)
    scores = score_instances(found, truth)
    assert scores["recall"] > 0.5 and scores["precision"] > 0.5, scores
