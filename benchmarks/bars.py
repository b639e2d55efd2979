"""What each operator is after, forward and backward at 12×192×512, and whether it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

COMPILED = "compiled reference"
# What the native operator is to beat on CPU, and how many times over; warm, under the tuned allocator.
CPU: dict[str, dict[str, float]] = {
    "backward_warp": {"reference": 6, COMPILED: 6},
    "photometric_error": {"reference": 25, COMPILED: 10},
    "view_synthesis_loss": {"reference": 20, COMPILED: 7},
    "forward_warp": {"sort + segment max": 10, "scatter_reduce amax": 3},
    "instance_stats": {"mask + median": 10},
    "align_scale": {"reference": 10},
    "fuse_depth": {"reference": 10},
    "smoothness_loss": {"reference": 6, COMPILED: 1.5},
}
# On an H200, cold: microseconds, of which span, and times the reference in eager mode.
CUDA: dict[str, tuple[float, str, float]] = {
    "backward_warp": (28, "both", 10),
    "photometric_error": (60, "both", 20),
    "view_synthesis_loss": (220, "both", 25),
    "forward_warp": (15, "forward", 20),
    "instance_stats": (15, "both", 100),
    "align_scale": (8, "both", 20),
    "fuse_depth": (8, "both", 20),
    "smoothness_loss": (14, "both", 15),
}
SAVED = 20  # times less memory kept for the backward pass than the reference keeps
# The reference itself must not be a straw man: at most this many times a plain composition timed beside it.
REFERENCE_TO_COMPOSITION = 1.3
COMPOSITIONS = ("composition", "grid_sample")


class Verdict(NamedTuple):
    what: str
    met: bool


def verdicts(row: Mapping[str, Any]) -> list[Verdict]:
    """Of a row of the results (a contest's summary); none where there is no bar or nothing to hold against it."""
    contestants = row["contestants"]
    native = contestants.get("native")
    if native is None:
        return []
    found: list[Verdict] = []

    def times(name: str, bar: float, span: str) -> None:
        if name in contestants:
            ratio = contestants[name]["times_native"][span]
            found.append(Verdict(f"{ratio:.1f} × {name}, bar {bar:g}", ratio >= bar))

    if row["device"] == "cpu":
        for name, bar in CPU.get(row["operator"], {}).items():
            times(name, bar, "both_warm")
    elif row["operator"] in CUDA:
        microseconds, span, bar = CUDA[row["operator"]]
        took = 1e6 * native["seconds"][f"{span}_cold"]
        found.append(Verdict(f"{took:.1f} µs {span}, bar {microseconds:g}", took <= microseconds))
        times("reference", bar, f"{span}_cold")
    reference = contestants.get("reference")
    if reference is None:
        return found
    if row["operator"] in CPU and reference.get("saved_bytes"):
        share = native["saved_bytes"] / reference["saved_bytes"]
        what = f"saves {native['saved_bytes']:,} of the reference's {reference['saved_bytes']:,} bytes, bar 1/{SAVED}"
        found.append(Verdict(what, share <= 1 / SAVED))
    for name in COMPOSITIONS:
        if row["device"] == "cpu" and name in contestants:
            ratio = reference["times_native"]["both_warm"] / contestants[name]["times_native"]["both_warm"]
            what = f"reference is {ratio:.2f} × {name}, bar {REFERENCE_TO_COMPOSITION}"
            found.append(Verdict(what, ratio <= REFERENCE_TO_COMPOSITION))
    return found
