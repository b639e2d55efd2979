"""Doors behind which a run trains or goes on, and the words of every command."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from small_run import STAGES, make_document

from fuzz.door import Door, document, library, texture, write_run, write_sequence, write_weights
from fuzz.mutation import NUMBERS
from mcd.cli import COMMANDS
from mcd.cli import main as command
from mcd.config import known_keys, load_config
from mcd.data import instance_masks, open_reader, road_mask
from mcd.evaluation.command import main as evaluate
from mcd.report.page import main as report
from mcd.train import main as train

WORDS = (
    *NUMBERS,
    "2",
    "1e-9",
    "light",
    "auto",
    "native",
    "cpu",
    "best",
    "64x64",
    "[1, 2]",
    "[0, 1, 0, 1]",
    "a/b",
    "é",
)
BESIDE = ("run", "runs", "init", "device", "threads")
"""Keys that say where a run is, or what the machine has."""


def _short_run(folder: Path) -> None:
    """A sequence, and a config of the stages that need no masks, two steps each."""
    write_sequence(folder)
    about: Any = document(folder)
    small = make_document(folder, "out")
    sections = {name: section for name, section in small.items() if name in STAGES}
    about |= {name: section | ({"steps": 2} if "steps" in section else {}) for name, section in sections.items()}
    about["slots"] |= {"size": [32, 32]}
    about |= {
        "stages": STAGES[: STAGES.index("slots")],
        "store": "sqlite",
        "runs": str(folder / "out"),
        "device": "cpu",
    }
    about["scene"] |= {"batch": 1, "motion_from": 0, "joint_from": 1}
    about["ground"] |= {"batch": 1, "thirds_from": 0, "thirds_full_from": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))


def _near(draw: random.Random, value: Any) -> Any:
    """A value like this one: mostly such as might be meant."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, 2 * value, 0, 1, -1, 7))
    if isinstance(value, float):
        return draw.choice((value / 2, 3 * value, 0.0, 1.0, -value, 1e-6, 1e4, float("nan")))
    if isinstance(value, list | tuple):
        changed = list(value)
        if changed and draw.random() < 0.7:
            place = draw.randrange(len(changed))
            changed[place] = _near(draw, changed[place])
            return changed
        return draw.choice((changed[:-1], [*changed, *changed[-1:]], []))
    return draw.choice((None, 0, 1, 0.5, "light", "none", [0, 1], str(value) + "x"))


def _train(folder: Path, draw: random.Random) -> int:
    """A config near to a valid one; stages that train take no more steps than it has."""
    keys = [(name, value) for name, value, _ in known_keys() if name.split(".")[0] not in BESIDE]
    words = [str(folder / "config.yaml")]
    for name, value in draw.sample(keys, draw.randint(1, 3)):
        if name.rsplit(".", 1)[-1] not in ("steps", "epochs", "frames", "val_frames", "workers"):
            words += ["--set", f"{name}={json.dumps(_near(draw, value), default=str)}"]
    if draw.random() < 0.7:
        words += ["--set", "stages=[scene]", "--set", "store=none"]
    return train(words)


def _train_damaged(folder: Path, draw: random.Random) -> int:
    return train([str(folder / "config.yaml"), "--set", "stages=[scene]", "--set", "store=none"])


def _begun(folder: Path) -> None:
    """A run of which some stages are finished."""
    _short_run(folder)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert train([str(folder / "config.yaml")]) == 0


def _go_on(folder: Path, draw: random.Random) -> int:
    """Some of its last stages were not finished, or are to be done anew."""
    run = folder / "out" / "run"
    for stage in STAGES[draw.randrange(3) : STAGES.index("slots")]:
        with contextlib.suppress(OSError):
            if draw.random() < 0.5:
                (run / stage / "done.json").unlink()
            elif stage != "scene":
                shutil.rmtree(run / stage)
    return train([str(folder / "config.yaml")])


def _masks(folder: Path) -> None:
    write_sequence(folder)
    root = folder / "in" / "data"
    for split in ("train", "val"):
        (root / "road_masks" / split).mkdir(parents=True)
        for number in range(5):
            frame = f"{number:06d}"
            Image.fromarray(texture(number)[..., 0]).save(root / "road_masks" / split / f"{frame}.png")
            (root / "masks" / split / frame).mkdir(parents=True)
            for name in range(2):
                mask = np.zeros((32, 48), np.uint8)
                mask[8 * name : 8 * name + 12, 10:30] = 255
                Image.fromarray(mask).save(root / "masks" / split / frame / f"{name}.png")


def _read_masks(folder: Path) -> None:
    data = load_config(folder / "config.yaml").data
    for split in ("train", "val"):
        for frame in open_reader(data, split).frames:
            masks, numbers = instance_masks(data, split, frame)
            assert masks.shape == (len(numbers), *data.size), "masks have another size"
            assert road_mask(data, split, frame).shape == (1, *data.size), "the road has another size"


def _kitti(folder: Path) -> None:
    place, drive = folder / "in" / "data" / "2011_09_26", "2011_09_26_drive_0001_sync"
    for camera in ("02", "03"):
        images = place / drive / f"image_{camera}" / "data"
        images.mkdir(parents=True)
        for number in range(5):
            Image.fromarray(texture(number)).save(images / f"{number:010d}.png")
    points = place / drive / "velodyne_points" / "data"
    points.mkdir(parents=True)
    for number in range(5):
        cloud = np.random.default_rng(number).uniform((1, -9, -9, 0), (19, 9, 9, 1), (200, 4))
        cloud.astype("<f4").tofile(points / f"{number:010d}.bin")
    (place / "calib_cam_to_cam.txt").write_text(
        "S_rect_02: 48 32\nS_rect_03: 48 32\nR_rect_00: 1 0 0 0 1 0 0 0 1\n"
        "P_rect_02: 40 0 23.5 0 0 40 15.5 0 0 0 1 0\nP_rect_03: 40 0 23.5 -20 0 40 15.5 0 0 0 1 0\n"
    )
    (place / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -1\n")
    lists = folder / "in" / "data" / "splits"
    lists.mkdir()
    for split in ("train", "val", "test"):
        lines = (f"2011_09_26/{drive} {number} {camera}" for number in (1, 2, 3) for camera in "lr")
        (lists / f"{split}_files.txt").write_text("\n".join(lines))
    write_weights(folder / "net" / "weights.safetensors")
    about = document(folder)
    about["data"] = {"kind": "kitti", "root": str(folder / "in" / "data"), "size": [64, 64], "workers": 0}
    about |= {"evaluation": {"protocol": "kitti", "split": "test"}, "device": "cpu"}
    (folder / "net" / "config.yaml").write_text(yaml.safe_dump(about))
    (folder / "config.yaml").write_text(yaml.safe_dump(about))


def _evaluate(*words: str, place: str = "net/weights.safetensors") -> Callable[[Path, random.Random], int]:
    """Of a net or another place, on what is in ``in``."""

    def enter(folder: Path, draw: random.Random) -> int:
        given = [word.replace("IN", str(folder / "in")) for word in words]
        config = str(folder / "config.yaml")
        return evaluate([str(folder / place), "--config", config, "-o", str(folder / "out"), *given])

    return enter


def _evaluated(folder: Path) -> None:
    """A net, ground truth, boxes, poses."""
    write_sequence(folder)
    write_weights(folder / "net" / "weights.safetensors")
    (folder / "in" / "boxes.csv").write_text(
        "frame,x0,y0,x1,y1\n" + "".join(f"{number:06d},{9 + number},6,30,20\n" for number in range(5))
    )
    (folder / "in" / "data" / "poses.csv").write_text("x,y,z\n" + "".join(f"{n / 2},0,{n}\n" for n in range(5)))
    others = folder / "in" / "others"
    others.mkdir()
    for number in range(5):
        depth = np.random.default_rng(number).uniform(2, 9, (32, 48)).astype(np.float32)
        if number % 2:
            np.save(others / f"{number:06d}.npy", depth)
        else:
            Image.fromarray((256 * depth).astype(np.uint16)).save(others / f"{number:06d}.png")
    ways = folder / "in" / "ways"
    ways.mkdir()
    (ways / "kitti.txt").write_text("".join(f"1 0 0 {n / 2} 0 1 0 0 0 0 1 {n}\n" for n in range(5)))
    (ways / "tum.txt").write_text("".join(f"{n}.0 {n / 3} 0 {n} 0 0 0 1\n" for n in range(5)))


def _two_runs(folder: Path) -> None:
    write_run(folder)
    shutil.copytree(folder / "in" / "run", folder / "in" / "other")


VALID: dict[str, list[str]] = {
    "train": ["../config.yaml"],
    "predict": ["../net", "../in/data/images", "-o", "depth", "--device", "cpu"],
    "models": ["../in"],
    "export": ["../net", "-o", "net.onnx"],
    "evaluate": ["../net/weights.safetensors", "--config", "../config.yaml", "-o", "figures"],
    "report": ["../in/run"],
    "convert": ["../in", "-o", "converted"],
    "prepare": ["cityscapes", "../in", "prepared", "--workers", "1"],
    "backend": [],
}
"""Words of commands, said in the folder ``out`` of the trial; their options are taken from their help."""


@cache
def options_of(name: str, *words: str) -> list[str]:
    """All options that the help of a command names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[name].module).main([*words, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z-]+", said.getvalue())) - {"--help", "--profile"})


def _words(folder: Path) -> None:
    write_run(folder)
    (folder / "out").mkdir()
    write_weights(folder / "net" / "weights.safetensors")
    (folder / "config.yaml").write_text(
        yaml.safe_dump(document(folder) | {"runs": ".", "scene": {"steps": 1, "batch": 1}})
    )


def _say(folder: Path, draw: random.Random) -> int:
    name = draw.choice(sorted(VALID))
    words = list(VALID[name])
    options = options_of(name, *(["cityscapes"] if name == "prepare" else []))
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.7 and options:
            words += [draw.choice(options), *([] if kind < 0.1 else [draw.choice(WORDS)])]
        elif kind < 0.8 and words:
            words.pop(draw.randrange(len(words)))
        else:
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
    before = Path.cwd()
    os.chdir(folder / "out")
    try:
        print(name, *words)
        return command([name, *words])
    finally:
        os.chdir(before)


RUN_DOORS = {
    "training": Door(_short_run, _train, "nothing"),
    "training, data": Door(_short_run, _train_damaged, "in/data/**/*"),
    "a run that goes on": Door(_begun, _go_on, "out/run/**/*"),
    "masks": Door(_masks, library(_read_masks), "in/data/*masks/**/*"),
    "kitti": Door(_kitti, _evaluate()),
    "weights, evaluated": Door(_evaluated, _evaluate(), "net/*"),
    "boxes": Door(_evaluated, _evaluate("--boxes", "IN/boxes.csv"), "in/boxes.csv"),
    "poses": Door(_evaluated, _evaluate("--scale", "poses", "--set", "data.poses=poses.csv"), "in/data/poses.csv"),
    "other predictions": Door(_evaluated, _evaluate(place="in/others"), "in/others/*"),
    "trajectories": Door(_evaluated, _evaluate("--poses", "IN/ways/kitti.txt", place="in/ways/tum.txt"), "in/ways/*"),
    "report, two runs": Door(
        _two_runs,
        lambda folder, _: report(
            [*(str(folder / "in" / name) for name in ("run", "other")), "-o", str(folder / "out" / "page.html")]
        ),
        "in/other/**/*",
    ),
    "words": Door(_words, _say, "nothing"),
}
