"""Reading and writing videos frame by frame, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcd.errors import McdError
from mcd.extras import extra
from mcd.files import atomic_path

if TYPE_CHECKING:
    import av


class VideoError(McdError, ValueError):
    """A video that cannot be read; the message names the file."""


def _library() -> Any:
    """PyAV, which only those need who have videos."""
    with extra("video", "reading or writing a video"):
        import av
    return av


class VideoReader:
    """The frames of a video as RGB uint8 [H, W, 3], turned as its display matrix says.

    Iterate once. A video that breaks off ends the iteration and leaves the reason in ``problem``.

    Raises:
        VideoError: on opening, the file is no video.
    """

    def __init__(self, path: Path):
        self._av = av = _library()
        try:
            self._container = av.open(str(path))
            if not self._container.streams.video:
                raise VideoError(f"video {path} has no picture stream")
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"video {path} cannot be read: {error.strerror or error}") from None
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or Fraction(25)
        self.frames: int | None = self._stream.frames or None
        """Number of frames as the file says; None where it does not."""
        self.problem: str | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        with self._container:
            try:
                for frame in self._container.decode(self._stream):
                    turns = round(frame.rotation / 90) % 4
                    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
            except self._av.FFmpegError as error:
                self.problem = str(error.strerror or error)


def frame_count(path: Path) -> int | None:
    """How many frames a video says it has, or None."""
    av = _library()
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].frames or None
    except (av.FFmpegError, OSError, IndexError):
        return None


class VideoWriter:
    """Writes pictures of one size to an MP4, which takes its place only when the block ends well."""

    def __init__(self, path: Path, rate: Fraction):
        self._av = _library()
        self._rate = rate
        self._atomic = atomic_path(path)
        self._stream: av.video.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        self._container = self._av.open(str(self._atomic.__enter__()), "w", format="mp4")
        return self

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Append a picture [H, W, 3]; the codec wants even sides, so an odd last row or column is dropped."""
        height, width = (max(side // 2 * 2, 2) for side in picture.shape[:2])
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            stream = self._container.add_stream(codec, rate=self._rate)
            assert isinstance(stream, self._av.VideoStream)
            stream.pix_fmt = "yuv420p"
            stream.width, stream.height = width, height
            stream.bit_rate = round(0.15 * width * height * float(self._rate))
            self._stream = stream
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()
            self._atomic.__exit__(kind, error, trace)
