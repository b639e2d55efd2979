"""The doors through which files and words come in, each with a small valid example that is damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from fuzz.mutation import NUMBERS
from mcd import convert
from mcd.config import known_keys, load_config
from mcd.data import FrameDataset, open_reader
from mcd.data.prepare import main as prepare
from mcd.data.store import Prediction, PredictionStore
from mcd.data.video import VideoWriter
from mcd.errors import McdError
from mcd.evaluation.command import main as evaluate
from mcd.inference.command import main as predict
from mcd.nets import build_depth_net, build_slot_net
from mcd.report.page import main as report
from mcd.run.checkpoint import load_state, save_state, save_weights
from mcd.run.networks import check_nets
from mcd.train import parse_arguments

SIZE = (64, 64)


@dataclass(frozen=True)
class Door:
    """A way in: ``build`` writes a valid example below a folder; ``enter`` goes through, and returns an exit status.

    Files matching ``inputs`` are damaged, and must be left as they were; results go into ``out`` below the folder.
    """

    build: Callable[[Path], None]
    enter: Callable[[Path, random.Random], int]
    inputs: str = "in/**/*"


def library(call: Callable[[Path], None]) -> Callable[[Path, random.Random], int]:
    """A door of the library: an error that a command would print is an exit status of 1."""

    def enter(folder: Path, draw: random.Random) -> int:
        try:
            call(folder)
        except McdError as error:
            print(error)
            return 1
        return 0

    return enter


def _texture(number: int) -> np.ndarray:
    rows = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    return np.kron(rows, np.ones((4, 4, 1), np.uint8))[:, 2 * number : 2 * number + 48]


def _frames(folder: Path, count: int = 5) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(_texture(number)).save(folder / f"{number:06d}.{'jpg' if number % 2 else 'png'}")


def _weights(path: Path) -> None:
    torch.manual_seed(0)
    save_weights(path, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE, "stage": "scene"})


def _document(folder: Path) -> dict[str, object]:
    data = {"kind": "sequence", "root": str(folder / "in" / "data"), "images": "images", "size": list(SIZE)}
    data |= {"depth": "depth", "calibration": "calib_cam_to_cam.txt", "workers": 0}
    return {"run": "run", "runs": str(folder / "in"), "stages": ["scene"], "threads": 1, "data": data}


def _sequence(folder: Path) -> None:
    place = folder / "in" / "data"
    _frames(place / "images")
    (place / "depth").mkdir()
    for number in range(5):
        Image.fromarray(np.full((32, 48), 256 * (number + 2), np.uint16)).save(place / "depth" / f"{number:06d}.png")
    (place / "calib_cam_to_cam.txt").write_text(
        "S_rect_02: 48.0 32.0\nP_rect_02: 40 0 23.5 1 0 40 15.5 0.2 0 0 1 0.003\n"
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(_document(folder)))


def _read_sequence(folder: Path) -> None:
    data = load_config(folder / "config.yaml").data
    for split in ("train", "val"):
        dataset = FrameDataset(open_reader(data, split), data)
        for index in range(len(dataset)):
            item = dataset[index]
            assert torch.isfinite(item["K"]).all(), "K is not finite"


def _triplets(folder: Path) -> None:
    place = folder / "in" / "data"
    (place / "triplets" / "ulm").mkdir(parents=True)
    (place / "splits").mkdir()
    frames = [f"ulm_000000_{number:06d}" for number in range(2)]
    for frame in frames:
        Image.fromarray(np.concatenate([_texture(n) for n in range(3)], 1)).save(place / f"triplets/ulm/{frame}.png")
        (place / f"triplets/ulm/{frame}_cam.txt").write_text("40,0,23.5,0,40,15.5,0,0,1")
    for split in ("train", "val"):
        (place / "splits" / f"{split}.txt").write_text("".join(f"ulm {frame}\n" for frame in frames))
    document = _document(folder)
    document["data"] = {"root": str(place), "size": list(SIZE), "workers": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))


def _pictures(folder: Path) -> None:
    _frames(folder / "in" / "frames", 2)
    _weights(folder / "net" / "weights.safetensors")
    Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)).save(folder / "in" / "grey16.png")
    Image.fromarray(_texture(0)).quantize(16).save(folder / "in" / "palette.bmp")
    images = [Image.fromarray(_texture(number)) for number in range(3)]
    images[0].save(folder / "in" / "clip.gif", save_all=True, append_images=images[1:])
    with VideoWriter(folder / "in" / "clip.mp4", Fraction(25)) as movie:
        for number in range(3):
            movie.write(_texture(number))


def _predict(folder: Path, draw: random.Random) -> int:
    places = [str(folder / "in"), str(folder / "in" / "frames")]
    formats = draw.sample(("png", "npy", "16bit"), draw.randint(1, 3))
    command = [str(folder / "net"), *places, "-o", str(folder / "out"), "--device", "cpu", "--format", *formats]
    return predict(command)


def _predict_words(folder: Path, draw: random.Random) -> int:
    command = [str(folder / "net"), str(folder / "in" / "frames"), "-o", str(folder / "out"), "--device", "cpu"]
    options = ("--scale", "--factor", "--batch", "--size", "--stage", "--format", "--device", "--force", "--nosuch")
    for option in draw.sample(options, draw.randint(1, 3)):
        command += [option, draw.choice((*NUMBERS, "png", "64x64", "32x32", "0x0", "9999x64", "final", "cuda:99"))]
    return predict(command)


def _run(folder: Path) -> None:
    _sequence(folder)
    run = folder / "in" / "run"
    _weights(run / "scene" / "weights.safetensors")
    (run / "log").mkdir()
    metrics = dict.fromkeys(("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3"), 0.5)
    regions = {"all": metrics, "dynamic": metrics}
    figures = {"stages": {"scene": regions, "final": regions}, "seconds": {"scene": 3.5}, "warnings": ["a warning"]}
    (run / "metrics.json").write_text(json.dumps(figures, indent=2))
    (run / "env.json").write_text(json.dumps({"processor": "any", "commit": "0123456789abcdef", "gpu": None}))
    (run / "config.yaml").write_text(yaml.safe_dump(_document(folder)))
    (run / "log" / "scene.csv").write_text("step,total,forward,images_per_s\n1,0.5,3,9\n2,0.25,3,9\n")
    (run / "log" / "warnings.json").write_text(json.dumps({"data": ["a warning"]}))
    (run / "scene" / "done.json").write_text(json.dumps({"seconds": 3.5, "frames": 5, "metrics": regions}))
    (run / "predictions").mkdir()
    seen = {"frames": 3, "frames_with_motion": 2}
    (run / "predictions" / "done.json").write_text(json.dumps({"seconds": 1, "train": seen}))


def _cityscapes(folder: Path) -> None:
    root = folder / "in"
    for number in range(5):
        place = root / "leftImg8bit_sequence" / "train" / "ulm"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_texture(number)).save(place / f"ulm_000000_{number:06d}_leftImg8bit.png")
    place = root / "camera" / "train" / "ulm"
    place.mkdir(parents=True)
    camera = {"intrinsic": {"fx": 40, "fy": 40, "u0": 23.5, "v0": 15.5}}
    (place / "ulm_000000_000002_camera.json").write_text(json.dumps(camera))


def _prepare(folder: Path, draw: random.Random) -> int:
    skip = ["--skip"] if draw.random() < 0.5 else []
    return prepare(
        [
            "cityscapes",
            str(folder / "in"),
            str(folder / "out"),
            "--splits",
            "train",
            "--workers",
            "1",
            "--gap",
            "1",
            *skip,
        ]
    )


def _store(folder: Path) -> None:
    store = PredictionStore(folder / "out" / "store.sqlite", "nets")
    draw = np.random.default_rng(0)
    frames = {
        f"{number:06d}": Prediction(
            draw.uniform(1, 9, (1, 8, 12)).astype(np.float32),
            draw.uniform(-2, 2, (2, 2, 8, 12)).astype(np.float32),
            np.eye(4, dtype=np.float32)[None].repeat(2, 0),
        )
        for number in range(4)
    }
    store.write("train", frames)


def _read_store(folder: Path) -> None:
    store = PredictionStore(folder / "out" / "store.sqlite", "nets")
    for frame in sorted(store.frames("train")):
        found = store.read("train", frame)
        assert found is not None
        assert all(np.isfinite(values).all() for values in (found.depth, found.flow, found.poses)), "not finite"


def _config(folder: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "synthetic_unsupervised.yaml"
    (folder / "in").mkdir()
    (folder / "in" / "config.yaml").write_bytes(config.read_bytes())


def _read_config(folder: Path, draw: random.Random) -> int:
    words = [str(folder / "in" / "config.yaml")]
    keys = [name for name, _, _ in known_keys()]
    for _ in range(draw.randint(0, 2)):
        words += [
            "--set",
            f"{draw.choice(keys)}={draw.choice((*NUMBERS, 'light', 'auto', '[1, 2]', '[[1, 2]]', 'a: b', ''))}",
        ]
    options = parse_arguments(words)
    return library(lambda _: check_nets(load_config(options.config, options.set)))(folder, draw)


def _state(folder: Path) -> None:
    (folder / "in").mkdir()
    net = build_slot_net("light")
    save_state(folder / "in" / "state.pt", {"step": 3, "phase": 0, "best": 0.5, "nets": {"slots": net.state_dict()}})


def _published(folder: Path) -> None:
    (folder / "in").mkdir()
    torch.save({"slots": torch.zeros(3)}, folder / "in" / "slot_attention.pth")


DOORS: dict[str, Door] = {
    "config": Door(_config, _read_config),
    "sequence": Door(_sequence, library(_read_sequence)),
    "triplets": Door(_triplets, library(_read_sequence)),
    "predict": Door(_pictures, _predict),
    "predict's words": Door(_pictures, _predict_words, "nothing"),
    "weights": Door(_pictures, _predict, "net/*"),
    "run folder, report": Door(_run, lambda folder, _: report([str(folder / "in" / "run")]), "in/run/**/*"),
    "run folder, evaluate": Door(_run, lambda folder, _: evaluate([str(folder / "in" / "run")]), "in/run/**/*"),
    "ground truth": Door(_run, lambda folder, _: evaluate([str(folder / "in" / "run")]), "in/data/**/*"),
    "prepare": Door(_cityscapes, _prepare),
    "store": Door(_store, library(_read_store), "out/*.sqlite"),
    "state": Door(_state, library(lambda folder: load_state(folder / "in" / "state.pt") and None)),
    "convert": Door(_published, lambda folder, _: convert.main([str(folder / "in"), "-o", str(folder / "out")])),
}
