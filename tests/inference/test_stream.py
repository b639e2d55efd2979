"""Streams: every frame at once or not at all, memory that stays, ends of every kind."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mcd.data.video import LiveVideo, to_picture
from mcd.inference.command import main
from mcd.inference.inputs import is_stream
from mcd.inference.predictor import DepthPredictor
from mcd.inference.stream import Arrived, Meter, Slot
from mcd.nets import build_depth_net
from mcd.run.checkpoint import save_weights

SIZE = (64, 64)
HEIGHT, WIDTH = 32, 48
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "weights.safetensors"
    torch.manual_seed(0)
    save_weights(path, {"depth": build_depth_net("light")}, {"depth": "light"}, {"size": SIZE})
    return path


def header(rate: int = 25, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    return f"YUV4MPEG2 W{size[1]} H{size[0]} F{rate}:1 Ip A1:1 C444\n".encode()


def frame(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """A raw frame whose grey, from 16 to 235, says its number."""
    planes = np.full((3, *size), 128, np.uint8)
    planes[0] = 16 + number * 5 % 220
    return b"FRAME\n" + planes.tobytes()


def nut(frames: int) -> bytes:
    """Raw frames in a container that says how long each is."""
    data = io.BytesIO()
    with av.open(data, "w", format="nut") as container:
        stream = container.add_stream("rawvideo", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        for number in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    return data.getvalue()


def predict(weights: Path, *arguments: object) -> int:
    return main([str(argument) for argument in (weights, *arguments, "--device", "cpu")])


def start(weights: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mcd", "predict", weights, "-", *arguments, "--device", "cpu"]
    pipe = subprocess.PIPE
    # A net so small is slower on several threads, and very slow where others want the cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def test_what_is_a_stream() -> None:
    assert all(map(is_stream, ("-", "/dev/video0", "/dev/video12", "rtsp://camera/1", "udp://@:5000")))
    assert not any(map(is_stream, ("/dev/video", "a.mp4", "video0", "C:/a.png", "*/a.png")))


def test_a_frame_that_waits_gives_way_to_a_newer_one_and_is_counted() -> None:
    slot = Slot(wait=False)
    for number in range(5):
        assert slot.put(Arrived(number, None, 0.0))
    found = slot.take()
    assert found is not None
    assert (found.number, slot.dropped) == (4, 4)
    assert slot.put(Arrived(5, None, 0.0))
    slot.close()
    last = slot.take()
    assert last is not None
    assert last.number == 5
    assert slot.take() is None
    assert not slot.put(Arrived(6, None, 0.0))


def test_where_every_frame_counts_the_source_waits() -> None:
    slot = Slot(wait=True)
    thread = threading.Thread(target=lambda: [slot.put(Arrived(number, None, 0.0)) for number in range(20)])
    thread.start()
    found = []
    for _ in range(20):
        time.sleep(0.001)
        taken = slot.take()
        assert taken is not None
        found.append(taken.number)
    thread.join()
    assert found == list(range(20))
    assert slot.dropped == 0


def test_the_line_has_latency_rate_and_what_was_left_out() -> None:
    now = [0.0]
    slot = Slot(wait=False)
    meter = Meter(slot, lambda: now[0])
    slot.dropped = 20
    for number in range(0, 30, 3):
        now[0] += 0.1
        meter.done(Arrived(number, None, now[0] - 0.04))
    assert meter.text() == "10 frames, latency 40 ms (95 %: 40), 10 of 30 frames/s, 20 left out"


def test_a_stream_gives_what_single_frames_give(weights: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.y4m"
    clip.write_bytes(header() + b"".join(map(frame, range(6))))
    out = tmp_path / "out"
    assert predict(weights, f"file://{clip}", "-o", out, "--format", "png", "npy", "--every-frame") == 0
    net = DepthPredictor.load(weights)
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    found = sorted(folder.iterdir())
    assert [path.name for path in found] == [f"{number:06d}_depth.npy" for number in range(6)]
    with av.open(str(clip)) as container:
        for decoded, path in zip(container.decode(video=0), found, strict=True):
            (wanted,) = net.predict([decoded.to_ndarray(format="rgb24")])
            np.testing.assert_allclose(np.load(path), wanted.numpy(), rtol=1e-5)
    with av.open(str(folder) + "_depth.mp4") as container:
        times = [float(picture.pts * picture.time_base) for picture in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-3)
    # The results are not overwritten unless that is asked for.
    assert predict(weights, f"file://{clip}", "-o", out) == 1
    assert predict(weights, f"file://{clip}", "-o", out, "--force") == 0


def test_a_pipe_that_ends_in_mid_frame_is_said_and_nothing_is_lost(weights: Path, tmp_path: Path) -> None:
    process = start(weights, "-o", tmp_path, "--format", "png", "npy", "--every-frame")
    _, said = process.communicate(nut(9)[:-1000], timeout=200)
    lines = said.decode().strip().splitlines()
    assert process.returncode == 1, lines
    assert "Traceback" not in said.decode()
    assert lines[-1].startswith("error: stream - broke off after 8 frames: its last frame is cut off")
    assert lines[-1].endswith("8 frames are kept")
    assert lines[-2].startswith("stream - ended: 8 frames, latency")
    assert lines[-2].endswith("0 left out, 1 broken")
    assert len(list((tmp_path / "stream").glob("*.npy"))) == 8
    with av.open(str(tmp_path / "stream_depth.mp4")) as container:
        assert len(list(container.decode(video=0))) == 8


def test_depth_goes_to_the_standard_output(weights: Path, tmp_path: Path) -> None:
    process = start(weights, "-o", "-", "--format", "16bit", "--factor", "500", "--every-frame")
    shown, said = process.communicate(header() + b"".join(map(frame, range(4))), timeout=200)
    assert process.returncode == 0, said
    net = DepthPredictor.load(weights)
    with av.open(io.BytesIO(shown)) as container:
        levels = [picture.to_ndarray() for picture in container.decode(video=0)]
    assert len(levels) == 4
    with av.open(io.BytesIO(header() + frame(0))) as container:
        (picture,) = (to_picture(decoded) for decoded in container.decode(video=0))
    (wanted,) = net.predict([picture])
    np.testing.assert_allclose(levels[0] / 500, wanted.numpy(), atol=0.51 / 500)


def test_a_camera_that_is_unplugged_leaves_what_it_gave(
    weights: Path, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unplugged(LiveVideo):
        def __init__(self, name: str):
            self.rate, self.problem, self.broken = Fraction(25), None, 0

        def __iter__(self) -> Iterator[av.VideoFrame]:
            for number in range(3):
                yield av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 50 * number, np.uint8), format="rgb24")
            self.problem = "No such device"

    monkeypatch.setattr("mcd.data.video.LiveVideo", Unplugged)
    assert predict(weights, "/dev/video7", "-o", tmp_path, "--every-frame") == 1
    assert "stream /dev/video7 broke off after 3 frames: No such device; 3 frames are kept" in capsys.readouterr().err
    with av.open(str(tmp_path / "video7_depth.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


def test_streams_that_cannot_be_meant_are_named(weights: Path, tmp_path: Path, capsys: Shown) -> None:
    def said(*arguments: object) -> str:
        assert predict(weights, *arguments) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    assert "stream /dev/video99 cannot be opened" in said("/dev/video99", "-o", tmp_path)
    (tmp_path / "a.bin").write_bytes(b"nothing" * 100)
    assert "a.bin cannot be opened" in said(f"file://{tmp_path / 'a.bin'}", "-o", tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "the only input" in said("/dev/video0", tmp_path / "a.png", "-o", tmp_path)
    assert "one --format" in said("/dev/video0", "-o", "-", "--format", "npy")
    assert "pose" in said("/dev/video0", "-o", tmp_path, "--smooth")  # these weights have no pose net


def flood(process: subprocess.Popen[bytes], frames: int, rate: float, size: tuple[int, int]) -> list[int]:
    """Write so many frames a second into a process; returns its resident bytes, sampled on the way."""
    page, sizes, begin = os.sysconf("SC_PAGE_SIZE"), [], time.monotonic()
    assert process.stdin is not None
    process.stdin.write(header(100, size))
    block = b"".join(frame(number, size) for number in range(10))
    for number in range(0, frames, 10):
        process.stdin.write(block)
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        if number % (frames // 20) == 0:
            sizes.append(page * int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]))
    process.stdin.close()
    return sizes


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("frames", "rate", "size", "begin", "most"),
    [
        # Were frames queued, these would be 740 MB; the nets and the film's encoder take 200 after the first frames.
        pytest.param(800, 500.0, (480, 640), 1, 400e6, id="large"),
        # And these 92 MB; a quarter of them is left for imports, the film's first piece and the allocator's caches.
        pytest.param(
            20_000, 500.0, (HEIGHT, WIDTH), 5, 32e6, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(600)]
        ),
    ],
)
def test_memory_does_not_grow_with_the_stream(
    weights: Path, tmp_path: Path, frames: int, rate: float, size: tuple[int, int], begin: int, most: float
) -> None:
    process = start(weights, "-o", tmp_path)
    sizes = flood(process, frames, rate, size)
    said = process.stderr.read().decode() if process.stderr is not None else ""
    assert process.wait(timeout=120) == 0, said
    last = said.strip().splitlines()[-1]
    done, dropped = int(last.split()[3]), int(last.rsplit(", ", 1)[1].split()[0])
    assert done + dropped == frames
    assert done >= frames // 400
    assert max(sizes[begin:]) - sizes[begin] < most, (last, sizes)


def test_an_address_whose_sender_goes_in_mid_frame_is_said(weights: Path, tmp_path: Path, capsys: Shown) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)

    def send() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(nut(6)[:-1000])

    sender = threading.Thread(target=send)
    sender.start()
    name = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    assert predict(weights, name, "-o", tmp_path, "--format", "npy", "--every-frame") == 1
    sender.join()
    listening.close()
    shown = capsys.readouterr().err
    assert f"error: stream {name} broke off after 5 frames: its last frame is cut off; 5 frames are kept" in shown
    assert len(list(tmp_path.rglob("*.npy"))) == 5


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("goodbye", [True, False])
def test_a_camera_of_a_network_is_read_by_whichever_transport_it_has(
    weights: Path, tmp_path: Path, capsys: Shown, transport: str, goodbye: bool
) -> None:
    server = [sys.executable, str(Path(__file__).parents[1] / "rtsp_server.py"), transport, "80", str(goodbye)]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as camera:
        assert camera.stdout is not None
        address = camera.stdout.readline().strip()
        status = predict(weights, address, "-o", tmp_path, "--format", "npy", "--every-frame")
        shown = capsys.readouterr().err
        camera.wait(60)
        # One transport is asked for after the other, the one that loses nothing first.
        assert int(camera.stdout.read()) == (transport == "udp"), shown
    # Frames by which FFmpeg comes to know the stream are late, and not shown.
    found = len(list(tmp_path.rglob("*.npy")))
    assert 10 <= found <= 80, shown
    assert f"ended: {found} frames" in shown
    # A plug that is pulled looks like an end to FFmpeg.
    assert status == 0, shown
