"""Depth of a camera, an address or a pipe, frame after frame, as long as they come; see ``mcd predict``.

One thread reads and decodes; between it and the net there is room for one frame. A frame that comes while the one
before still waits takes its place, and that one is counted as left out: nothing is queued, and latency does not grow.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from mcd.errors import out_of_memory
from mcd.inference.inputs import RGB, InputError, named
from mcd.inference.metric import AnyPredictor, NoRoadError
from mcd.run.progress import Line
from mcd.visualize import RunningRange

if TYPE_CHECKING:
    import av

    from mcd.data.video import PipeWriter, VideoWriter
    from mcd.inference.command import Options

# Of the last so many frames the latency is shown.
_REMEMBERED = 100


class Source(Protocol):
    """What gives frames: :class:`mcd.data.video.LiveVideo`."""

    rate: Fraction
    problem: str | None
    broken: int

    def __iter__(self) -> Iterator[av.VideoFrame]: ...


@dataclass(frozen=True)
class Arrived:
    """A frame and when it was there."""

    number: int
    frame: Any
    seconds: float


class Slot:
    """Room for one frame.

    Args:
        wait: whether a frame waits until there is room; otherwise the newest takes the place of what is there.
    """

    def __init__(self, *, wait: bool):
        self._wait, self._change = wait, threading.Condition()
        self._there: Arrived | None = None
        self._closed = False
        self.dropped = 0
        """Frames whose place was taken."""

    def put(self, frame: Arrived) -> bool:
        """Lay a frame down; False where nobody takes any more."""
        with self._change:
            while self._wait and self._there is not None and not self._closed:
                self._change.wait()
            if self._closed:
                return False
            self.dropped += self._there is not None
            self._there = frame
            self._change.notify_all()
            return True

    def take(self) -> Arrived | None:
        """The frame, as soon as there is one; None after the last."""
        with self._change:
            while self._there is None and not self._closed:
                # In pieces, so that Ctrl-C is heard.
                self._change.wait(0.2)
            frame, self._there = self._there, None
            self._change.notify_all()
            return frame

    def close(self) -> None:
        """No more frames; one that is there can still be taken."""
        with self._change:
            self._closed = True
            self._change.notify_all()


class Meter:
    """Latency and rate, over the last frames."""

    def __init__(self, slot: Slot, clock: Callable[[], float] = time.perf_counter):
        self._slot, self._clock = slot, clock
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._ends: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self.frames = 0

    def done(self, arrived: Arrived) -> None:
        """A frame is written."""
        now = self._clock()
        self.frames += 1
        self._latencies.append(now - arrived.seconds)
        self._ends.append((now, arrived.number))

    def text(self) -> str:
        """The line."""
        said = [f"{self.frames} frames"]
        if self._latencies:
            middle, most = 1e3 * np.percentile(self._latencies, (50, 95))
            said.append(f"latency {middle:.0f} ms (95 %: {most:.0f})")
        (first, before), (last, after) = (self._ends[0], self._ends[-1]) if self._ends else ((0.0, 0), (0.0, 0))
        if last > first:
            # Frames that came, those left out among them.
            came = (after - before) / (last - first)
            said.append(f"{(len(self._ends) - 1) / (last - first):.3g} of {came:.3g} frames/s")
        said.append(f"{self._slot.dropped} left out")
        return ", ".join(said)


def follow(
    name: str, predictor: AnyPredictor, out: Path, options: Options, *, every: bool = False, force: bool = False
) -> int:
    """Predict a stream to its end, or until Ctrl-C or SIGTERM; returns 0, or 1 where none began or it broke off.

    Args:
        out: folder for the results; ``-`` is the standard output.
        every: let the source wait instead of leaving frames out.
    """
    from mcd.data.video import LiveVideo, VideoError

    try:
        sinks = Sinks(name, out, options, force=force)
        video = LiveVideo(name)
    except (VideoError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    slot = Slot(wait=every)
    meter, line = Meter(slot), Line()
    problem: str | None = None
    # A thread that waits for a camera must not keep the process.
    threading.Thread(target=_read, args=(video, slot), daemon=True).start()
    try:
        with _stopping(slot), sinks.open(video.rate):
            while (arrived := slot.take()) is not None:
                if _one(arrived, predictor, sinks, options):
                    meter.done(arrived)
                line.show(meter.text)
    except (VideoError, OSError) as error:
        problem = str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        problem = "not enough memory: lower --size"
    finally:
        slot.close()
        line.close()
    broken = f", {video.broken} broken" if video.broken else ""
    print(f"stream {name} ended: {meter.text()}{broken}", file=sys.stderr)
    if problem is None and video.problem is not None:
        problem = f"stream {name} broke off after {meter.frames + slot.dropped} frames: {video.problem}"
    if problem is None and not meter.frames:
        problem = f"stream {name} ended before its first frame" if not sinks.roadless else "no frame shows a road"
    if problem is not None:
        kept = f"; {meter.frames} frames are kept" if meter.frames else ""
        print(f"error: {problem}{kept}", file=sys.stderr)
        return 1
    return 0


def _one(arrived: Arrived, predictor: AnyPredictor, sinks: Sinks, options: Options) -> bool:
    from mcd.data.video import VideoError, to_picture

    try:
        image = to_picture(arrived.frame)
    except ValueError as error:
        raise VideoError(f"frame {arrived.number} cannot be read: {error}") from None
    try:
        (depth,) = predictor.predict([image])
    except NoRoadError:
        # Metres begin with the first road.
        sinks.roadless += 1
        return False
    sinks.write(arrived.number, image, depth * options.scale)
    return True


def _read(video: Source, slot: Slot) -> None:
    try:
        for number, frame in enumerate(video):
            if not slot.put(Arrived(number, frame, time.perf_counter())):
                return
    finally:
        slot.close()


@contextmanager
def _stopping(slot: Slot) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the stream after the frame at hand; a second Ctrl-C ends at once."""

    def stop(number: int, _: object) -> None:
        slot.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Sinks:
    """Where the depth of a stream goes: a film and files of a folder, or the standard output.

    Raises:
        InputError: there are results already, or not one kind of them fits the output.
    """

    def __init__(self, name: str, out: Path, options: Options, *, force: bool):
        self._options, self._pipe = options, str(out) == "-"
        self._colours = RunningRange()
        self._movie: VideoWriter | None = None
        self._standard: PipeWriter | None = None
        self.roadless = 0
        """Frames before the first that shows a road, where metres are wanted."""
        if self._pipe:
            if len(options.formats) > 1 or "npy" in options.formats:
                raise InputError("to the standard output goes one --format: png (colours) or 16bit")
            return
        if out.exists() and not out.is_dir():
            raise InputError(f"output {out} is a file; -o names a folder, or - the standard output")
        self._target = out / ("stream" if name == "-" else re.sub(r"\W+", "_", name.removeprefix("/dev/")).strip("_"))
        self._film = named(self._target, "_depth.mp4")
        for made in (self._film, self._target):
            if made.exists() and not force:
                raise InputError(f"{made} exists already; --force overwrites")

    @contextmanager
    def open(self, rate: Fraction) -> Iterator[None]:
        """Open what is written to, and close it so that all that was written can be read."""
        from mcd.data.video import PipeWriter, VideoWriter

        with ExitStack() as stack:
            if self._pipe:
                self._standard = PipeWriter(rate)
                stack.callback(self._standard.close)
            elif "png" in self._options.formats:
                self._movie = stack.enter_context(VideoWriter(self._film, rate, live=True))
            yield

    def write(self, number: int, image: RGB, depth: Tensor) -> None:
        """Write the depth [H,W] of frame ``number`` of the stream."""
        from mcd.inference.command import draw, levels_of, save_depth

        options = self._options
        if self._standard is not None and "16bit" in options.formats:
            self._standard.write(levels_of(depth, options.factor), number)
        elif self._standard is not None or self._movie is not None:
            picture = draw(image, depth, options.with_image, self._colours.update(depth))
            for writer in (self._standard, self._movie):
                if writer is not None:
                    writer.write(picture, number)
        if not self._pipe:
            save_depth(self._target / f"{number:06d}", depth, options)
