"""Stopping a run from outside."""

from __future__ import annotations

import signal
from typing import Any


class InterruptedRun(Exception):  # noqa: N818 - not an error
    """SIGTERM or Ctrl-C: what had to be saved is saved."""


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._stopped = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._stopped

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: object) -> None:
        if self._stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stopped = True
