"""Damaged files and odd words through every door: ``PYTHONPATH=tests python -m fuzz --seconds 60``.

Doors take turns, each with the seeds FIRST, FIRST + 1, …, until the time is over. A trial that goes wrong is said with
the words that repeat it, and its files are kept in build/fuzz/. The exit status is 1 if any did. A trial that takes the
whole process down is found by --apart, which gives each a process of its own, and more time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fuzz.doors import DOORS
from fuzz.trial import LONGEST, Outcome, attempt

KEPT = Path(__file__).parents[2] / "build" / "fuzz"


def apart(name: str, seed: int, examples: Path) -> Outcome:
    """A trial in a process of its own."""
    command = [sys.executable, "-m", "fuzz.trial", name, str(seed), str(examples), str(KEPT)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * LONGEST)
    except subprocess.TimeoutExpired:
        return Outcome(f"hangs for {4 * LONGEST} s, start included", False)
    if done.returncode:
        return Outcome(f"the process ends with {done.returncode}: {done.stderr[-2000:]}", False)
    said = done.stdout.strip()
    return Outcome(None if said in ("refused", "accepted") else said, said == "refused")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="time for all doors together (default 60)")
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--trials", type=int, default=2**31, help="most trials of each door")
    parser.add_argument("--door", choices=DOORS, nargs="+", default=list(DOORS), help="only these")
    parser.add_argument("--apart", action="store_true", help="each trial in a process of its own")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin, tries, wrong = time.monotonic(), Counter[str](), Counter[str]()
    refused, spent = Counter[str](), Counter[str]()
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - begin < given.seconds:
            # Whichever had the least time so far, so that slow doors do not keep quick ones waiting.
            ready = [name for name in given.door if tries[name] < given.trials]
            if not ready:
                break
            name = min(ready, key=lambda door: spent[door])
            seed, start = given.first + tries[name], time.monotonic()
            outcome = (apart if given.apart else lambda *a: attempt(*a, KEPT))(name, seed, Path(folder))
            spent[name] += time.monotonic() - start
            tries[name] += 1
            refused[name] += outcome.refused
            if outcome.problem is not None:
                wrong[name] += 1
                print(f"--door {name!r} --first {seed} --trials 1:\n{outcome.problem}\n", flush=True)
    width = max(map(len, DOORS))
    for name in given.door:
        print(f"{name:{width}} {tries[name]:7} tries {refused[name]:7} refused {wrong[name]:4} wrong")
    counts = f"{tries.total():7} tries {refused.total():7} refused {wrong.total():4} wrong"
    print(f"{'together':{width}} {counts} in {time.monotonic() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
