"""What a run on own footage leaves for its later stages, its picture cache, and masks of the own vehicle."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rendered_road import SIZE, SPEED, Box, K, render

from fuzz.door import Door, document, library, write_sequence, write_weights
from mcd.config import Config, load_config
from mcd.data import FrameDataset, SequenceFolder, open_reader
from mcd.data.prepare import main as prepare
from mcd.data.prepare_cache import fill_cache
from mcd.evaluation.command import main as evaluate
from mcd.inference.command import main as predict
from mcd.masks.detections import FrameDetections, read_counts
from mcd.masks.instances import FrameInstances, read_rows
from mcd.masks.source import mask_source
from mcd.run.folder import Run
from mcd.scene.track import CameraTrack
from mcd.train import main as train

STAGES = ["scene", "predictions", "ground", "proposals", "instances", "object", "scale", "pseudo", "final"]
BOXES = [
    *(Box(-2.5, z, 2.2, 1.6, SPEED) for z in (12, 20)),
    *(Box(x, z, 2.2, 1.6) for x, z in ((2.5, 11), (3.0, 15), (-5.5, 14))),
]


def _whole_document(folder: Path) -> dict[str, Any]:
    few = {"steps": 1, "batch": 2, "validate_batches": 1, "checkpoint_every": 1}
    held = {"odometry": True, "frozen_blocks": 3}
    return {
        "run": "run",
        "runs": str(folder / "out"),
        "threads": 1,
        "device": "cpu",
        "store": "sqlite",
        "init": "start",
        "nets": {"depth": "lite0"},
        "stages": STAGES,
        "data": {
            "kind": "sequence",
            "root": str(folder / "in" / "frames"),
            "size": list(SIZE),
            "intrinsics": [float(K[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))],
            "workers": 0,
            "own_mask": str(folder / "in" / "own.png"),
        },
        "loss": {"scales": 1, "start": 0.05},
        # Steps so small that the nets of the start stay what they are, and see the road.
        "scene": {**few, **held, "steps": 2, "lr": 1e-7, "motion_from": 1, "joint_from": 1},
        "ground": {**few, "angle": 60, "distance": 9},
        "proposals": {"init": "start"},
        "instances": {"tracks": True, "persist": 2, "min_area": 0.0005},
        "object": {**few, "batch": 1},
        "scale": {**few, "batch": 1},
        "pseudo": {"contact": 0.1},
        "final": {**few, **held, "lr": 1e-7},
    }


def _frames(folder: Path, count: int) -> None:
    place = folder / "in" / "frames"
    place.mkdir(parents=True)
    for time in range(count):
        pixels = render(time, BOXES).image.permute(1, 2, 0).numpy() * 255
        Image.fromarray(pixels.round().astype(np.uint8)).save(place / f"{time:03d}.png")
    own = np.zeros(SIZE, np.uint8)
    own[-6:] = 255
    Image.fromarray(own).save(folder / "in" / "own.png")


def _whole(folder: Path) -> None:
    """A run of every stage that finds and learns moving objects."""
    _frames(folder, 7)
    (folder / "config.yaml").write_text(yaml.safe_dump(_whole_document(folder)))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert train([str(folder / "config.yaml")]) == 0
    assert (folder / "out" / "run" / "pseudo" / "train").is_dir(), "nothing was found to move"


def _go_on(folder: Path, draw: random.Random) -> int:
    """Its last stages are to be done anew, or it is looked at."""
    run = folder / "out" / "run"
    what = draw.random()
    if what < 0.1:
        return evaluate([str(run)])
    begin = draw.randrange(STAGES.index("proposals"), len(STAGES))
    for stage in STAGES[begin:]:
        with contextlib.suppress(OSError):
            if draw.random() < 0.7:
                (run / stage / "done.json").unlink()
            else:
                shutil.rmtree(run / stage)
    return train([str(folder / "config.yaml")])


def _records(folder: Path) -> None:
    """What the stages that find objects leave, without their nets."""
    _frames(folder, 4)
    (folder / "config.yaml").write_text(yaml.safe_dump(_whole_document(folder)))
    config = load_config(folder / "config.yaml")
    run = Run(config)
    for split in ("train", "val"):
        lines = ["frame,row,id,dynamic,large,triplet,coverage"]
        track: dict[tuple[str, str], np.ndarray] = {}
        for number in range(4):
            frame, masks = f"{number:03d}", np.stack([render(number, BOXES).owner == box for box in range(2)])
            found = FrameDetections(_tensor(masks), _tensor(np.array([0.9, 0.4], np.float32)))
            at = run.stage("proposals") / split / f"{frame}.npz"
            found.save(at, moves=np.array([True, False]), road=np.array(True), told=np.array(True))
            yes = np.ones(2, bool)
            share = np.array([0.5, 0.1], np.float32)
            triplet = masks[:, None].repeat(3, 1)
            objects = FrameInstances(np.arange(2), np.array([True, False]), share, yes, yes, triplet)
            objects.save(run.stage("instances") / split / f"{frame}.npz")
            lines += [f"{frame},{row},{row},{1 - row},1,1,0.5000" for row in range(2)]
            if number:
                track[f"{number - 1:03d}", frame] = np.eye(4)
        (run.stage("proposals") / f"{split}.csv").write_text("frame,objects\n000,2\n001,2\n002,2\n003,2\n")
        (run.stage("instances") / f"{split}.csv").write_text("\n".join(lines) + "\n")
        units = {f"{number:03d}": 1.25 for number in range(4)}
        CameraTrack(track, units, 1.1).save(run.stage("scene") / f"odometry_{split}.npz")
        (run.path / "ground" / "masks" / split).mkdir(parents=True)
        for number in range(4):
            shares = np.full(SIZE, 200, np.uint8)
            Image.fromarray(shares).save(run.path / "ground" / "masks" / split / f"{number:03d}.png")
    run.finish("proposals", seconds=1.0)


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)


def _read_records(folder: Path) -> None:
    config = load_config(folder / "config.yaml")
    run = Run(config)
    source = mask_source(run)
    for split in ("train", "val"):
        reader = open_reader(config.data, split)
        assert isinstance(reader, SequenceFolder)
        track = CameraTrack.load(run.stage("scene") / f"odometry_{split}.npz")
        for frame in reader.frames:
            masks, numbers = source.instances(split, frame)
            assert masks.shape == (len(numbers), *SIZE), "masks have another size"
            moving = source.moving(split, frame)
            assert moving is not None
            assert moving.shape == source.ground(split, frame).shape == (1, *SIZE), "another size"
            found = FrameInstances.load(run.stage("instances") / split / f"{frame}.npz")
            count = len(found.ids)
            assert found.masks.shape == (count, 3, *SIZE), "masks have another size"
            for values in (found.dynamic, found.large, found.triplet):
                assert (values.shape, values.dtype) == ((count,), bool), "not a bool for every object"
            assert np.isfinite(track(frame, 1)).all(), "motion is not finite"
            assert np.isfinite(track.unit(frame)["unit"]) and track.unit(frame)["unit"] > 0, "a unit is no scale"
        read_counts(run.stage("proposals") / f"{split}.csv")
        for row in read_rows(run.stage("instances"), split):
            assert np.isfinite(row.coverage), "coverage is not finite"


def _cached(folder: Path) -> None:
    write_sequence(folder)
    about: Any = document(folder)
    about["data"] |= {"cache": str(folder / "out" / "cache")}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))
    fill_cache(load_config(folder / "config.yaml").data)


def _read_cache(folder: Path) -> None:
    import torch

    config: Config = load_config(folder / "config.yaml")
    for split in ("train", "val"):
        dataset = FrameDataset(open_reader(config.data, split), config.data)
        for index in range(len(dataset)):
            camera = dataset[index]["K"]
            assert torch.isfinite(torch.linalg.inv(camera)).all(), "K is not a camera"


def _use_cache(folder: Path, draw: random.Random) -> int:
    """Read from it, go on with it, look for bytes that have changed."""
    kind = draw.random()
    if kind < 0.5:
        return library(_read_cache)(folder, draw)
    words = [["--verify"], ["--skip"], []][draw.randrange(3)]
    return prepare(["cache", str(folder / "config.yaml"), "--workers", "1", *words])


def _own(folder: Path) -> None:
    """A run that knows its own vehicle, and a mask of it for a run to come."""
    _frames(folder, 5)
    about = _whole_document(folder)
    about["nets"] = {"depth": "light"}
    about["scene"] |= {"odometry": False, "frozen_blocks": None}
    about["final"] |= {"odometry": False, "frozen_blocks": None}
    about["loss"]["start"] = 0
    about |= {"init": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))
    run = Run(load_config(folder / "config.yaml"))
    write_weights(run.stage("scene") / "weights.safetensors")
    shutil.copy(folder / "in" / "own.png", run.path / "own_vehicle.png")


def _hide_own(folder: Path, draw: random.Random) -> int:
    if draw.random() < 0.5:
        run, frames = folder / "out" / "run", folder / "in" / "frames"
        return predict([str(run), str(frames), "-o", str(folder / "out" / "depth"), "--camera-height", "1.5"])

    def read(folder: Path) -> None:
        data = load_config(folder / "config.yaml").data
        dataset = FrameDataset(open_reader(data, "train"), data)
        assert dataset[0]["own"].shape == (1, *SIZE), "the mask has another size"

    return library(read)(folder, draw)


WHOLE_RUN_DOORS = {
    "a whole run that goes on": Door(_whole, _go_on, "out/run/**/*"),
    "objects and motion of a run": Door(_records, library(_read_records), "out/run/**/*"),
    "picture cache": Door(_cached, _use_cache, "out/cache/*"),
    "own vehicle": Door(_own, _hide_own, "*/**/own*.png"),
}
