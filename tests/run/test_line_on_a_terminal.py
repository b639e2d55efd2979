"""The line on a terminal: it is written over, and shown where the terminal does not say how wide it is, too."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from contextlib import suppress

import pytest

from mcd.run.progress import Line


@pytest.mark.parametrize("columns", [0, 100])
def test_a_line_is_shown_on_a_terminal_of_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    now = [0.0]
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        line = Line(lambda: now[0])
        for text in ("first", "left out", "second"):
            line.show(lambda text=text: text)
            now[0] += 0.15  # a look every fifth of a second
        line.close()
    data = b""
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 4096):
            data += piece
    os.close(ours)
    shown = data.decode()
    assert "first" in shown
    assert "second" in shown
    assert "left out" not in shown
    assert "\n" not in shown.strip()
