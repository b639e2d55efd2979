"""What the processes of a run have to have in common, and what each has for itself."""

from __future__ import annotations

import hashlib
import socket
import tempfile
import time
from functools import partial
from pathlib import Path

from mcd import world
from mcd.config import STAGES, Config, ConfigError, Schedule
from mcd.data import open_reader
from mcd.files import remove_partial
from mcd.run.folder import Run, RunError, version

_SEEN_WITHIN = 30.0
"""Seconds; a client of NFS may look away for some."""


def check_processes(config: Config) -> None:
    """Raises an error if the processes of a run cannot do its work together."""
    count = world.size()
    if count == 1:
        return
    world.check_equal("config", config.digest())
    world.check_equal("version", version())
    for name in config.stages:
        schedule = getattr(config, name, None)
        if isinstance(schedule, Schedule) and schedule.steps != 0 and schedule.batch % count:
            raise ConfigError(
                f"'{name}.batch' is {schedule.batch}, the batch of all processes, which {count} cannot share evenly: "
                f"a multiple of {count} can be shared"
            )


def open_run(config: Config) -> Run:
    """The run folder: made or checked by the first process, seen by all.

    Raises:
        RunError: it is not usable, or not the same for all.
    """
    run = world.from_first(partial(_open, config))
    if world.size() > 1:
        check_shared(run.path)
    return run


def _open(config: Config) -> Run:
    run = Run(config)
    for name in STAGES:
        remove_partial(run.stage(name))
    return run


def check_shared(folder: Path) -> None:
    """Raises RunError if what the first process writes into a folder is not seen by the others."""
    token = world.from_first(lambda: tempfile.mkstemp(prefix=".shared-", dir=folder)[1])
    try:
        until = time.monotonic() + _SEEN_WITHIN
        while not (seen := Path(token).exists()) and time.monotonic() < until:
            time.sleep(0.1)
        blind = [host for host, sees in world.gather((socket.gethostname(), seen)) if not sees]
    finally:
        if world.is_first():
            Path(token).unlink(missing_ok=True)
    if blind:
        raise RunError(
            f"run folder {folder} of {blind[0]} is not that of process 0: set 'runs' to a place that all machines share"
        )


def count_frames(config: Config) -> int:
    """How many frames the data have, the same ones for all processes."""
    lists = [open_reader(config.data, split).frames for split in ("train", "val")]
    if world.size() > 1:
        listed = hashlib.sha256("\n".join(frame for frames in lists for frame in frames).encode()).hexdigest()[:16]
        world.check_equal("list of frames in data.root", listed)
    return sum(map(len, lists))
