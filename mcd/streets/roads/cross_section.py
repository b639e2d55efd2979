"""The road's cross-section: lanes, lines, kerbs and what lies beside the asphalt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcd.streets.roads import things
from mcd.streets.roads.shading import Band, Line, Surface

WHITE, YELLOW = (0.82, 0.82, 0.8), (0.8, 0.62, 0.15)


@dataclass(frozen=True)
class Lanes:
    """Middles of the lanes of the camera's direction and of the other, and the edges of the asphalt."""

    own: list[float]
    other: list[float]
    left: float
    right: float


def make_road(rng: np.random.Generator, kind: str) -> tuple[Surface, Lanes]:
    """A cross-section with traffic on the right; users mirror views for traffic on the left."""
    width = rng.uniform(3.2, 3.8) if kind == "motorway" else rng.uniform(2.6, 3.5)
    asphalt = tuple(rng.uniform(0.2, 0.55) * rng.uniform(0.96, 1.04, 3))
    colour = YELLOW if rng.random() < 0.2 else WHITE
    half = rng.uniform(0.06, 0.16)
    lines: list[Line] = []
    if kind == "motorway":
        count = int(rng.integers(2, 5))
        shoulder = rng.uniform(1.5, 3.2)
        right = count * width
        own = [(i + 0.5) * width for i in range(count)]
        gap = rng.uniform(2.0, 14.0)
        other = [-gap - (i + 0.5) * width for i in range(count)]
        edges = (-gap - right - shoulder, -gap + 0.8, -0.8, right + shoulder)
        period, share = rng.uniform(8, 18), rng.uniform(0.25, 0.5)
        lines += [Line(i * width, half, WHITE, period, share) for i in range(1, count)]
        lines += [Line(-gap - i * width, half, WHITE, period, share) for i in range(1, count)]
        lines += [Line(x, 1.3 * half, colour if x == 0 else WHITE) for x in (0.0, right, -gap, -gap - right)]
        lanes = Lanes(own, other, edges[2], edges[3])
        road_bands = [(edges[0], edges[1]), (edges[2], edges[3])]
    else:
        count = 1 if kind != "town" or rng.random() < 0.6 else 2
        parking = rng.uniform(2.0, 2.6) * (rng.random() < 0.6) if kind != "country" else rng.uniform(0, 0.8)
        right = count * width
        own, other = [(i + 0.5) * width for i in range(count)], [-(i + 0.5) * width for i in range(count)]
        if rng.random() < (0.85 if kind != "suburb" else 0.5):
            solid = rng.random() < 0.3
            lines.append(Line(0.0, half, colour, 0.0 if solid else rng.uniform(4, 12), 1.0 if solid else 0.5))
        lines += [Line(s * i * width, half, WHITE, rng.uniform(5, 10), 0.45) for i in range(1, count) for s in (-1, 1)]
        if kind == "country" or rng.random() < 0.4:
            lines += [Line(s * right, half, WHITE) for s in (-1, 1)]
        lanes = Lanes(own, other, -right - parking, right + parking)
        road_bands = [(lanes.left, lanes.right)]
    bands = _bands(rng, kind, road_bands, asphalt)
    if kind in ("town", "suburb"):
        kerb = tuple(rng.uniform(0.4, 0.75) * np.ones(3))
        lines += [Line(x, 0.12, kerb) for x in (lanes.left, lanes.right)]
        if kind == "town" and rng.random() < 0.15:
            # Tram rails.
            lines += [Line(s * (0.5 * width) + r, 0.04, (0.3, 0.3, 0.32)) for s in (-1, 1) for r in (-0.72, 0.72)]
    if kind in ("town", "suburb") and rng.random() < 0.15:
        bands = _tracks(rng, bands, lines, lanes.right)
    surface = Surface(
        bands,
        lines,
        asphalt=asphalt,
        wet=float(rng.uniform(0.2, 0.9)) if rng.random() < 0.2 else 0.0,
        stains=float(rng.uniform(0.02, 0.16)),
        dapple=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.15 else 0.0,
        paint_wear=float(rng.uniform(0.0, 0.4)),
    )
    return surface, lanes


def _bands(rng: np.random.Generator, kind: str, roads: list[tuple[float, float]], asphalt: tuple) -> list[Band]:
    dry = rng.uniform(0, 1)
    grass = tuple((1 - dry) * things.leaf(rng) * 1.3 + dry * rng.uniform(0.25, 0.5) * np.array([1.1, 1.0, 0.6]))
    earth = tuple(rng.uniform(0.25, 0.5) * np.array([1.1, 1.0, 0.85]))
    paved = tuple(things.stone(rng, 0.35, 0.65))
    field = tuple(
        (things.leaf(rng) * 1.4) if rng.random() < 0.6 else rng.uniform(0.3, 0.6) * np.array([1.1, 0.95, 0.6])
    )
    rough = rng.uniform(0.02, 0.1)

    def side(kind: str) -> list[tuple[float, tuple, float, float]]:
        """From the asphalt outwards: width, colour, contrast, scale."""
        if kind == "town":
            return [(rng.uniform(1.8, 4.5), paved, 0.06, 1.0), (500, paved if rng.random() < 0.5 else earth, 0.1, 0.7)]
        if kind == "suburb":
            verge = [(rng.uniform(0.6, 2.5), grass, 0.25, 1.0)] if rng.random() < 0.5 else []
            return [*verge, (rng.uniform(1.2, 2.2), paved, 0.06, 1.0), (500, grass, 0.25, 0.8)]
        shoulder = [(rng.uniform(0.3, 1.2), earth, 0.2, 1.0)] if rng.random() < 0.6 else []
        return [*shoulder, (rng.uniform(2, 8), grass, 0.25, 1.0), (500, field, 0.2, 0.4)]

    bands: list[Band] = []
    position = roads[0][0]
    outwards = []
    for width, colour, contrast, scale in side(kind):
        outwards.append(Band(position - width, position, colour, contrast, scale))
        position -= width
    bands += outwards[::-1]
    for index, (start, stop) in enumerate(roads):
        if index:
            bands.append(
                Band(roads[index - 1][1], start, grass if rng.random() < 0.6 else (*asphalt[:2], 0.41), 0.2, 1.0)
            )
        bands.append(Band(start, stop, asphalt, rough, 1.2))
    position = roads[-1][1]
    for width, colour, contrast, scale in side(kind):
        bands.append(Band(position, position + width, colour, contrast, scale))
        position += width
    return bands


def _tracks(rng: np.random.Generator, bands: list[Band], lines: list[Line], edge: float) -> list[Band]:
    """Ballast with sleepers and rails of trams right of the road, in place of the bands there."""
    grey = rng.uniform(0.25, 0.5) * np.array([1.05, 1.0, 0.95])
    count, start = int(rng.integers(1, 3)), edge + rng.uniform(0.3, 1.5)
    stop = start + 3.2 * count
    rust = tuple(rng.uniform(0.15, 0.4) * np.array([1.15, 1.0, 0.9]))
    for track in range(count):
        middle = start + 1.6 + 3.2 * track
        lines.append(Line(middle, 1.25, tuple(0.6 * grey), rng.uniform(0.6, 0.75), 0.4))
        lines += [Line(middle + side * 0.72, 0.045, rust) for side in (-1, 1)]
    left = [band for band in bands if band.stop <= edge + 1e-6]
    beyond = [
        Band(max(band.start, stop), band.stop, band.colour, band.contrast, band.scale)
        for band in bands
        if band.stop > stop
    ]
    return [*left, Band(edge, start, left[-1].colour, 0.1, 1.0), Band(start, stop, tuple(grey), 0.45, 1.5), *beyond]
