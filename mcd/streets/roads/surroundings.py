"""What stands beside a road: houses, trees, people, parked cars, slopes, barriers, bridges."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mcd.streets.roads import things
from mcd.streets.roads.cross_section import Lanes
from mcd.streets.roads.scene import Array, Builder, Cut, Material
from mcd.streets.roads.shading import Light, Surface


def sun_shadow(b: Builder, light: Light, x: float, z: float, height: float) -> None:
    """The sun's shadow of an upright thing of half widths x and z around the builder's place."""
    if light.direct < 0.3:
        return
    reach = min(height / max(-light.sun[1], 0.1), 25.0)
    cos, sin = math.cos(b.yaw), math.sin(b.yaw)
    away = -light.sun[[0, 2]] * reach
    shift = np.array([cos * away[0] - sin * away[1], sin * away[0] + cos * away[1]])
    foot = np.array([(-x, -z), (x, -z), (x, z), (-x, z)])
    b.decal(_hull(np.concatenate([foot, foot + shift])), None, light.direct / (light.direct + light.ambient) * 0.9)


def _hull(points: Array) -> Array:
    """Convex outline of points [n,2], counter-clockwise."""
    order = sorted(map(tuple, points))

    def half(sequence: list[tuple]) -> list[tuple]:
        kept: list[tuple] = []
        for p in sequence:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2], kept[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(half(order) + half(order[::-1]))


def _along(b: Builder, start: float, stop: float, gap: tuple[float, float]) -> Iterator[float]:
    """Places along the road at random distances."""
    z = start + b.rng.uniform(0, gap[1])
    while z < stop:
        yield z
        z += b.rng.uniform(*gap)


def town(b: Builder, surface: Surface, lanes: Lanes, light: Light) -> None:
    rng = b.rng
    crossing = rng.uniform(15, 80) if rng.random() < 0.5 else -100.0
    wide = rng.uniform(4, 9)
    if crossing > 0:
        surface.crossings.append((crossing, wide))
        if rng.random() < 0.6:
            surface.zebras.append((crossing - wide - 2.5, 1.6))
    elif rng.random() < 0.2:
        surface.zebras.append((rng.uniform(8, 40), 1.8))
    for side, edge in ((-1, -lanes.left), (1, lanes.right)):
        back = edge + rng.uniform(1.5, 9)
        z = rng.uniform(-25, -5)
        gable, even = rng.random() < 0.4, rng.random() < 0.5
        height = rng.uniform(4, 20)
        while z < 170:
            length = rng.uniform(7, 30)
            if not (z < crossing + wide + 3 and z + length > crossing - wide - 3):
                tall = height * rng.uniform(0.8, 1.2) if even else rng.uniform(3.5, 22)
                depth, own = rng.uniform(8, 14), back + rng.uniform(0, 1.5)
                b.at(side * (own + depth / 2), z + length / 2)
                things.house(b, length, depth, tall, side, gable)
                sun_shadow(b, light, depth / 2, length / 2, tall)
            z += length + (0 if rng.random() < 0.6 else rng.uniform(1, 12))
        for z in _along(b, 4, 110, (9, 45)):
            x = side * (edge + rng.uniform(0.4, 1.2))
            what = rng.random()
            if what < 0.35:
                things.pole(b.at(x, z), rng.uniform(5, 9), -side * rng.uniform(0, 3))
                sun_shadow(b, light, 0.1, 0.1, 7)
            elif what < 0.6:
                things.sign(b.at(x, z, rng.normal(0, 0.2)))
            elif what < 0.85:
                things.tree(b.at(x, z))
                sun_shadow(b, light, 0.8, 0.8, 7)
            else:
                things.bush(b.at(x + side, z))
        _people(b, side, edge, int(rng.integers(0, 9)))
        if lanes.right - lanes.own[-1] > 3.4:
            _parked(b, side * (edge - 1.1), light)


def _people(b: Builder, side: int, edge: float, count: int) -> None:
    rng = b.rng
    for _ in range(count):
        z, on_road = rng.uniform(4, 60), rng.random() < 0.1
        x = rng.uniform(-4, 4) if on_road else side * (edge + rng.uniform(0.3, 3))
        owner = b.mover(rng.normal(0, 0.03), rng.normal(0, 0.13))
        things.person(b.at(x, z, rng.uniform(0, 6.28), owner))


def _avenue(b: Builder, lateral: float, light: Light) -> None:
    """A row of old trees whose crowns meet: most of what is above many streets."""
    rng = b.rng
    tall, gap, green = rng.uniform(7, 15), rng.uniform(5, 10), things.leaf(rng) * rng.uniform(0.5, 1.1)
    crown = rng.uniform(0.28, 0.4) * tall
    for z in _along(b, rng.uniform(-4, 20), rng.uniform(50, 160), (0.8 * gap, 1.2 * gap)):
        b.at(lateral + rng.normal(0, 0.3), z)
        things.old_tree(b, tall * rng.uniform(0.85, 1.1), crown, green)
        sun_shadow(b, light, crown, crown, tall)


def _parked(b: Builder, lateral: float, light: Light) -> None:
    rng = b.rng
    z = rng.uniform(-4, 14)
    while z < 110:
        b.at(lateral + rng.normal(0, 0.12), z, (0.0 if rng.random() < 0.6 else math.pi) + rng.normal(0, 0.04))
        length, width = things.vehicle(b, str(rng.choice(("hatch", "sedan", "suv", "van"), p=(0.4, 0.3, 0.2, 0.1))))
        sun_shadow(b, light, width / 2, length / 2, 1.5)
        z += length + (rng.uniform(0.7, 2.0) if rng.random() < 0.7 else rng.uniform(6, 40))


def suburb(b: Builder, surface: Surface, lanes: Lanes, light: Light) -> None:
    rng = b.rng
    if rng.random() < 0.35:
        surface.crossings.append((rng.uniform(15, 70), rng.uniform(3, 6)))
    for side, edge in ((-1, -lanes.left), (1, lanes.right)):
        back = edge + rng.uniform(5, 14)
        for z in _along(b, -10, 150, (14, 30)):
            length, depth, tall = rng.uniform(8, 16), rng.uniform(7, 12), rng.uniform(2.8, 7)
            b.at(side * (back + depth / 2 + rng.uniform(0, 3)), z)
            things.house(b, length, depth, tall, side, rng.random() < 0.85)
            sun_shadow(b, light, depth / 2, length / 2, tall)
        border = rng.random()
        x = side * (edge + rng.uniform(2, 4.5))
        if border < 0.3:
            hedge = rng.uniform(0.8, 2.5)
            look = (rng.uniform(0.5, 2), 0.15, 0.0)
            b.wall(
                (x, x),
                (-5, rng.uniform(20, 120)),
                (0, hedge),
                things.leaf(rng),
                material=Material.FOLIAGE,
                cut=Cut.RAGGED,
                look=look,
            )
        elif border < 0.5:
            b.wall(
                (x, x),
                (-5, rng.uniform(20, 120)),
                (0, rng.uniform(0.6, 1.9)),
                things.stone(rng, 0.2, 0.8),
                contrast=0.15,
            )
        elif border < 0.65:
            look = (rng.uniform(0.15, 0.4), 0.1, 0.0)
            b.wall(
                (x, x),
                (-5, rng.uniform(20, 100)),
                (0, rng.uniform(0.9, 1.6)),
                things.stone(rng, 0.2, 0.9),
                cut=Cut.PICKETS,
                look=look,
            )
        for z in _along(b, 2, 120, (6, 30)):
            x = side * (edge + rng.uniform(0.5, 7))
            kind = rng.random()
            if kind < 0.55:
                things.tree(b.at(x, z))
                sun_shadow(b, light, 1, 1, 7)
            elif kind < 0.8:
                things.bush(b.at(x, z))
            elif kind < 0.92:
                things.pole(b.at(side * (edge + 0.6), z), rng.uniform(5, 9), -side * rng.uniform(0, 2))
            else:
                things.sign(b.at(side * (edge + 0.6), z))
        _people(b, side, edge, int(rng.integers(0, 4)))
        if lanes.right - lanes.own[-1] > 3.4:
            _parked(b, side * (edge - 1.1), light)


def country(b: Builder, surface: Surface, lanes: Lanes, light: Light) -> None:
    rng = b.rng
    for side, edge in ((-1, -lanes.left), (1, lanes.right)):
        _slope(b, side, edge + rng.uniform(1, 6))
        if rng.random() < 0.35:
            _rail(b, side * (edge + rng.uniform(0.4, 1.5)))
        if rng.random() < 0.3:
            _avenue(b, side * (edge + rng.uniform(1.5, 5)), light)
        dense = rng.random()
        for z in _along(b, 3, 160, (3, 12) if dense < 0.35 else (12, 60)):
            x = side * (edge + 1.5 + rng.exponential(7))
            (things.tree if rng.random() < 0.65 else things.bush)(b.at(x, z))
            sun_shadow(b, light, 1, 1, 8)
        if dense < 0.25 or rng.random() < 0.2:
            x, tall = side * (edge + rng.uniform(6, 25)), rng.uniform(6, 18)
            look = (rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.8), 0.0)
            b.wall(
                (x, x),
                (rng.uniform(-5, 40), 220),
                (-1, tall),
                things.leaf(rng),
                material=Material.FOLIAGE,
                cut=Cut.RAGGED,
                look=look,
            )
        for z in _along(b, 5, 150, (25, 50)):
            if rng.random() < 0.5:
                things.pole(b.at(side * (edge + 0.7), z), rng.uniform(0.9, 1.1) if rng.random() < 0.6 else 8.0)
            elif rng.random() < 0.3:
                things.sign(b.at(side * (edge + 1), z))
        if rng.random() < 0.4:
            length, depth = rng.uniform(8, 25), rng.uniform(7, 14)
            b.at(side * (edge + rng.uniform(10, 40)), rng.uniform(15, 130), rng.uniform(-0.5, 0.5))
            things.house(b, length, depth, rng.uniform(3, 7), side, True)


def _slope(b: Builder, side: int, foot: float) -> None:
    """An embankment beside the road, up or down."""
    rng = b.rng
    if rng.random() < 0.5:
        return
    rise, run = rng.uniform(0.8, 7), rng.uniform(3, 14)
    colour = things.leaf(rng) * 1.3 if rng.random() < 0.7 else rng.uniform(0.3, 0.5) * np.array([1.1, 1.0, 0.8])
    x = side * foot, side * (foot + run)
    b.wall(x, (-6, 200), (-0.02, rise), colour, contrast=0.25)
    b.wall((x[1], x[1] + side * 60), (-6, 200), (rise, rise + 0.5), colour * 1.05, contrast=0.25)
    if rng.random() < 0.5:
        for z in _along(b, 5, 150, (6, 30)):
            x_tree = foot + run + rng.uniform(0, 6)
            # Bushes and trees on top: balls have a height of their own.
            r = rng.uniform(1, 3)
            b.at(side * x_tree, z).ball((0, rise + 0.9 * r, 0), (r, r, r), things.leaf(rng), 1.0, True)


def _rail(b: Builder, lateral: float) -> None:
    rng = b.rng
    kind, stop = rng.random(), rng.uniform(40, 220)
    if kind < 0.55:
        grey, top = rng.uniform(0.35, 0.7), rng.uniform(0.65, 0.85)
        b.wall((lateral, lateral), (-5, stop), (top - 0.3, top), (grey, grey, grey * 1.03), contrast=0.08)
        b.wall(
            (lateral, lateral),
            (-5, stop),
            (0, top - 0.3),
            0.7 * grey * np.ones(3),
            cut=Cut.PICKETS,
            look=(rng.uniform(2, 4), 0.12, 0.0),
        )
    elif kind < 0.85:
        stone, top = things.stone(rng, 0.4, 0.8), rng.uniform(0.7, 1.1)
        for s in (-1, 1):
            b.wall((lateral + 0.3 * s, lateral + 0.1 * s), (-5, stop), (0, top), stone, contrast=0.12)
    else:
        tall = rng.uniform(2, 5)
        colour = things.stone(rng, 0.25, 0.7) * (1 if rng.random() < 0.6 else np.array([0.7, 1.0, 0.75]))
        look = (rng.uniform(2, 6), rng.uniform(0.5, 3), -1.0)
        b.wall((lateral, lateral), (-5, stop), (0, tall), colour, contrast=0.12, material=Material.FACADE, look=look)


def motorway(b: Builder, surface: Surface, lanes: Lanes, light: Light) -> None:
    rng = b.rng
    far_left = min(lanes.other) - 5
    middle = lanes.left + max(lanes.other) + 1.8
    if rng.random() < 0.85:
        _rail(b, middle / 2 + rng.normal(0, 0.3))
    for side, edge in ((-1, -far_left), (1, lanes.right)):
        if rng.random() < 0.65:
            _rail(b, side * (edge + rng.uniform(0.3, 1.2)))
        _slope(b, side, edge + rng.uniform(1.5, 6))
        if rng.random() < 0.6:
            x, tall = side * (edge + rng.uniform(6, 30)), rng.uniform(5, 16)
            look = (rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.8), 0.0)
            b.wall(
                (x, x),
                (rng.uniform(-5, 60), 300),
                (-1, tall),
                things.leaf(rng),
                material=Material.FOLIAGE,
                cut=Cut.RAGGED,
                look=look,
            )
        for z in _along(b, 8, 180, (10, 60)):
            x = side * (edge + 3 + rng.exponential(8))
            if rng.random() < 0.6:
                things.tree(b.at(x, z))
            elif rng.random() < 0.5:
                things.bush(b.at(x, z))
            else:
                things.pole(b.at(side * (edge + 1.5), z), rng.uniform(8, 12), -side * rng.uniform(1, 3))
        if rng.random() < 0.3:
            things.sign(b.at(side * (edge + 1.5), rng.uniform(10, 90)))
    half = max(lanes.right, -far_left)
    if rng.random() < 0.3:
        things.bridge(b, half, rng.uniform(25, 170))
    if rng.random() < 0.3:
        things.gantry(b, half, rng.uniform(20, 150))
