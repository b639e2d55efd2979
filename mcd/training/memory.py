"""How the C library hands out memory to training on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process reuse the memory that it frees; whether the C library can (glibc).

    By default every tensor of more than some 32 MB is mapped anew, and the kernel clears it page by page when it is
    first written. The activations of a training step are of that size, the same in every step, and clearing them takes
    longer than computing them. What is kept counts as used by the process until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
