"""One process at a time in a run folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from mcd.run.folder import RunError
from mcd.run.lock import lock_run

# Holds the folder, with a forked worker that lives as long as its parent's pipe is open, or for a minute.
HOLD = """
import os, sys, time
from pathlib import Path
from mcd.run.lock import lock_run
with lock_run(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_at_once_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = hold(tmp_path / "run")
    try:
        begin = time.monotonic()
        with (
            pytest.raises(RunError, match=rf"run folder .*/run is in use by process {holder.pid} on "),
            lock_run(tmp_path / "run"),
        ):
            pass
        assert time.monotonic() - begin < 1
        # Its worker lives on, as the workers of a killed trainer do for a while.
        holder.kill()
        holder.wait()
        with lock_run(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / "run" / "lock").read_text()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_the_lock_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with lock_run(tmp_path):
            pass
    with lock_run(tmp_path), pytest.raises(RunError, match=f"in use by process {os.getpid()} on"), lock_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="run folder .*/file/run cannot be written"), lock_run(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), lock_run(tmp_path):
        pass
