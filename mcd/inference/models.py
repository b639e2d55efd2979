"""Which depth nets there are: ``mcd models [FOLDER]`` lists those that come with mcd and those of a folder.

Of the folder, runs unless another is named, it shows the runs and weights files: how each is called by mcd.load, mcd
predict and mcd export, its depth net, the size at which that sees images, its unit, and what else is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcd.errors import McdError
from mcd.run.checkpoint import DEPTH_STAGES, START, WEIGHTS, CheckpointError, find_weights, load_weights

COLUMNS = ("name", "depth net", "size", "unit", "")


class FolderError(McdError, ValueError):
    """A folder whose nets cannot be listed."""


@dataclass(frozen=True)
class Listed:
    """One line: how a net is called and what is known of it."""

    name: str
    net: str
    size: str
    unit: str
    note: str

    @property
    def cells(self) -> tuple[str, ...]:
        return self.name, self.net, self.size, self.unit, self.note


def shipped() -> list[Listed]:
    """The nets that come with mcd."""
    return [_of_file("start", START)] if START.is_file() else []


def nets_of(folder: Path) -> list[Listed]:
    """Runs and weights files of a folder, or the one run that it is.

    Raises:
        FolderError: there is no such folder.
    """
    if not folder.is_dir():
        raise FolderError(f"folder {folder} does not exist")
    if _is_run(folder):
        return [_of_run(folder)]
    inside = sorted(folder.iterdir())
    found = [_of_run(path) for path in inside if path.is_dir() and _is_run(path)]
    return found + [_of_file(str(path), path) for path in inside if path.is_file() and path.suffix == ".safetensors"]


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or any(
        (folder / place / WEIGHTS).is_file() for place in (".", *DEPTH_STAGES)
    )


def _of_run(folder: Path) -> Listed:
    try:
        best = find_weights(folder)
    except CheckpointError:
        return Listed(str(folder), "-", "-", "-", "no stage with a depth net is finished")
    stages = [stage for stage in DEPTH_STAGES if (folder / stage / WEIGHTS).is_file()]
    others = [stage for stage in stages if folder / stage / WEIGHTS != best]
    taken = f"stage {best.parent.name}" if stages else ""
    return _of_file(str(folder), best, taken + (f"; also {', '.join(others)}" if others else ""))


def _of_file(name: str, path: Path, note: str = "") -> Listed:
    try:
        weights = load_weights(path, tensors=False)
    except CheckpointError as error:
        return Listed(name, "-", "-", "-", str(error))
    if "depth" not in weights.nets:
        return Listed(name, "-", "-", "-", f"no depth net, but {', '.join(weights.nets) or 'nothing that is named'}")
    size = "any: give one" if weights.size is None else f"{weights.size[0]}x{weights.size[1]}"
    size += ", any shape" * bool(weights.metadata.get("any_shape"))
    others = [role for role in weights.nets if role != "depth"]
    return Listed(
        name,
        weights.nets["depth"],
        size,
        str(weights.metadata.get("unit", "arbitrary")),
        note or (f"also {', '.join(others)}" if others else ""),
    )


def table(titles: Sequence[tuple[str, Sequence[Listed]]]) -> list[str]:
    """Lines: a heading for each group, its nets in columns of one width."""
    rows = [COLUMNS, *(listed.cells for _, group in titles for listed in group)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(("", *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))).rstrip()

    lines = [line(COLUMNS)]
    for title, group in titles:
        lines += [title, *(line(listed.cells) for listed in group)]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0."""
    parser = argparse.ArgumentParser(
        prog="mcd models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="runs and weights files (default: runs)")
    folder = parser.parse_args(arguments).folder
    groups = [("come with mcd", shipped())]
    if folder is not None or Path("runs").is_dir():
        folder = folder or Path("runs")
        found = nets_of(folder)
        groups.append((str(folder) if found else f"{folder} holds no run and no weights", found))
    print("\n".join(table(groups)))
    return 0
