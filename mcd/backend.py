"""``mcd backend``: which backend can serve which operator on which device, and why one cannot; and what processes of a
run would speak through."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mcd import world
from mcd.ops.backend import BACKENDS, available_backends
from mcd.ops.registry import OPERATORS

DEVICES = ("cpu", "cuda")


def table(device: str) -> list[str]:
    """Lines for one device: an operator a row, the one that `auto` takes in brackets."""
    reasons = available_backends(device)
    lines = [device, *(f"  no {backend}: {reason}" for backend, reason in reasons.items() if reason)]
    if all(reasons.values()):
        return lines
    width = max(map(len, OPERATORS))
    for name, operator in OPERATORS.items():
        served = [backend for backend in BACKENDS if operator.why_not(backend, device) is None]
        cells = [backend if backend in served else "-" for backend in BACKENDS]
        cells[BACKENDS.index(served[0])] = f"[{served[0]}]"
        lines.append("  ".join((f"  {name:{width}}", *(f"{cell:11}" for cell in cells))).rstrip())
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="mcd backend", description=__doc__).parse_args(arguments)
    for device in DEVICES:
        print("\n".join(table(device)))
    print(f"processes: {world.launched()}; between processes: {world.communication()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
