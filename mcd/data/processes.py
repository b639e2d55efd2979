"""How many processes work on something."""

from __future__ import annotations

import os

MOST_PER_CORE = 4
"""Reading from a slow disk gains by more processes than cores, but not without end."""


def process_count(wanted: int, items: int) -> int:
    """``wanted``, but no more than there are items, and at most four a core."""
    return max(min(wanted, items, MOST_PER_CORE * (os.cpu_count() or 1)), 0)
