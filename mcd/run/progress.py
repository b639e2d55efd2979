"""Progress in one line: of the whole run where one is under way, else of what is being done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from tqdm import tqdm

from mcd import world

# Seconds between two looks of the line: on a terminal, in a log file.
_TERMINAL, _LOG = 0.2, 15.0
# Steps or images before a rate is believed: the first wait for loaders and compilers.
_SETTLED = 3


class Line:
    """One line that is written over on a terminal; in a log file it comes anew now and then.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._shown = clock, -float("inf")
        self._terminal = sys.stderr.isatty() and world.is_first()
        # A terminal that does not say how wide it is would get nothing of the line.
        sized = self._terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        width = {"dynamic_ncols": True} if sized else {"ncols": 120, "nrows": 20}
        self._bar = tqdm(total=0, bar_format="{desc}", leave=False, disable=not self._terminal, **width)

    def show(self, text: Callable[[], str]) -> None:
        """Show what ``text`` says, if something was not shown just now."""
        now = self._clock()
        if not world.is_first():
            return
        if now - self._shown < (_TERMINAL if self._terminal else _LOG):
            return
        self._shown = now
        if self._terminal:
            self._bar.set_description_str(text())
        else:
            tqdm.write(text(), file=sys.stderr)

    def close(self) -> None:
        """Take the line away."""
        self._bar.close()


@dataclass(frozen=True)
class Expected:
    """A stage before it runs."""

    name: str
    seconds: float | None
    """How long it will take; None: not known."""
    source: str = ""
    """What says so."""
    finished: bool = False


class RunLine:
    """The stages of a run as one line: which is under way, its rate, and the time left of it and of the run.

    Time left is what the finished steps of the present part say, and for what is still to come what was expected, times
    how much longer than expected the finished stages and steps of this process took.

    Args:
        stages: in order, those that are finished already among them.
        clock: seconds.
    """

    def __init__(self, stages: Sequence[Expected], clock: Callable[[], float] = time.monotonic):
        self._stages = {stage.name: stage for stage in stages}
        self._clock, self._begin = clock, clock()
        self._done = {stage.name for stage in stages if stage.finished}
        self._taken = self._expected = 0.0
        self._stage: str | None = None
        self._stage_begin = self._begin
        self._part: Part | None = None
        self._line = Line(clock)

    def __enter__(self) -> RunLine:
        _lines.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        _lines.remove(self)
        self._line.close()

    def begin(self, name: str) -> None:
        """A stage begins."""
        self._stage, self._stage_begin = name, self._clock()

    def end(self) -> None:
        """The stage is finished."""
        assert self._stage is not None
        self._done.add(self._stage)
        expected = self._stages[self._stage].seconds
        if expected:
            self._taken += self._clock() - self._stage_begin
            self._expected += expected
        self._stage = self._part = None

    def left(self) -> tuple[float | None, float | None, bool]:
        """Seconds left of the present stage and of the run, and whether the latter leaves out a stage that is not
        known; None where nothing is known."""
        part = None if self._part is None else self._part.left()
        stage = part
        ahead = None if self._stage is None else self._stages[self._stage].seconds
        passed = self._clock() - self._stage_begin
        if ahead is not None:
            # The parts of a stage that come after this one are in what was expected of it.
            stage = max(ahead * self._slower() - passed, part or 0.0)
        later = [
            expected.seconds
            for name, expected in self._stages.items()
            if name not in self._done and name != self._stage
        ]
        known = [seconds for seconds in later if seconds is not None]
        if stage is None and not known:
            return None, None, True
        run = (stage or 0.0) + self._slower() * sum(known)
        return stage, run, len(known) < len(later) or stage is None

    def _slower(self) -> float:
        """What the finished stages took over what was expected of them."""
        return self._taken / self._expected if self._expected else 1.0

    def text(self) -> str:
        """The line."""
        names = list(self._stages)
        number = names.index(self._stage) + 1 if self._stage in self._stages else len(self._done)
        said = [f"stage {number}/{len(names)} {self._stage or ''}".rstrip()]
        if self._part is not None:
            said.append(self._part.text(self._stage))
        stage, run, partly = self.left()
        times = [] if stage is None else [f"stage {clock_text(stage)} left"]
        times += [] if run is None else [f"run {'over' if partly else 'about'} {clock_text(run)} left"]
        times.append(f"{clock_text(self._clock() - self._begin)} so far")
        return " | ".join([*said, ", ".join(times)])

    def follow(self, part: Part) -> None:
        """A part of the stage begins."""
        self._part = part

    def show(self) -> None:
        """Show the line, if it was not shown just now."""
        self._line.show(self.text)


_lines: list[RunLine] = []


class Part:
    """A counted part of the work, shown as a bar of its own or in the line of the run."""

    def __init__(self, total: int, what: str, unit: str, initial: int = 0, clock: Callable[[], float] = time.monotonic):
        self._total, self._what, self._unit = total, what, unit
        self._count = self._first = initial
        self._clock, self._begin, self._postfix = clock, clock(), ""
        self._started = False
        self._line = _lines[-1] if _lines else None
        self._bar: tqdm | None = None
        if self._line is None:
            terminal = sys.stderr.isatty()
            between = _TERMINAL if terminal else _LOG
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=what,
                unit=unit,
                dynamic_ncols=terminal,
                mininterval=between,
                disable=not world.is_first(),
            )
        else:
            self._line.follow(self)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._count += count
        if not self._started:
            # What came before the first, such as the start of loaders, is no part of the rate.
            self._begin, self._first, self._started = self._clock(), self._count, True
        if self._bar is not None:
            self._bar.update(count)
        elif self._line is not None:
            self._line.show()

    def set_postfix_str(self, text: str) -> None:
        """What is said behind the numbers."""
        self._postfix = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def rate(self) -> float | None:
        """Steps or images a second; None as long as they are too few to say."""
        passed = self._clock() - self._begin
        done = self._count - self._first
        return done / passed if done >= _SETTLED and passed > 0 else None

    def left(self) -> float | None:
        """Seconds."""
        rate = self.rate()
        return None if rate is None else (self._total - self._count) / rate

    def text(self, known: str | None = None) -> str:
        """What, unless that is ``known``, how many of how many, and the rate."""
        rate = self.rate()
        said = [f"{'' if self._what == known else self._what + ' '}{self._count}/{self._total} {self._unit}s"]
        if rate is not None and self._unit == "image":
            said.append(f"{rate:.3g} images/s")
        return ", ".join([*said, *([self._postfix] if self._postfix else [])])


def progress(total: int, what: str, unit: str, initial: int = 0) -> Part:
    """A part of the work: in the line of the run if there is one, else a bar, or in a log file a line now and then."""
    return Part(total, what, unit, initial)


def clock_text(seconds: float) -> str:
    """A time as people say it: "48 s", "12 min", "3 h 05 min"."""
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
