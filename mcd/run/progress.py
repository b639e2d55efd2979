"""Progress bars that suit where they are shown."""

from __future__ import annotations

import sys

from tqdm import tqdm

from mcd import world


def progress(total: int, what: str, unit: str, initial: int = 0) -> tqdm:
    """A bar on a terminal; in a log file a line now and then; in the first process of a run, for all."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 15,
        disable=not world.is_first(),
    )
