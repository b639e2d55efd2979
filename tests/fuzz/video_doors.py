"""Videos of several codecs and containers: predicted, and trained on."""

from __future__ import annotations

import os
import random
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import yaml
from PIL import Image

from fuzz.door import Door, document, library, texture, write_weights
from mcd.config import load_config
from mcd.data import FrameDataset, open_reader
from mcd.inference.command import main as predict

CODECS = {
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "ffv1.mkv": ("ffv1", "yuv444p"),
    "mpeg2.ts": ("mpeg2video", "yuv420p"),
    "mpeg1.mpg": ("mpeg1video", "yuv420p"),
    "mpeg4.mov": ("mpeg4", "yuv420p"),
    "raw.avi": ("rawvideo", "yuv420p"),
    "x264.mp4": ("libx264", "yuv420p"),
    "x264.m4v": ("libx264", "yuv422p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "grey.mkv": ("ffv1", "gray16le"),
}


def write_video(path: Path, codec: str, pixels: str, count: int = 4, size: tuple[int, int] = (32, 48)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixels
        for number in range(count):
            picture = np.asarray(Image.fromarray(texture(number)).resize(size[::-1]))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())


def _videos(folder: Path) -> None:
    place = folder / "in"
    place.mkdir()
    write_weights(folder / "net" / "weights.safetensors")
    for name, (codec, pixels) in CODECS.items():
        if codec in av.codecs_available:
            write_video(place / name, codec, pixels)
    # Streams of this container may follow one another: the size changes in the middle.
    write_video(folder / "other.ts", "mpeg2video", "yuv420p", size=(48, 64))
    (place / "changing.ts").write_bytes((place / "mpeg2.ts").read_bytes() + (folder / "other.ts").read_bytes())
    (folder / "other.ts").unlink()
    write_video(place / "none.mkv", "ffv1", "yuv444p", count=0)
    pictures = [Image.fromarray(texture(number)) for number in range(3)]
    pictures[0].save(place / "clip.gif", save_all=True, append_images=pictures[1:])
    about = document(folder)
    about["data"] = {"kind": "sequence", "root": str(place), "size": [64, 64], "workers": 0, "fov": 70}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))


def _predict_video(folder: Path, draw: random.Random) -> int:
    clip = draw.choice(sorted((folder / "in").iterdir()))
    formats = draw.sample(("png", "npy", "16bit"), draw.randint(1, 2))
    return predict([str(folder / "net"), str(clip), "-o", str(folder / "out"), "--device", "cpu", "--format", *formats])


def _predict_stream(folder: Path, draw: random.Random) -> int:
    """Through the standard input."""
    source, before = os.open(draw.choice(sorted((folder / "in").iterdir())), os.O_RDONLY), os.dup(0)
    os.dup2(source, 0)
    try:
        every = ["--every-frame"] if draw.random() < 0.5 else []
        return predict([str(folder / "net"), "-", "-o", str(folder / "out"), "--device", "cpu", *every])
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(source)


def _read_video(folder: Path, draw: random.Random) -> int:
    # Frames are written beside their video.
    shutil.copytree(folder / "in", folder / "out")
    clip = draw.choice(sorted((folder / "out").iterdir()))

    def read(folder: Path) -> None:
        data = load_config(folder / "config.yaml", [f"data.root={clip.parent}", f"data.images={clip.name}"]).data
        dataset = FrameDataset(open_reader(data, "train"), data)
        assert len([dataset[index] for index in range(len(dataset))])

    return library(read)(folder, draw)


VIDEO_DOORS = {
    "video": Door(_videos, _predict_video),
    "stream": Door(_videos, _predict_stream),
    "video, trained on": Door(_videos, _read_video),
}
