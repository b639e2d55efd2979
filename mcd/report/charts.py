"""Line charts as SVG text, for pages that need no script and no other file."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's, which the colour-blind tell apart; without yellow, which is too light for a line on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

# A chart is a few hundred pixels wide; a line of few points gets dots.
_MOST, _FEW = 300, 40
# Text stays text, ids are the same in every run, and a dollar sign is a dollar sign.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mcd",
    "text.parse_math": False,
    "font.size": 7,
    "axes.edgecolor": "#bbb",
    "axes.labelcolor": "#666",
    "text.color": "#222",
    "xtick.color": "#bbb",
    "ytick.color": "#bbb",
    "xtick.labelcolor": "#666",
    "ytick.labelcolor": "#666",
}

Line = Sequence[tuple[float, float]]


def line_chart(title: str, lines: Mapping[str, Line], unit: str = "steps") -> Markup:
    """An SVG of lines (x from 0, y) by name, with the title inside; points that are not finite are left out.

    Returns:
        The SVG, or "" where there is no point.
    """
    kept = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    kept = {name: line[:: max(1, len(line) // _MOST)] for name, line in kept.items() if line}
    if not kept:
        return Markup()
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 1.8))
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.18, right=0.97, bottom=0.19, top=0.86)
        for colour, (name, line) in zip(COLOURS, kept.items(), strict=False):
            marker = "o" if len(line) <= _FEW else ""
            axes.plot(*zip(*line, strict=True), color=colour, label=name, linewidth=1.2, marker=marker, markersize=2.5)
        axes.set_title(title, loc="left", fontsize=8.5)
        axes.set_xlabel(unit, loc="right", labelpad=1)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#e8e8e8", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=2)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        # A factor above the axis would push the title out of the picture.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        if len(kept) > 1:
            axes.legend(
                loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(kept), frameon=False, handlelength=1, borderpad=0
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, _, drawing = buffer.getvalue().partition("<svg ")
    said = "; ".join(f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in kept.items())
    return Markup('<svg role="img" aria-label="{}" ').format(f"{title}: {said}") + Markup(drawing)
