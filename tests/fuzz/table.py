"""The kinds of input that users report, several members of each, through the command line: what becomes of them.

    PYTHONPATH=tests python -m fuzz.table [--only WORDS…] [--apart] [--markdown]

A member is right if the command ends with the status that it should, says what it should, and prints no traceback. Each
is a call of ``mcd`` in a process forked from this one, or, with --apart, in one of its own. The exit status is 1 if any
is wrong.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzz.changes import Member, tiny
from fuzz.command import Command, warm
from fuzz.kinds import KINDS

LONGEST = 120
"""Seconds that a member may take."""


def judge(member: Member, status: int | None, said: str) -> str | None:
    """What is wrong with what a command did; None if nothing is."""
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if status is None:
        return f"hangs for {LONGEST} s"
    if status != member.status:
        return f"ends with {status}, not {member.status}"
    if member.says is not None and not re.search(member.says, said, re.DOTALL):
        return f"does not say {member.says!r}"
    # A refusal is at most a line that names the command, and one for each thing that is wrong.
    if status and len(said.strip().splitlines()) > 12:
        return f"says {len(said.strip().splitlines())} lines"
    return None


def last_line(said: str) -> str:
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    return lines[-1].strip() if lines else ""


def try_member(member: Member, folder: Path, example: Path, *, apart: bool) -> tuple[str | None, str]:
    """Returns what is wrong, if anything, and the line that tells the outcome."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(example, folder, symlinks=True)
    if member.change is not None:
        member.change(folder)
    command = Command(
        shlex.split(member.words), folder, folder / "said.txt", environment=member.environment, apart=apart
    )
    status = command.wait(LONGEST)
    if status is None:
        command.kill()
    said = command.said
    problem = judge(member, status, said)
    found = re.search(f"[^\n]*{member.says}", said) if member.says else None
    line = found[0].strip() if found and not problem else last_line(said)
    return problem, f"{status}: {line}".replace(str(folder), "…")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.table", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="members whose kind or name has one of these")
    parser.add_argument("--apart", action="store_true", help="each call in a process of its own")
    parser.add_argument("--markdown", action="store_true", help="print the counts by kind as a table of Markdown")
    given = parser.parse_args()
    counts, wrong = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mcd-kinds-") as place:
        example = Path(place) / "example"
        tiny(example)
        if not given.apart:
            warm()
        for kind, members in KINDS.items():
            for member in members:
                if not any(words in f"{kind}: {member.name}" for words in given.only):
                    continue
                problem, line = try_member(member, Path(place) / "try", example, apart=given.apart)
                counts[kind] += 1
                wrong[kind] += problem is not None
                print(f"{'WRONG' if problem else 'right'}  {kind}: {member.name}\n       {line[:240]}", flush=True)
                if problem:
                    print(f"       {problem}")
    if given.markdown:
        print("\n| kind | members | wrong |\n|---|---|---|")
        for kind in counts:
            print(f"| {kind} | {counts[kind]} | {wrong[kind]} |")
    print(f"{counts.total()} members of {len(counts)} kinds, {wrong.total()} wrong")
    return 1 if wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main())
