"""Progress bars that suit where they are shown."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(total: int, what: str, unit: str, initial: int = 0) -> tqdm:
    """A bar on a terminal; in a log file a line now and then."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, desc=what, unit=unit, dynamic_ncols=terminal, mininterval=0.2 if terminal else 15
    )
