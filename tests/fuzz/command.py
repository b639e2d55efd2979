"""The command ``mcd`` in a process of its own, which can be killed: forked from this one, or started anew."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path


class Command:
    """``mcd WORDS`` in a folder; what it says goes into a file.

    A forked one has everything imported that this process has, and so begins with the work. ``apart`` starts Python,
    as a shell does; what the environment says to modules when they are imported needs that.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        heard: Path,
        *,
        environment: Mapping[str, str] | None = None,
        apart: bool = False,
    ):
        self._heard = heard
        self.computed = 0.0
        """Seconds of computing, as far as is known."""
        if apart or environment:
            with heard.open("w") as file:
                self.pid = subprocess.Popen(
                    [sys.executable, "-m", "mcd", *words],
                    cwd=folder, env=os.environ | dict(environment or {}), stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                ).pid  # fmt: skip
            return
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, folder, heard)

    def wait(self, seconds: float, computing: float = math.inf) -> int | None:
        """The exit status, negative for a signal; None if the command still runs after this time, or when it has
        computed so long, which is the same moment on a machine that has other work too."""
        deadline = time.monotonic() + seconds
        while True:
            done, code, used = os.wait4(self.pid, os.WNOHANG)
            if done:
                self.computed = used.ru_utime + used.ru_stime
                return os.waitstatus_to_exitcode(code)
            # After the name, which may hold spaces, the fields of proc(5) begin with the third.
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            self.computed = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            if time.monotonic() >= deadline or self.computed >= computing:
                return None
            time.sleep(0.01)

    def kill(self) -> int | None:
        """Kill -9 the process and its workers; returns the status, which is another if it had ended before."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(self.pid, signal.SIGKILL)
        return self.wait(60)

    @property
    def said(self) -> str:
        return self._heard.read_text(errors="replace") if self._heard.is_file() else ""


def _become(words: Sequence[str], folder: Path, heard: Path) -> None:
    """In a forked child: do what ``python -m mcd`` does; never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(heard, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # pytest has put others in their place.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        warnings.resetwarnings()
        warnings.simplefilter("default", UserWarning)
        from mcd.cli import main

        status = main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def warm() -> None:
    """Import what the commands import, so that forked ones have it."""
    import mcd.data.prepare
    import mcd.evaluation.command
    import mcd.inference.command
    import mcd.report.page
    import mcd.train  # noqa: F401
