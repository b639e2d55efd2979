"""What is done to a folder of small examples, so that a command meets something odd in it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

SIZE = (64, 96)
_held: list[int] = []


@dataclass(frozen=True)
class Member:
    """A call of ``mcd``: the status that it ends with and a regular expression that is found in what it says."""

    name: str
    words: str
    says: str | None = None
    status: int = 1
    change: Callable[[Path], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def texture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frame of a street that passes sideways."""
    blocks = np.random.default_rng(0).integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 40, 3), dtype=np.uint8)
    shift = 3 * number
    return np.kron(blocks, np.ones((4, 4, 1), np.uint8))[: size[0], shift : shift + size[1]]


def tiny(folder: Path) -> None:
    """The folder that every member starts from."""
    from mcd.cli import main

    (folder / "images").mkdir(parents=True)
    for number in range(24):
        Image.fromarray(texture(number)).save(folder / "images" / f"{number:06d}.png")
    few = {"steps": 2, "batch": 2, "validate_batches": 1}
    document = {
        "run": "run", "runs": ".", "threads": 1, "stages": ["scene"], "device": "cpu", "scene": few,
        "data": {"kind": "sequence", "root": ".", "images": "images", "size": list(SIZE), "workers": 0, "fov": 70},
        "loss": {"scales": 1},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(document))
    before = Path.cwd()
    os.chdir(folder)
    try:
        if main(["train", "tiny.yaml"]):
            raise RuntimeError("the example does not train")
    finally:
        os.chdir(before)
    shutil.copytree(folder / "run" / "scene", folder / "net")
    for split in ("train", "val"):
        for number in range(6):
            place = folder / "cityscapes" / "leftImg8bit_sequence" / split / "ulm"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(texture(number, (64, 128))).save(place / f"ulm_000000_{number:06d}_leftImg8bit.png")
        place = folder / "cityscapes" / "camera" / split / "ulm"
        place.mkdir(parents=True)
        camera = {"intrinsic": {"fx": 100, "fy": 100, "u0": 63.5, "v0": 31.5}}
        (place / "ulm_000000_000002_camera.json").write_text(json.dumps(camera))


# What is done to the folder, or to a file of it.


def image(path: str, pixels: np.ndarray, **options: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path, **options)

    return change


def images(make: Callable[[int], np.ndarray | None], place: str = "images", numbers: range = range(24)) -> Any:
    """Frames of their own; None: no such frame."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / place, ignore_errors=True)
        (folder / place).mkdir(parents=True)
        for number in numbers:
            pixels = make(number)
            if pixels is not None:
                Image.fromarray(pixels).save(folder / place / f"{number:06d}.png")

    return change


def depth(metres: float, kind: Any = np.uint16, size: tuple[int, int] = SIZE) -> Callable[[Path], None]:
    return images(lambda _: np.full(size, 256 * metres if kind == np.uint16 else metres, kind), "depth")


def text(path: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def gone(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        place = folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return change


def folder_at(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        place = folder / path
        if place.is_file():
            place.unlink()
        place.mkdir(parents=True, exist_ok=True)

    return change


def cut(path: str, share: float = 0.5) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(share * len(data))])

    return change


def tensors(change_them: Callable[[dict[str, torch.Tensor]], None], mcd: str | None = "kept") -> Any:
    """Weights in ``net`` whose tensors or metadata are others."""

    def change(folder: Path) -> None:
        from mcd.run.checkpoint import METADATA, load_weights

        path = folder / "net" / "weights.safetensors"
        found = load_file(path)
        described = json.dumps({"nets": load_weights(path).nets, "size": SIZE}) if mcd == "kept" else mcd
        change_them(found)
        save_file(found, path, {METADATA: described} if described is not None else None)

    return change


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda found: [tensor.fill_(value) for tensor in found.values() if tensor.is_floating_point()] and None


def without_one(found: dict[str, torch.Tensor]) -> None:
    del found[sorted(found)[0]]


def clip(path: str, frames: int, size: tuple[int, int] = SIZE) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        pictures = [Image.fromarray(texture(number, size)) for number in range(frames)]
        if path.endswith(".gif"):
            pictures[0].save(folder / path, save_all=True, append_images=pictures[1:])
            return
        from mcd.data.video import VideoWriter

        with VideoWriter(folder / path, Fraction(25)) as movie:
            for picture in pictures:
                movie.write(np.asarray(picture))

    return change


def sound(folder: Path) -> None:
    """A file with sound and no picture."""
    import av

    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)


def with_cover(folder: Path) -> None:
    """A film that begins with its cover, as a video stream."""
    import av

    with av.open(str(folder / "covered.mkv"), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=1), container.add_stream("mpeg4", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        film.width, film.height, film.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        container.mux([*cover.encode(picture), *cover.encode()])
        for number in range(5):
            container.mux(film.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(texture(number)))))
        container.mux(film.encode())


def held(folder: Path) -> None:
    """The run is locked, as by another process that trains in it."""
    handle = os.open(folder / "run" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    _held.append(handle)  # until this process ends, or the folder is another


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def settings(*assignments: str, says: str, name: str | None = None, **more: Any) -> Member:
    """``mcd train`` with these settings."""
    words = " ".join(["train tiny.yaml", *(f"--set {shlex.quote(text)}" for text in (*assignments, "run=new"))])
    return Member(name or ", ".join(assignments), words, says, **more)


def training(name: str, change: Callable[[Path], None], says: str | None, status: int = 0, extra: str = "") -> Member:
    return Member(name, f"train tiny.yaml --set run=new {extra}", says, status, change)
