"""An environment with torch and NumPy alone, as links to the packages of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

CORE = ("torch", "numpy")


def with_dependencies(*names: str) -> set[str]:
    """Names of installed distributions and of all that they need here."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        # Markers are looked at without any extra: torch's own extras are not part of it.
        needs = map(Requirement, distribution(name).requires or ())
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link_packages(folder: Path, *names: str) -> Path:
    """Fill `folder` with links to what the named distributions, and those that they need, have installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in with_dependencies(*names):
        package = distribution(name)
        tops = {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder


def run_bare(site: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """This Python with the packages of `site` and no others; what it says on both streams is in `stdout`."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
