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
# On an H200, cold: microseconds, of which span, and times the reference in eager mode. As modelled,
# photometric_error has 70 and view_synthesis_loss 260.
CUDA: dict[str, tuple[float, str, float]] = {
    "backward_warp": (28, "both", 10),
    "photometric_error": (60, "both", 20),
    "view_synthesis_loss": (220, "both", 25),
    "forward_warp": (22, "forward", 20),
    "instance_stats": (15, "both", 100),
    "align_scale": (9, "both", 20),
    "fuse_depth": (12, "both", 20),
    "smoothness_loss": (18, "both", 15),
    "scale_invariant_loss": (25, "both", 10),
}
# Time of a training step outside the networks: this many times less than under the reference.
OUTSIDE_NETWORKS = 10
SIZE = [12, 192, 512]
SAVED = 20  # times less memory kept for the backward pass than the reference keeps
# The reference itself must not be a straw man: at most this many times a plain composition timed beside it.
REFERENCE_TO_COMPOSITION = 1.3
COMPOSITIONS = ("composition", "grid_sample")


# Medians of two runs of the same code differ by less. A time this close to its bar is neither met nor missed.
MARGIN = 0.1


class Verdict(NamedTuple):
    """reached: the share of what is asked for, 1 and more where it is there. exact: every run finds the same figure."""

    what: str
    reached: float
    exact: bool = False

    @property
    def outcome(self) -> str:
        margin = 0.0 if self.exact else MARGIN
        if self.reached >= 1 + margin:
            return "met"
        return "missed" if self.reached < 1 - margin else "at the bar"


def verdicts(row: Mapping[str, Any]) -> list[Verdict]:
    """Of a row of the results; none at sizes that have no bars, or where there is nothing to hold against one."""
    if row["size"] != SIZE or "native" not in row.get("contestants", {}):
        return []
    return _of_training_step(row) if row["kind"] == "training step" else _of_operator(row)


def _of_training_step(row: Mapping[str, Any]) -> list[Verdict]:
    if "reference" not in row["contestants"]:
        return []
    ratio = row["contestants"]["reference"]["times_native"]["outside networks"]
    what = f"outside the networks {100 / ratio:.1f} % of what it is under reference, bar {100 / OUTSIDE_NETWORKS:g} %"
    return [Verdict(what, ratio / OUTSIDE_NETWORKS)]


def _of_operator(row: Mapping[str, Any]) -> list[Verdict]:
    contestants = row["contestants"]
    native = contestants["native"]
    found: list[Verdict] = []

    def times(name: str, bar: float, span: str) -> None:
        if name in contestants:
            ratio = contestants[name]["times_native"][span]
            found.append(Verdict(f"{ratio:.1f} × {name}, bar {bar:g}", ratio / bar))

    if row["device"] == "cpu":
        for name, bar in CPU.get(row["operator"], {}).items():
            times(name, bar, "both_warm")
    elif row["operator"] in CUDA:
        microseconds, span, bar = CUDA[row["operator"]]
        took = 1e6 * native["seconds"][f"{span}_cold"]
        found.append(Verdict(f"{took:.1f} µs {span}, bar {microseconds:g}", microseconds / took))
        times("reference", bar, f"{span}_cold")
    reference = contestants.get("reference")
    if reference is None:
        return found
    if row["operator"] in CPU and reference.get("saved_bytes"):
        kept, whole = native["saved_bytes"], reference["saved_bytes"]
        what = f"saves {kept:,} of the reference's {whole:,} bytes, bar 1/{SAVED}"
        found.append(Verdict(what, whole / SAVED / max(kept, 1), exact=True))
    for name in COMPOSITIONS:
        if row["device"] == "cpu" and name in contestants:
            ratio = reference["times_native"]["both_warm"] / contestants[name]["times_native"]["both_warm"]
            what = f"reference is {ratio:.2f} × {name}, bar {REFERENCE_TO_COMPOSITION}"
            found.append(Verdict(what, REFERENCE_TO_COMPOSITION / ratio))
    return found
