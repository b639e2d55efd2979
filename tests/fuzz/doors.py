"""The doors through which files and words come in, each with a small valid example that is damaged."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from fuzz.door import SIZE, Door, document, library, texture, write_frames, write_run, write_sequence, write_weights
from fuzz.evaluation_doors import EVALUATION_DOORS
from fuzz.mutation import NUMBERS
from fuzz.run_doors import RUN_DOORS
from fuzz.video_doors import VIDEO_DOORS
from fuzz.whole_run_doors import WHOLE_RUN_DOORS
from mcd import convert
from mcd.config import known_keys, load_config
from mcd.data import FrameDataset, open_reader
from mcd.data.prepare import main as prepare
from mcd.data.store import Prediction, PredictionStore
from mcd.data.video import VideoWriter
from mcd.evaluation.command import main as evaluate
from mcd.inference.command import main as predict
from mcd.nets import build_slot_net
from mcd.report.page import main as report
from mcd.run.checkpoint import load_state, save_state
from mcd.run.networks import check_nets
from mcd.train import parse_arguments


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
        Image.fromarray(np.concatenate([texture(n) for n in range(3)], 1)).save(place / f"triplets/ulm/{frame}.png")
        (place / f"triplets/ulm/{frame}_cam.txt").write_text("40,0,23.5,0,40,15.5,0,0,1")
    for split in ("train", "val"):
        (place / "splits" / f"{split}.txt").write_text("".join(f"ulm {frame}\n" for frame in frames))
    about = document(folder)
    about["data"] = {"root": str(place), "size": list(SIZE), "workers": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))


def _pictures(folder: Path) -> None:
    write_frames(folder / "in" / "frames", 2)
    write_weights(folder / "net" / "weights.safetensors")
    Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)).save(folder / "in" / "grey16.png")
    Image.fromarray(texture(0)).quantize(16).save(folder / "in" / "palette.bmp")
    images = [Image.fromarray(texture(number)) for number in range(3)]
    images[0].save(folder / "in" / "moving.gif", save_all=True, append_images=images[1:])
    with VideoWriter(folder / "in" / "clip.mp4", Fraction(25)) as movie:
        for number in range(3):
            movie.write(texture(number))


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


def _cityscapes(folder: Path) -> None:
    root = folder / "in"
    for number in range(5):
        place = root / "leftImg8bit_sequence" / "train" / "ulm"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(number)).save(place / f"ulm_000000_{number:06d}_leftImg8bit.png")
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
    "sequence": Door(write_sequence, library(_read_sequence)),
    "triplets": Door(_triplets, library(_read_sequence)),
    "predict": Door(_pictures, _predict),
    "predict's words": Door(_pictures, _predict_words, "nothing"),
    "weights": Door(_pictures, _predict, "net/*"),
    "run folder, report": Door(write_run, lambda folder, _: report([str(folder / "in" / "run")]), "in/run/**/*"),
    "run folder, evaluate": Door(write_run, lambda folder, _: evaluate([str(folder / "in" / "run")]), "in/run/**/*"),
    "ground truth": Door(write_run, lambda folder, _: evaluate([str(folder / "in" / "run")]), "in/data/**/*"),
    "prepare": Door(_cityscapes, _prepare),
    "store": Door(_store, library(_read_store), "out/*.sqlite"),
    "state": Door(_state, library(lambda folder: load_state(folder / "in" / "state.pt") and None)),
    "convert": Door(_published, lambda folder, _: convert.main([str(folder / "in"), "-o", str(folder / "out")])),
    **VIDEO_DOORS,
    **RUN_DOORS,
    **EVALUATION_DOORS,
    **WHOLE_RUN_DOORS,
}
