"""The rooms of ``mcd`` and who imports whom: ``python tests/gates/rooms.py`` prints the graph, and fails on a circle.

A room is a folder of ``mcd/`` or a module beside them. The operator library (``mcd/ops`` and ``kernels``) must not
import from any other room, and no stage may import a later one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("scene", "predictions", "ground", "slots", "detector", "instances", "object", "scale", "pseudo", "final")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules of this project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "mcd")


def room_of(name: str) -> str | None:
    """The room of a dotted name; None for the package itself, whose public names lead to the operator library."""
    parts = name.split(".")
    if len(parts) > 1 and ((ROOT / "mcd" / parts[1]).is_dir() or (ROOT / "mcd" / f"{parts[1]}.py").is_file()):
        return parts[1]
    return parts[1] if len(parts) > 1 and parts[1] == "kernels" else None


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """{room: rooms that it imports}."""
    found: dict[str, set[str]] = {}
    files = [
        (path, path.relative_to(root / "mcd").parts[0].removesuffix(".py")) for path in (root / "mcd").rglob("*.py")
    ]
    files += [(path, "kernels") for path in (root / "kernels").rglob("*.py")]
    for path, room in files:
        if room == "__init__":
            continue
        targets = found.setdefault(room, set())
        for name in imports(path):
            other = room_of(name) or "ops"  # `from mcd import Instances`
            if other != room:
                targets.add(other)
    # Operators name their Triton kernels by string; the kernels are part of their room.
    return found


def circle(rooms: dict[str, set[str]]) -> list[str]:
    """Rooms that import one another in a circle, or nothing."""
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def later_stages(root: Path = ROOT) -> list[str]:
    """Imports of a later stage by an earlier one."""
    found = []
    for number, stage in enumerate(STAGES):
        for name in imports(root / "mcd" / "stages" / f"{stage}.py"):
            parts = name.split(".")
            if parts[1] == "stages" and len(parts) > 2 and parts[2] in STAGES[number + 1 :]:
                found.append(f"mcd/stages/{stage}.py imports {name}")
    return found


def faults() -> list[str]:
    rooms = graph()
    found = later_stages()
    if ring := circle(rooms):
        found.append("rooms import one another in a circle: " + " -> ".join(ring))
    for room in ("ops", "kernels"):
        outside = rooms.get(room, set()) - {"ops", "kernels"}
        if outside:
            found.append(f"{room} imports {', '.join(sorted(outside))}: it should stand alone")
    return found


if __name__ == "__main__":
    rooms = graph()
    for room in TopologicalSorter(rooms).static_order() if not circle(rooms) else sorted(rooms):
        print(f"{room:12} {', '.join(sorted(rooms.get(room, ())))}".rstrip())
    problems = faults()
    print("\n".join(problems) or "no circle")
    sys.exit(bool(problems))
