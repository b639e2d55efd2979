"""One trial: a valid example, damaged by a seed, goes through a door; what must hold of the outcome.

It ends well with finite results, or with one line that says what is wrong. It neither raises, nor hangs, nor takes much
memory; it writes nothing outside its output folder and leaves its input alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch

import mcd
from fuzz.doors import DOORS, Door
from fuzz.mutation import damage_file

LONGEST = 30
"""Seconds of computing; three times as many for what does not compute."""
MOST_MEMORY = 2 * 2**30
"""Bytes above what the process had before."""


class Outcome(NamedTuple):
    """How a trial ended."""

    problem: str | None
    """What went wrong, or None."""
    refused: bool
    """The door was shut, with a line that says why."""


class HangError(BaseException):
    """Not an Exception, so that nothing catches it on the way."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise HangError in a block that takes longer; one that waits for its turn on a busy machine is not one."""
    begin, computing = time.monotonic(), time.process_time()

    def look(number: int, frame: FrameType | None) -> None:
        computed, passed = time.process_time() - computing, time.monotonic() - begin
        if computed >= seconds or (passed >= 3 * seconds and computed < 0.02 * passed):
            raise HangError

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds / 4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(name: str, seed: int, examples: Path, keep: Path) -> Outcome:
    """Run a trial; what went wrong is kept, with the folder, as ``keep/NAME-SEED``."""
    door, draw = DOORS[name], random.Random(f"{name} {seed}")
    example = examples / name.replace(" ", "_")
    # At one place, because configs hold paths.
    place = Path(tempfile.gettempdir()) / f"mcd-fuzz-{hashlib.sha256(str(examples).encode()).hexdigest()[:12]}"
    if not example.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        door.build(place)
        shutil.copytree(place, example)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(example, place)
    files = sorted(path for path in place.glob(door.inputs) if path.is_file())
    for path in draw.sample(files, min(len(files), draw.choice((1, 1, 1, 2)))):
        damage_file(draw, path)
    outcome = judge(door, draw, place)
    if outcome.problem is not None:
        kept = keep / f"{name.replace(' ', '_')}-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(place, kept)
        (kept / "PROBLEM.txt").write_text(outcome.problem)
    shutil.rmtree(place, ignore_errors=True)
    return outcome


def judge(door: Door, draw: random.Random, place: Path) -> Outcome:
    status: int | None = None
    problem: str | None = None
    before, memory = _contents(place), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = io.StringIO()
    try:
        with (
            time_limit(LONGEST),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            status = door.enter(place, draw)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except HangError:
        problem = f"hangs for {LONGEST} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = "".join(traceback.format_exception(error))
    finally:
        # What a trial has set for the process.
        mcd.set_backend("auto")
        torch.set_num_threads(1)
    if status is not None:
        problem = _wrong(door, place, before, memory, status, said.getvalue().strip())
    return Outcome(problem, status not in (None, 0))


def _wrong(door: Door, place: Path, before: dict[Path, bytes], memory: int, status: int, text: str) -> str | None:
    """What is wrong with a trial that ended with this status, saying this."""
    if "Traceback" in text:
        return text
    if status != 0 and not text:
        return f"ends with {status} and says nothing"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    if grown > MOST_MEMORY:
        return f"takes {grown / 2**30:.1f} GiB"
    return _changed(door, before, _contents(place)) or (_not_finite(place / "out") if status == 0 else None)


def _contents(place: Path) -> dict[Path, bytes]:
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in place.rglob("*") if path.is_file()}


def _changed(door: Door, before: dict[Path, bytes], after: dict[Path, bytes]) -> str | None:
    # What commands write into a run folder by design.
    own = {"metrics.json", "metrics.csv", "report.html", "prepared.json"}
    for path in before.keys() | after.keys():
        if path.name in own or "out" in path.parts or path.name.endswith(("-journal", "-wal", "-shm")):
            continue
        if path not in after:
            return f"{path} is gone"
        if path not in before:
            return f"{path} was written"
        if before[path] != after[path]:
            return f"{path} was changed"
    return None


def _not_finite(out: Path) -> str | None:
    for path in out.rglob("*.npy"):
        if not np.isfinite(np.load(path)).all():
            return f"{path} is not finite"
    for path in out.rglob("metrics.json"):
        if not all(math.isfinite(number) for number in _numbers(json.loads(path.read_text()))):
            return f"{path} is not finite"
    return None


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float):
        yield value


if __name__ == "__main__":
    found = attempt(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    print(found.problem or ("refused" if found.refused else "accepted"))
