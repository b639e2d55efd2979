"""Small wrong changes, one at a time: do the tests notice them? ``make mutants``, which installs what this needs.

    PYTHONPATH=tests python tests/gates/mutants.py [--sample 200] [--seed 0] [--rooms stages data …]

The tests run once under coverage, which says which of them execute which line. Then changes drawn evenly over the rooms
(the operators of cosmic-ray, without those that change annotations alone) are made in a copy of the tree, and the tests
of the changed line run on each, quick ones first, in a process forked from one that has torch imported. Survivors are
printed with their place, for a test or a reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
ROOMS = {
    "stages": ("mcd/stages",),
    "data": ("mcd/data",),
    "losses": (
        "mcd/losses.py", "mcd/ops/photometric_error.py", "mcd/ops/view_synthesis_loss.py", "mcd/ops/smoothness_loss.py",
        "mcd/ops/scale_invariant_loss.py", "mcd/ops/motion_sparsity.py",
    ),
    "run state": ("mcd/run", "mcd/training", "mcd/files.py"),
    "masks, scene": ("mcd/masks", "mcd/scene"),
}  # fmt: skip
LEFT_OUT = ("mcd/training/pretrain", "mcd/training/profiling.py", "mcd/run/progress.py", "mcd/data/video.py")
"""What shows, times or renders, and has tests of another kind."""
TESTS = (
    "tests/stages", "tests/data", "tests/training", "tests/run", "tests/masks", "tests/scene", "tests/e2e",
    "tests/evaluation", "tests/ops/test_photometric_error.py", "tests/ops/test_view_synthesis_loss.py",
    "tests/ops/test_smoothness_loss.py", "tests/ops/test_scale_invariant_loss.py", "tests/ops/test_motion_sparsity.py",
    "tests/ops/test_modules.py",
)  # fmt: skip
MARKS = "not slow and not compiles"
WITHOUT = ("VariableReplacer", "VariableInserter", "RemoveDecorator")
LONGEST = 120
"""Seconds of computing for the tests of a change."""


class Change(NamedTuple):
    """An operator of cosmic-ray at one of its places in a file."""

    path: str
    operator: str
    occurrence: int
    line: int


def changes_of(path: Path, name: str) -> Iterator[Change]:
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.operators.provider import OperatorProvider

    class Places(Visitor):
        def __init__(self, operator: Any):
            self.operator, self.found = operator, []

        def visit(self, node: Any) -> Any:
            self.found += [start[0] for start, _ in self.operator.mutation_positions(node)]
            return node

    source = path.read_text()
    provider, parsed, lines = OperatorProvider(), get_ast(source), source.splitlines()
    for operator in provider:
        if operator not in WITHOUT:
            places = Places(provider[operator]())
            places.walk(parsed)
            for occurrence, line in enumerate(places.found):
                # Inputs of the operators' tests stand beside their formulas.
                if "yield sample(" not in lines[line - 1]:
                    yield Change(name, operator, occurrence, line)


def changed(source: str, change: Change) -> str | None:
    """The changed text; None where nothing but annotations differs, which nothing executes."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    text = mutate_code(source, OperatorProvider()[change.operator](), change.occurrence)
    return None if text is None or _meaning(text) == _meaning(source) else text


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if hasattr(node, field):
                setattr(node, field, ast.Constant(None))
    return ast.dump(tree)


def copy_tree(folder: Path) -> None:
    """The tracked files and the compiled module."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in (*listed.splitlines(), *(str(path.relative_to(ROOT)) for path in (ROOT / "mcd").glob("_C*.so"))):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def measure(tree: Path, database: Path) -> None:
    """Run the tests once; which lines each executes goes into ``database``, its time into the XML file beside it."""
    words = [
        *TESTS,
        "-q",
        "-m",
        MARKS,
        "--cov=mcd",
        "--cov-context=test",
        "--cov-report=",
        f"--junitxml={database}.xml",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=tree,
        env=os.environ | {"COVERAGE_FILE": str(database)},
        check=False,
    )
    if done.returncode:
        raise SystemExit("the tests fail on the tree as it is")


def tests_of_lines(database: Path) -> dict[str, dict[int, list[str]]]:
    """Tests by file and line, quick ones first."""
    from coverage.numbits import numbits_to_nums

    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(f"{database}.xml").iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        seconds[name] += float(case.get("time", 0))  # type: ignore[assignment]
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    rows = sqlite3.connect(database).execute(
        "SELECT path, context, numbits FROM line_bits "
        "JOIN file ON file.id = file_id JOIN context ON context.id = context_id"
    )
    for path, context, numbits in rows:
        name = context.partition("|")[0]
        if name:
            for line in numbits_to_nums(numbits):
                # The copy of an earlier call lay elsewhere.
                found[path.rpartition("/tree/")[2]][line].add(name)
    return {
        path: {line: sorted(names, key=lambda name: seconds[name]) for line, names in lines.items()}
        for path, lines in found.items()
    }


def noticed(tree: Path, change: Change, text: str, tests: list[str]) -> bool:
    """Whether a test fails, or computes for too long, on the changed text."""
    path = tree / change.path
    before = path.read_text()
    path.write_text(text)
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                silence = os.open(os.devnull, os.O_RDWR)
                for handle in (0, 1, 2):
                    os.dup2(silence, handle)
                resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
                import pytest

                status = pytest.main([*tests, "-q", "-x", "-p", "no:cacheprovider", "-m", MARKS])
            finally:
                os._exit(int(status))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    finally:
        path.write_text(before)


def draw(tree: Path, rooms: list[str], sample: int, seed: int) -> Iterator[tuple[str, Change, str]]:
    """As many changes of each room, evenly over its lines."""
    random_ = random.Random(seed)
    for room in rooms:
        files = [file for place in ROOMS[room] for file in ([tree / place] if place.endswith(".py") else
                 sorted((tree / place).rglob("*.py")))]  # fmt: skip
        names = [name for name in (str(file.relative_to(tree)) for file in files) if not name.startswith(LEFT_OUT)]
        by_line: dict[tuple[str, int], list[Change]] = defaultdict(list)
        for name in names:
            for change in changes_of(tree / name, name):
                by_line[name, change.line].append(change)
        left = -(-sample // len(rooms))
        for place in random_.sample(sorted(by_line), len(by_line)):
            change = random_.choice(by_line[place])
            text = changed((tree / change.path).read_text(), change)
            if text is not None:
                yield room, change, text
                left -= 1
                if left == 0:
                    break


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=200, help="changes in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", choices=ROOMS, nargs="+", default=list(ROOMS))
    parser.add_argument("--coverage", type=Path, default=ROOT / "build" / "mutants.db", help="kept between calls")
    given = parser.parse_args()
    tried, survived = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name).resolve() / "tree"
        copy_tree(tree)
        # A change of one character in the same second would be hidden by the compiled file of the one before.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        given.coverage.parent.mkdir(exist_ok=True)
        if not given.coverage.is_file():
            measure(tree, given.coverage.resolve())
        tests = tests_of_lines(given.coverage.resolve())
        changes = list(draw(tree, given.rooms, given.sample, given.seed))
        sys.path[:0] = [str(tree), str(tree / "tests")]
        os.chdir(tree)
        import pytest  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401

        for room, change, text in changes:
            known = tests.get(change.path, {}).get(change.line, [])
            tried[room] += 1
            if not known or not noticed(tree, change, text, known):
                survived[room] += 1
                lines = zip((tree / change.path).read_text().splitlines(), text.splitlines(), strict=False)
                old, new = next(((a, b) for a, b in lines if a != b), ("", ""))
                why = f"{len(known)} tests execute it" if known else "no test executes it"
                print(f"{change.path}:{change.line} ({why})\n  - {old.strip()}\n  + {new.strip()}", flush=True)
    print("\n| room | changes | noticed |\n|---|---|---|")
    for room in given.rooms:
        print(f"| {room} | {tried[room]} | {tried[room] - survived[room]} |")
    share = 1 - survived.total() / max(tried.total(), 1)
    print(f"| together | {tried.total()} | {tried.total() - survived.total()} ({share:.0%}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
