"""Reading and writing videos frame by frame, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcd.errors import McdError
from mcd.extras import extra
from mcd.files import atomic_path

# The users of this module import it where they open a video: who has none needs no PyAV.
with extra("video", "reading or writing a video"):
    import av
    from av.container import InputContainer
    from av.stream import Disposition

# Codecs refuse less than a thousand bits a second, which tiny pictures would get, and sides beyond 16384 (mpeg4: half).
_LEAST_RATE, _MOST_RATE = 64_000, 2_000_000_000
_LONGEST_SIDE = 8190
# Seconds without a frame after which a camera or an address is given up.
_PATIENCE = 10.0


class VideoError(McdError, ValueError):
    """A video that cannot be read or written; the message names the file."""


class VideoReader:
    """The frames of a video as RGB uint8 [H, W, 3], turned as its display matrix says.

    Iterate once. A video that breaks off ends the iteration and leaves the reason in ``problem``.

    Raises:
        VideoError: on opening, the file is no video.
    """

    def __init__(self, path: Path):
        try:
            self._container = av.open(str(path))
            self._stream = _film(self._container, path)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"video {path} cannot be read: {error.strerror or error}") from None
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or Fraction(25)
        self.frames: int | None = self._stream.frames or None
        """Number of frames as the file says; None where it does not."""
        self.problem: str | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        with self._container:
            try:
                for frame in self._container.decode(self._stream):
                    yield to_picture(frame)
            except av.FFmpegError as error:
                self.problem = str(error.strerror or error)
            except ValueError as error:  # a kind of pixels that has no conversion
                self.problem = str(error)


def to_picture(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A decoded frame as RGB [H, W, 3], turned as it says.

    Raises:
        ValueError: it has a kind of pixels that has no conversion.
    """
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


class LiveVideo:
    """A camera (``/dev/video0``), an address (``rtsp://…``) or a pipe (``-``, the standard input), as frames come.

    Iterating gives frames that are decoded and not converted. It ends where the source does; ``problem`` says why, if
    that was not its orderly end.

    Raises:
        VideoError: on opening, nothing is there, or it is no video.
    """

    def __init__(self, name: str):
        device = name.startswith("/dev/")
        # A network's first packets, by which the stream is known, are late; those of a pipe are frames like others.
        network = name.startswith(("rtsp", "rtp", "udp", "srt"))
        options = {"fflags": "nobuffer"} if network else {}
        # Packets do not get lost on TCP; some servers have UDP alone.
        options |= {"rtsp_flags": "prefer_tcp"} if name.startswith("rtsp") else {}
        # A pipe may pause as long as it likes.
        timeout = None if name == "-" else (_PATIENCE, _PATIENCE)
        place = "pipe:0" if name == "-" else name
        try:
            self._container = av.open(place, format="v4l2" if device else None, options=options, timeout=timeout)
            if not self._container.streams.video:
                raise VideoError(f"stream {name} has no pictures")
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, ValueError) as error:
            said = "nothing came that is a video" if name == "-" else getattr(error, "strerror", None) or error
            raise VideoError(f"stream {name} cannot be opened: {said}") from None
        # Threads that work on whole frames hold as many of them back.
        self._stream.thread_type = "SLICE"
        self.rate: Fraction = self._stream.average_rate or Fraction(25)
        self.problem: str | None = None
        self.broken = 0
        """Frames that could not be decoded, and were passed over."""

    def __iter__(self) -> Iterator[av.VideoFrame]:
        cut = False
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except (av.InvalidDataError, av.ArgumentError):
                    # A lost packet of a network, or the rest of a frame whose sender has gone.
                    self.broken, cut = self.broken + 1, True
                    continue
                cut = cut and not frames
                yield from frames
        except av.EOFError:
            pass
        except av.FFmpegError as error:
            self.problem = str(error.strerror or error)
        finally:
            # A camera of a network serves few at a time, and hears of the end by this.
            self._container.close()
        if cut and self.problem is None:
            self.problem = "its last frame is cut off"


def frame_count(path: Path) -> int | None:
    """How many frames a video says it has, or None."""
    try:
        with av.open(str(path)) as container:
            return _film(container, path).frames or None
    except (av.FFmpegError, OSError, VideoError):
        return None


def _film(container: InputContainer, path: Path) -> av.VideoStream:
    """The stream that moves: a file may begin with its cover, as a video stream of one picture.

    Raises:
        VideoError: there is none.
    """
    if not container.streams.video:
        raise VideoError(f"video {path} has no picture stream")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    streams = streams or list(container.streams.video)
    if len(streams) == 1:
        return streams[0]
    seen: set[int] = set()
    with av.open(str(path)) as again:
        for packet in again.demux([again.streams[stream.index] for stream in streams]):
            if packet.size and packet.stream_index in seen:
                return next(stream for stream in streams if stream.index == packet.stream_index)
            seen.add(packet.stream_index)
    return streams[0]


class VideoWriter:
    """Writes pictures to an MP4, which takes its place only when the block ends well.

    All have the size of the first: others are resized to it, and it is made smaller where no codec takes it.

    Args:
        live: the file is written in place and in pieces of its own, so that what is there can be played whatever
            happens, and memory does not grow with its length.

    Raises:
        VideoError: the encoder refuses.
    """

    def __init__(self, path: Path, rate: Fraction, *, live: bool = False):
        self._path, self._rate, self._live = path, rate, live
        self._atomic: AbstractContextManager[Path] = nullcontext(path) if live else atomic_path(path)
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if self._live else {}
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._atomic.__enter__()), "w", format="mp4", options=options)
        return self

    def write(self, picture: NDArray[np.uint8], at: int | None = None) -> None:
        """Append a picture [H, W, 3]; the codec wants even sides, so an odd last row or column is dropped.

        Args:
            at: number of the frame in time, larger than that of the one before; None: the next.
        """
        with self._errors():
            if self._stream is None:
                self._stream = self._open(*picture.shape[:2])
            height, width = self._stream.height, self._stream.width
            if picture.shape[0] - height not in (0, 1) or picture.shape[1] - width not in (0, 1):
                resized = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
                picture = np.asarray(resized)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            if at is not None:
                frame.pts, frame.time_base = at, 1 / self._rate
            self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> av.VideoStream:
        shrink = min(1.0, _LONGEST_SIDE / max(height, width))
        height, width = (max(round(side * shrink) // 2 * 2, 2) for side in (height, width))
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self._rate)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = width, height
        stream.bit_rate = round(min(max(0.15 * width * height * float(self._rate), _LEAST_RATE), _MOST_RATE))
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._errors(), closing(self._container):
                if kind is None and self._stream is not None:
                    self._container.mux(self._stream.encode())
        except VideoError as problem:
            self._atomic.__exit__(VideoError, problem, None)
            raise
        self._atomic.__exit__(kind, error, trace)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(f"video {self._path} cannot be written: {error.strerror or error}") from None


class PipeWriter:
    """Raw pictures to the standard output, in NUT, which ffmpeg, ffplay and OpenCV read: RGB or 16-bit grey.

    Raises:
        VideoError: nobody reads any more.
    """

    def __init__(self, rate: Fraction):
        self._rate, self._container = rate, av.open("pipe:1", "w", format="nut")
        self._stream: av.VideoStream | None = None

    def write(self, picture: NDArray[np.uint8] | NDArray[np.uint16], at: int) -> None:
        """Append a picture [H, W, 3] of 8 bits or a map [H, W] of 16, as frame number ``at``."""
        kind = "rgb24" if picture.ndim == 3 else "gray16le"
        try:
            if self._stream is None:
                stream = self._container.add_stream("rawvideo", rate=self._rate)
                assert isinstance(stream, av.VideoStream)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = kind
                self._stream = stream
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
            frame.pts, frame.time_base = at, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise VideoError(f"the standard output cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        """End the stream; a reader that has gone is no error here."""
        with suppress(av.FFmpegError):
            self._container.close()
