"""Line charts as SVG text, for pages that need no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")

_WIDTH, _HEIGHT = 300, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 8, 26, 20
# A chart is a few hundred pixels wide; a line of few points gets dots.
_MOST, _FEW = 300, 40

Line = Sequence[tuple[float, float]]


def line_chart(title: str, lines: Mapping[str, Line], unit: str = "steps") -> str:
    """An SVG of lines (x from 0, y) by name, with the title inside; points that are not finite are left out.

    Returns:
        The SVG, or "" where there is no point.
    """
    kept = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    kept = {name: line[:: max(1, len(line) // _MOST)] for name, line in kept.items() if line}
    if not kept:
        return ""
    values = [y for line in kept.values() for _, y in line]
    end = max(max(x for line in kept.values() for x, _ in line), 1.0)
    margin = 0.05 * ((max(values) - min(values)) or abs(max(values)) or 1.0)
    low, high = min(values) - margin, max(values) + margin

    def across(x: float) -> float:
        return _LEFT + x / end * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    drawing = [f"<text x='{_LEFT}' y='15' class='title'>{escape(title)}</text>"]
    for value in (low + margin, (low + high) / 2, high - margin):
        y = down(value)
        drawing.append(f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e4e4e4'/>")
        drawing.append(f"<text x='{_LEFT - 5}' y='{y + 3.5:.1f}' text-anchor='end'>{value:.3g}</text>")
    drawing.append(f"<text x='{_LEFT}' y='{_HEIGHT - 5}'>0</text>")
    drawing.append(f"<text x='{_WIDTH - _RIGHT}' y='{_HEIGHT - 5}' text-anchor='end'>{end:.0f} {escape(unit)}</text>")
    for colour, line in zip(COLOURS, kept.values(), strict=False):
        places = [(across(x), down(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawing.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.4'/>")
        if len(places) <= _FEW:
            drawing += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2' fill='{colour}'/>" for x, y in places]
    if len(kept) > 1:
        names = " ".join(
            f"<tspan fill='{colour}'>{escape(name)}</tspan>" for colour, name in zip(COLOURS, kept, strict=False)
        )
        drawing.append(f"<text x='{_WIDTH - _RIGHT}' y='15' text-anchor='end'>{names}</text>")
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{escape(title)}'>{''.join(drawing)}</svg>"
