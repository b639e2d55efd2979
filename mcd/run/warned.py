"""What a run has to say about its own results: said once on stderr, kept in ``RUN/log/warnings.json``.

From there it goes into ``metrics.json`` (``warnings``) and to the top of the report.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from mcd import world
from mcd.files import DataError, read_json, write_json

DATA = "data"
"""What is said of the frames, before any stage."""


def warn(run_folder: Path, part: str, lines: Iterable[str]) -> None:
    """Say of a part of a run (a stage, or :data:`DATA`) what is new; it takes the place of what was said of it.

    The first process does, for all.
    """
    if not world.is_first():
        return
    path = run_folder / "log" / "warnings.json"
    known = _read(path)
    lines = list(dict.fromkeys(lines))
    for line in lines:
        if line not in known.get(part, ()):
            tqdm.write(f"warning: {line}", file=sys.stderr)
    if known.get(part, []) != lines:
        write_json(path, {name: said for name, said in (known | {part: lines}).items() if said})


def read_warnings(run_folder: Path) -> list[str]:
    """All that was said of a run, in the order of its parts."""
    return [line for lines in _read(run_folder / "log" / "warnings.json").values() for line in lines]


def _read(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    document = read_json("warnings", path)
    if not all(isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in document.values()):
        raise DataError(f"warnings {path} are no lists of lines by part of the run; delete it")
    return document
