"""From measurements to docs/benchmarks.md: ``python -m benchmarks.report JSON…``.

Takes what pytest-benchmark wrote (several files of one machine: one for each allocator setting) or results in their
reduced form, and writes ``benchmarks/results/<machine>.json`` (the reduced form), the plot ``docs/speed-<machine>.png``
and, between its markers in docs/benchmarks.md, the tables of all machines. `--show` prints the table alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import COMPILED, MARGIN, SIZE, verdicts

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks begin -->", "<!-- benchmarks end -->"
BACKENDS = ("native", "triton", "reference")
KEPT = 4  # significant digits of a figure


def reduce(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One document of the figures alone: the machine, and a row for each benchmark.

    Raises:
        ValueError: the documents are of several machines or commits, or hold no benchmark.
    """
    machine: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    for document in documents:
        if "rows" in document:
            about, found = document["machine"], document["rows"]
        else:
            about = dict(document["mcd"])
            tunables = about.pop("glibc_tunables")
            found = [
                {**entry["extra_info"], "glibc_tunables": tunables}
                for entry in document["benchmarks"]
                if "kind" in entry["extra_info"]
            ]
        if machine is not None and machine != about:
            raise ValueError(f"the files are of different machines, versions or commits: {machine} and {about}")
        machine = about
        rows.extend(found)
    if machine is None or not rows:
        raise ValueError("the files hold no benchmark of this project")
    return _rounded({"machine": machine, "rows": rows})


def slug(machine: dict[str, Any]) -> str:
    """A name for files: the GPU, or processor and cores."""
    name = machine["gpu"] or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(results: dict[str, Any]) -> str:
    """Markdown: where it was measured, operators, training step, verdicts, data."""
    machine, rows = results["machine"], results["rows"]
    operators = [row for row in rows if row["kind"] == "operator"]
    judged = _judged(operators)
    steps = [row for row in rows if row["kind"] == "training step"]
    untuned = {(row["operator"], *row["size"]): row for row in operators if row not in judged}
    return "\n\n".join(
        block
        for block in (
            _heading(machine, judged),
            _operator_table(judged, untuned),
            _step_table(steps),
            _verdict_table([*judged, *steps]),
            _data_line([row for row in rows if row["kind"] == "data"]),
        )
        if block
    )


def _judged(operators: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows under several allocator settings those of the tuned one."""
    tuned = any(row.get("glibc_tunables") for row in operators)
    return [row for row in operators if bool(row.get("glibc_tunables")) == tuned]


def _heading(machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    copies = [row["copy_bytes_per_s"] for row in rows]
    copy = f" A copy runs at {copies[0] / 1e9:.3g} GB/s." if copies else ""
    tunables = next((row["glibc_tunables"] for row in rows if row.get("glibc_tunables")), "")
    allocator = f" GLIBC_TUNABLES={tunables}." if tunables else ""
    return f"{where}; {versions}; commit {machine['commit']}.{copy}{allocator}"


def _operator_table(rows: Sequence[dict[str, Any]], untuned: dict[tuple, dict[str, Any]]) -> str:
    if not rows:
        return ""
    cuda = rows[0]["device"] == "cuda"
    state = "cold" if cuda else "warm"
    unit, factor = ("µs", 1e6) if cuda else ("ms", 1e3)
    names = ["reference", COMPILED, "triton"]
    names = [name for name in names if any(name in row["contestants"] for row in rows)]
    titles = [f"native {unit}", "of copy", *(f"× {name}" for name in names), "× the fastest peer"]
    titles += ["× reference, default allocator"] * bool(untuned) + ["kept for backward"]
    lines = [f"| forward + backward, {state} | size | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    for row in rows:
        contestants, key = row["contestants"], f"both_{state}"
        native = contestants.get("native")
        if native is None:
            continue
        peers = {
            name: entry["times_native"][key]
            for name, entry in contestants.items()
            if name not in BACKENDS and name != COMPILED
        }
        best = min(peers, key=lambda name: peers[name], default=None)
        cells = [_figure(factor * native["seconds"][key]), f"{native['share_of_copy'][key]:.0%}"]
        cells += [_times(contestants.get(name), key) for name in names]
        cells.append(f"{_figure(peers[best])} ({best})" if best is not None else "")
        if untuned:
            other = untuned.get((row["operator"], *row["size"]))
            cells.append(_times(other["contestants"].get("reference") if other else None, key))
        kept, whole = native.get("saved_bytes"), contestants.get("reference", {}).get("saved_bytes")
        cells.append(f"{_bytes(kept)} of {_bytes(whole)}" if kept is not None and whole is not None else "")
        lines.append(f"| `{row['operator']}` | {_size(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict_table(rows: Sequence[dict[str, Any]]) -> str:
    shown = {"met": "met", "missed": "**missed**", "at the bar": "at the bar"}
    lines = [
        f"| {_name(row)} | {verdict.what} | {shown[verdict.outcome]} |" for row in rows for verdict in verdicts(row)
    ]
    if not lines:
        return ""
    title = f"at {'×'.join(map(str, SIZE))}"
    return "\n".join(
        [f"| {title} | native against its bars; within {MARGIN:.0%}: at the bar | |", "|---|---|---|", *lines]
    )


def _step_table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["| training step | size | | ms | outside the networks, ms | × native | peak memory |", "|---" * 7 + "|"]
    for row in rows:
        for name, entry in row["contestants"].items():
            seconds = entry["seconds"]
            outside = _figure(1e3 * seconds["outside networks"]) if "outside networks" in seconds else ""
            ratio = _figure(entry["times_native"]["total"]) if "times_native" in entry else ""
            cells = [name, _figure(1e3 * seconds["total"]), outside, ratio, _bytes(entry["peak_bytes"])]
            lines.append(f"| {row['phase']} | {_size(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _data_line(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        f"Data pipeline alone, {_size(row)}: "
        + ", ".join(f"{rate:.3g} triplets/s with {workers}" for workers, rate in row["images_per_s"].items())
        + "."
        for row in rows
    )


def _name(row: dict[str, Any]) -> str:
    return f"`{row['operator']}`" if row["kind"] == "operator" else f"training step, {row['phase']}"


def _size(row: dict[str, Any]) -> str:
    return "×".join(map(str, row["size"]))


def _times(entry: dict[str, Any] | None, key: str) -> str:
    return "" if entry is None else _figure(entry["times_native"][key])


def _figure(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def plot(results: dict[str, Any], path: Path) -> None:
    """Time of both passes against the bytes that they cannot do without, beside what a copy of these bytes takes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = _judged([row for row in results["rows"] if row["kind"] == "operator"])
    key = "both_cold" if rows[0]["device"] == "cuda" else "both_warm"
    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    looks = {"native": "o", "triton": "D", COMPILED: "s", "reference": "x"}
    for number, (name, marker) in enumerate(looks.items()):
        shown = [row for row in rows if name in row["contestants"]]
        if shown:
            moved = [row["bytes"]["both"] for row in shown]
            seconds = [row["contestants"][name]["seconds"][key] for row in shown]
            axes.scatter(moved, seconds, marker=marker, s=24, color=f"C{number}", label=name)
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["operator"], row)
    for operator, row in first.items():
        if "native" in row["contestants"]:
            at = row["bytes"]["both"], row["contestants"]["native"]["seconds"][key]
            axes.annotate(operator, at, xytext=(4, -9), textcoords="offset points", fontsize=7)
    ends = [min(row["bytes"]["both"] for row in rows), max(row["bytes"]["both"] for row in rows)]
    axes.plot(ends, [end / rows[0]["copy_bytes_per_s"] for end in ends], color="black", lw=1, label="a copy")
    axes.set(xscale="log", yscale="log", xlabel="bytes that both passes must move", ylabel="seconds")
    axes.set_title(slug(results["machine"]), fontsize=9)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def section(every: Sequence[dict[str, Any]]) -> str:
    """What the page shows between its markers: a block for each machine."""
    blocks = []
    for results in every:
        picture = f"![Time against bytes](speed-{slug(results['machine'])}.png)"
        blocks.append(f"{table(results)}\n\n{picture}")
    if not blocks:
        blocks.append("Not measured yet.")
    if not any(results["machine"]["gpu"] for results in every):
        blocks.append("On a GPU: not measured.")
    return "\n\n".join([BEGIN, *blocks, END])


def into_page(text: str, every: Sequence[dict[str, Any]]) -> str:
    """The page with the figures of these machines, and of no others.

    Raises:
        ValueError: the page has no place for them.
    """
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    if not re.search(pattern, text, flags=re.DOTALL):
        raise ValueError(f"docs/benchmarks.md has no lines {BEGIN} and {END}")
    return re.sub(pattern, lambda _: section(every), text, count=1, flags=re.DOTALL)


def committed(root: Path) -> list[dict[str, Any]]:
    """The results of every machine, by name."""
    return [json.loads(path.read_text()) for path in sorted((root / "benchmarks" / "results").glob("*.json"))]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{KEPT}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--show", action="store_true", help="print the table, write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        results = reduce(json.loads(path.read_text()) for path in options.files)
    except (OSError, ValueError, KeyError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if options.show:
        return 0
    # Only here: the table is printed on machines that have neither.
    from mcd.files import write_text

    name, page = slug(results["machine"]), options.root / "docs" / "benchmarks.md"
    folder = options.root / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(results, indent=1) + "\n")
    plot(results, options.root / "docs" / f"speed-{name}.png")
    write_text(page, into_page(page.read_text(), committed(options.root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
