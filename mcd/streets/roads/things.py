"""What stands and drives on a road: vehicles, people, trees, poles, signs, houses, bridges."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from mcd.streets.roads.scene import Array, Builder, Cut, Material

GLASS = (0.1, 0.11, 0.13)
TYRE = (0.05, 0.05, 0.055)


def paint(rng: np.random.Generator) -> Array:
    """A vehicle's colour: mostly white, grey and black, as on roads."""
    if rng.random() < 0.65:
        return np.clip(rng.choice([0.05, 0.12, 0.3, 0.5, 0.75, 0.85]) * rng.uniform(0.95, 1.05, 3), 0, 0.9)
    return np.clip(rng.uniform(0.08, 0.6) * rng.dirichlet((0.8, 0.8, 0.8)) * 3, 0.02, 0.85)


def stone(rng: np.random.Generator, low: float = 0.25, high: float = 0.75) -> Array:
    """A colour of walls: grey to warm."""
    warm = rng.uniform(0, 0.14)
    return rng.uniform(low, high) * np.array([1 + warm, 1.0, 1 - warm]) * rng.uniform(0.94, 1.06, 3)


def leaf(rng: np.random.Generator) -> Array:
    green = np.array([rng.uniform(0.45, 1.05), 1.0, rng.uniform(0.3, 0.6)])
    return rng.uniform(0.09, 0.32) * green


def vehicle(b: Builder, kind: str) -> tuple[float, float]:
    """A vehicle at the builder's place, its front towards +z; returns length and width."""
    if kind in ("lorry", "bus", "tram"):
        return _large(b, kind)
    rng = b.rng
    van = kind == "van"
    length = rng.uniform(4.7, 6.2) if van else rng.uniform(3.5, 5.0)
    width = rng.uniform(1.85, 2.1) if van else rng.uniform(1.6, 1.95)
    height = rng.uniform(1.95, 2.7) if van else (rng.uniform(1.55, 1.85) if kind == "suv" else rng.uniform(1.35, 1.5))
    colour, clear = paint(rng), rng.uniform(0.18, 0.28) + 0.05 * (kind == "suv")
    belt = height * (rng.uniform(0.5, 0.6) if van else rng.uniform(0.58, 0.66))
    rear, front = -length / 2, length / 2
    hood = front - (rng.uniform(0.6, 1.1) if van else rng.uniform(0.95, 1.4))
    boot = rear + (rng.uniform(0.5, 1.0) if kind == "sedan" else 0.04)
    _wheels(b, length, width, rng.uniform(0.29, 0.36), (-0.32, 0.33))
    belly = 0.4 * colour if rng.random() < 0.4 else colour
    b.hexa((clear, rear, front), (rear, 0.55 * belt), (front, 0.55 * belt), (0.96 * width, width), belly, sides="lrbf")
    low = 0.55 * belt
    body = b.hexa((low, rear, hood), (rear + 0.03, belt), (hood, belt), (width, 0.95 * width), colour, sides="lrbt")
    nose = b.hexa(
        (low, hood, front),
        (hood, belt),
        (front - 0.12, rng.uniform(0.78, 0.92) * belt),
        (width, 0.93 * width),
        colour,
        sides="lrft",
    )
    slope = rng.uniform(0.25, 0.5) if van else rng.uniform(0.55, 0.95)
    back = rng.uniform(0.02, 0.12) if van else rng.uniform(0.2, 0.6) if kind != "sedan" else rng.uniform(0.5, 0.8)
    top = (boot + back, height), (hood - slope + 0.15, height)
    cabin = b.hexa(
        (belt, boot, hood + 0.15), *top, (0.93 * width, (0.88 if van else rng.uniform(0.72, 0.82)) * width), colour
    )
    panes: dict[str, Any] = {"look": (rng.uniform(0.1, 0.7), 0.0, 0.0), "material": Material.GLASS, "contrast": 0.05}
    b.inlay(cabin["f"], (0.06, 0.94), (0.06, 0.9), GLASS, **panes)
    if not van or rng.random() < 0.5:
        b.inlay(cabin["b"], (0.08, 0.92), (0.1, 0.85), GLASS, **panes)
    for side, places in (("l", ((0.06, 0.45), (0.5, 0.9))), ("r", ((0.1, 0.5), (0.55, 0.94)))):
        shown = places if not van or rng.random() < 0.4 else places[:1] if side == "l" else places[1:]
        for place in shown:
            b.inlay(cabin[side], place, (0.08, 0.85), GLASS, **panes)
    _ends(b, body["b"], nose["f"])
    _ground_shadow(b, length, width, height)
    return length, width


def _wheels(b: Builder, length: float, width: float, radius: float, axles: tuple[float, ...]) -> None:
    hub = b.rng.uniform(0.15, 0.6)
    for share in axles:
        z = share * length
        for side in (-1, 1):
            x = side * (width / 2 - 0.12)
            corners = np.array(
                [(x - 0.1, 0, 0), (x + 0.1, 0, 0), (x + 0.1, 1.7 * radius, 0), (x - 0.1, 1.7 * radius, 0)]
            )
            for end, sign in ((z - 0.9 * radius, 1), (z + 0.9 * radius, -1)):
                face = corners + np.array([0, 0, end])
                b.quad(face if sign > 0 else face[[1, 0, 3, 2]], TYRE)
            disc = np.array([(0, 0, -1), (0, 0, 1), (0, 2, 1), (0, 2, -1)]) * radius
            disc = disc if side > 0 else disc[[1, 0, 3, 2]]
            b.quad(
                disc + np.array([side * (width / 2 + 0.01), 0, z]),
                (hub, hub, hub),
                material=Material.WHEEL,
                cut=Cut.DISC,
                look=(0.0, 0.0, 2 * radius),
            )


def _ends(b: Builder, back: Array, front: Array) -> None:
    rng = b.rng
    lit = rng.random() < 0.3
    red = (0.95, 0.15, 0.1) if lit else (0.5, 0.05, 0.05)
    wide, low = rng.uniform(0.12, 0.24), rng.uniform(0.2, 0.55)
    for face, colour in ((back, red), (front, (0.9, 0.9, 0.85) if lit else (0.6, 0.62, 0.65))):
        for place in ((0.02, wide), (1 - wide, 0.98)):
            b.inlay(face, place, (low, min(low + rng.uniform(0.2, 0.45), 0.98)), colour, contrast=0.02)
    b.inlay(back, (0.36, 0.64), (0.1, 0.4), (0.8, 0.8, 0.75), contrast=0.05)
    b.inlay(front, (0.25, 0.75), (0.05, 0.5), (0.08, 0.08, 0.09), contrast=0.1)


def _ground_shadow(b: Builder, length: float, width: float, height: float) -> None:
    """The dark under a body; the sun's shadow is added by the world, which knows the sun."""
    x, z = width / 2, length / 2
    b.decal([(-x, -z), (x, -z), (x, z), (-x, z)], None, b.rng.uniform(0.55, 0.85))
    x, z = x + 0.18, z + 0.2
    b.decal([(-x, -z), (x, -z), (x, z), (-x, z)], None, b.rng.uniform(0.2, 0.45))


def _large(b: Builder, kind: str) -> tuple[float, float]:
    rng = b.rng
    width, height = rng.uniform(2.3, 2.55), rng.uniform(2.8, 4.0)
    length = {"lorry": rng.uniform(6, 16.5), "bus": rng.uniform(9, 14), "tram": rng.uniform(18, 32)}[kind]
    colour, rear, front = paint(rng), -length / 2, length / 2
    clear = 0.3 if kind != "lorry" else rng.uniform(0.7, 1.1)
    if kind != "tram":
        _wheels(b, length, width, rng.uniform(0.42, 0.52), (-0.36, -0.25, 0.36) if length > 9 else (-0.3, 0.33))
    panes: dict[str, Any] = {"look": (rng.uniform(0.1, 0.6), 0.0, 0.0), "material": Material.GLASS, "contrast": 0.05}
    if kind == "lorry":
        cab = rng.uniform(1.6, 2.3)
        if rng.random() < 0.15:
            return _tanker(b, length, width, height, cab, clear)
        box = b.hexa(
            (clear, rear, front - cab - 0.4),
            (rear, height),
            (front - cab - 0.4, height),
            (width, width),
            stone(rng, 0.3, 0.9),
        )
        b.hexa((0.5, rear + 1, front - cab), (rear + 1, clear), (front - cab, clear), (0.8, 0.8), (0.07, 0.07, 0.07))
        b.hexa((0.45, rear, rear + 0.1), (rear, clear), (rear + 0.1, clear), (width * 0.9, width), (0.08, 0.08, 0.08))
        top = rng.uniform(0.8, 1.0) * height
        cabin = b.hexa((0.4, front - cab, front), (front - cab, top), (front - 0.2, top), (width, 0.96 * width), colour)
        b.inlay(cabin["f"], (0.06, 0.94), (0.42, 0.8), GLASS, **panes)
        for side, place in (("l", (0.1, 0.6)), ("r", (0.4, 0.9))):
            b.inlay(cabin[side], place, (0.45, 0.78), GLASS, **panes)
        if rng.random() < 0.5:
            for side in "lrb":
                left, right = sorted(rng.uniform(0.1, 0.9, 2))
                look = (rng.uniform(0.3, 0.9), 0.0, 0.0)
                b.inlay(box[side], (left, right), (0.3, 0.75), paint(rng), material=Material.SIGN, look=look)
        _ends(
            b,
            b.hexa((clear - 0.3, rear - 0.02, rear), (rear - 0.02, clear), (rear, clear), (width,) * 2, (0.1,) * 3)[
                "b"
            ],
            cabin["f"],
        )
    else:
        body = b.box((width, height - clear, length), colour, bottom=clear)
        for side in "lr":
            edges = np.linspace(0.02, 0.98, max(int(length / 1.6), 3))
            for start, stop in pairwise(edges):
                b.inlay(body[side], (start, stop - 0.01), (0.42, 0.8), GLASS, **panes)
        b.inlay(body["f"], (0.05, 0.95), (0.35, 0.85), GLASS, **panes)
        b.inlay(body["b"], (0.1, 0.9), (0.45, 0.8), GLASS, **panes)
        b.inlay(body["b"], (0.03, 0.14), (0.08, 0.3), (0.6, 0.06, 0.05))
        b.inlay(body["b"], (0.86, 0.97), (0.08, 0.3), (0.6, 0.06, 0.05))
    _ground_shadow(b, length, width, height)
    return length, width


def _tanker(b: Builder, length: float, width: float, height: float, cab: float, clear: float) -> tuple[float, float]:
    """A round tank behind a cab."""
    rng = b.rng
    rear, front, colour = -length / 2, length / 2, paint(rng)
    tank, radius = stone(rng, 0.4, 0.9), (height - clear) / 2
    half = (length - cab) / 2
    for z in np.linspace(rear + radius, front - cab - radius, 5):
        b.ball((0, clear + radius, z), (width / 2, radius, max(half / 3, radius)), tank)
    b.hexa((0.5, rear, front - cab), (rear, clear + 0.3), (front - cab, clear + 0.3), (1.0, 1.0), (0.08, 0.08, 0.08))
    top = rng.uniform(0.75, 0.95) * height
    cabin = b.hexa((0.4, front - cab, front), (front - cab, top), (front - 0.2, top), (width, 0.96 * width), colour)
    b.inlay(cabin["f"], (0.06, 0.94), (0.42, 0.8), GLASS, material=Material.GLASS, look=(0.4, 0.0, 0.0))
    bumper = b.hexa((0.5, rear - 0.05, rear), (rear - 0.05, 0.9), (rear, 0.9), (width,) * 2, (0.12, 0.12, 0.12))
    _ends(b, bumper["b"], cabin["f"])
    _ground_shadow(b, length, width, height)
    return length, width


def person(b: Builder) -> None:
    rng = b.rng
    tall, shirt, trousers = rng.uniform(1.5, 1.9), paint(rng), rng.uniform(0.04, 0.35) * rng.uniform(0.7, 1.3, 3)
    hip, step = 0.48 * tall, rng.uniform(0.0, 0.25)
    for side in (-1, 1):
        b.ball((side * 0.09, hip / 2, side * step), (0.085, hip / 2 + 0.03, 0.12), trousers)
        b.ball((side * 0.25, 0.66 * tall, -side * step * 0.6), (0.06, 0.17 * tall, 0.09), shirt)
    b.ball((0, 0.66 * tall, 0), (0.21, 0.2 * tall, 0.14), shirt)
    b.ball((0, tall - 0.12, 0), (0.1, 0.13, 0.11), (0.5, 0.36, 0.28) if rng.random() < 0.6 else (0.08, 0.07, 0.06))
    b.decal([(-0.3, -0.25), (0.3, -0.25), (0.3, 0.25), (-0.3, 0.25)], None, 0.45)


def cyclist(b: Builder) -> None:
    rng = b.rng
    for z in (-0.52, 0.52):
        corners = [(0, 0, z - 0.34), (0, 0, z + 0.34), (0, 0.68, z + 0.34), (0, 0.68, z - 0.34)]
        b.quad(corners, (0.06, 0.06, 0.06), cut=Cut.RING, look=(0.82, 0.0, 0.0), two_sided=True)
        b.hexa((0.02, z - 0.33, z + 0.33), (z - 0.1, 0.66), (z + 0.1, 0.66), (0.04, 0.04), TYRE, sides="bf")
    b.hexa((0.4, -0.3, 0.3), (-0.25, 0.8), (0.4, 0.85), (0.05, 0.05), paint(rng), sides="lrbf")
    shirt, trousers = paint(rng), rng.uniform(0.04, 0.3) * rng.uniform(0.7, 1.3, 3)
    for side in (-1, 1):
        b.ball((side * 0.1, 0.65, 0.05), (0.08, 0.36, 0.14), trousers)
        b.ball((side * 0.24, 1.15, 0.25), (0.06, 0.14, 0.28), shirt)
    b.ball((0, 1.2, 0.0), (0.2, 0.33, 0.2), shirt)
    b.ball((0, 1.65, 0.12), (0.11, 0.14, 0.12), paint(rng))
    b.decal([(-0.25, -0.8), (0.25, -0.8), (0.25, 0.8), (-0.25, 0.8)], None, 0.4)


def tree(b: Builder) -> None:
    rng = b.rng
    tall, green = rng.uniform(3.5, 14), leaf(rng)
    trunk = rng.uniform(0.08, 0.25) * (0.5 + tall / 12)
    conifer = rng.random() < 0.25
    bark = rng.uniform(0.1, 0.3) * np.array([1.1, 1.0, 0.85])
    b.hexa(
        (0, -trunk, trunk), (-0.7 * trunk, 0.7 * tall), (0.7 * trunk, 0.7 * tall), (2 * trunk, 1.3 * trunk), bark, 0.2
    )
    if conifer:
        for share in (0.3, 0.5, 0.7, 0.88):
            wide = 0.24 * tall * (1.05 - share)
            b.ball((0, share * tall, 0), (wide, 0.16 * tall, wide), green, 1.0, True)
    else:
        wide = rng.uniform(0.2, 0.34) * tall
        for _ in range(rng.integers(3, 7)):
            x, z = rng.uniform(-0.6, 0.6, 2) * wide
            radius = wide * rng.uniform(0.5, 0.85)
            shade = green * rng.uniform(0.85, 1.15)
            b.ball(
                (x, tall * rng.uniform(0.55, 0.88), z),
                (radius, radius * rng.uniform(0.7, 1.1), radius),
                shade,
                1.0,
                True,
            )
    r = 0.25 * tall
    b.decal([(r * math.cos(a), r * math.sin(a)) for a in np.linspace(0, 6.28, 9)[:-1]], None, rng.uniform(0, 0.3))


def old_tree(b: Builder, tall: float, crown: float, green: Array) -> None:
    """A thick trunk under a wide crown."""
    rng = b.rng
    trunk, clear = rng.uniform(0.18, 0.4), rng.uniform(0.2, 0.35) * tall
    bark = rng.uniform(0.08, 0.25) * np.array([1.1, 1.0, 0.85])
    b.hexa(
        (0, -trunk, trunk), (-0.8 * trunk, 0.6 * tall), (0.8 * trunk, 0.6 * tall), (2 * trunk, 1.5 * trunk), bark, 0.25
    )
    for _ in range(rng.integers(4, 8)):
        x, z = rng.uniform(-0.55, 0.55, 2) * crown
        radius = crown * rng.uniform(0.55, 0.8)
        middle = clear + radius + rng.uniform(0, 1) * max(tall - clear - 2 * radius, 0.1)
        b.ball((x, middle, z), (radius, 0.85 * radius, radius), green * rng.uniform(0.8, 1.2), 0.7, True)


def bush(b: Builder) -> None:
    rng = b.rng
    green = leaf(rng)
    for _ in range(rng.integers(1, 4)):
        r = rng.uniform(0.4, 1.6)
        b.ball(
            (rng.uniform(-1, 1), 0.5 * r, rng.uniform(-1.5, 1.5)),
            (r, 0.8 * r, r),
            green * rng.uniform(0.85, 1.15),
            0.8,
            True,
        )


def pole(b: Builder, tall: float, arm: float = 0.0) -> None:
    rng = b.rng
    r, grey = rng.uniform(0.05, 0.14), rng.uniform(0.12, 0.6)
    colour = grey * rng.uniform(0.9, 1.1, 3)
    b.hexa((0, -r, r), (-0.7 * r, tall), (0.7 * r, tall), (2 * r, 1.4 * r), colour, sides="lrbf")
    if arm:
        for z in (-0.06, 0.06):
            corners = np.array([(0, tall - 0.12, z), (arm, tall - 0.05, z), (arm, tall + 0.05, z), (0, tall, z)])
            b.quad(corners, colour, two_sided=True)
        b.hexa((tall - 0.1, -0.15, 0.15), (-0.1, tall + 0.08), (0.1, tall + 0.08), (0.0, 0.0), colour, sides="")


def sign(b: Builder) -> None:
    """A traffic sign, a light or a board on its post."""
    rng = b.rng
    tall = rng.uniform(2.0, 3.2)
    pole(b, tall)
    kind = rng.random()
    if kind < 0.5:
        size = rng.uniform(0.5, 0.9)
        x = size / 2
        corners = [(-x, tall - size, -0.16), (x, tall - size, -0.16), (x, tall, -0.16), (-x, tall, -0.16)]
        colours = ((0.75, 0.08, 0.08), (0.1, 0.25, 0.65), (0.85, 0.85, 0.8), (0.85, 0.7, 0.1))
        b.quad(corners, colours[rng.integers(4)], cut=Cut.DISC if rng.random() < 0.6 else Cut.NONE, two_sided=True)
    elif kind < 0.75:
        b.hexa((tall - 0.9, -0.15, 0.15), (-0.15, tall), (0.15, tall), (0.35, 0.35), (0.05, 0.05, 0.05))
        face = np.array(
            [(-0.12, tall - 0.85, -0.17), (0.12, tall - 0.85, -0.17), (0.12, tall, -0.17), (-0.12, tall, -0.17)]
        )
        place = rng.integers(3) * 0.33
        b.inlay(
            face,
            (0.1, 0.9),
            (place, place + 0.3),
            ((0.1, 0.9, 0.3), (0.9, 0.7, 0.1), (0.95, 0.1, 0.1))[rng.integers(3)],
        )
    else:
        w, h = rng.uniform(0.8, 2.5), rng.uniform(0.5, 1.5)
        corners = [(-w / 2, tall - h, -0.16), (w / 2, tall - h, -0.16), (w / 2, tall, -0.16), (-w / 2, tall, -0.16)]
        b.quad(corners, stone(rng, 0.2, 0.9), material=Material.SIGN, look=(h / 3, 0, 0), two_sided=True)


def house(b: Builder, width: float, depth: float, height: float, side: int, gable: bool) -> None:
    """Walls around the builder's place, `width` along the road; `side` -1 left of the road, 1 right."""
    rng = b.rng
    colour, tone = stone(rng), 1.0 if rng.random() < 0.92 else 0.0
    look = (rng.uniform(1.8, 4.5), rng.uniform(2.6, 3.6), tone)
    faces = b.box((depth, height, width), colour, material=Material.FACADE, look=look, contrast=rng.uniform(0.03, 0.15))
    if rng.random() < 0.4:
        share = min(3.2 / height, 0.9)
        b.inlay(faces["r" if side < 0 else "l"], (0, 1), (0, share), stone(rng, 0.1, 0.7), contrast=0.3, out=0.05)
    if gable:
        roof, top, over = rng.uniform(0.12, 0.4) * np.array([1.25, 0.9, 0.8]), height + rng.uniform(1.5, 4), 0.4
        x, z = depth / 2 + over, width / 2 + over
        b.quad([(-x, height - 0.2, z), (-x, height - 0.2, -z), (0, top, -z), (0, top, z)], roof, 0.15, two_sided=True)
        b.quad([(x, height - 0.2, -z), (x, height - 0.2, z), (0, top, z), (0, top, -z)], roof, 0.15, two_sided=True)
        z = width / 2
        for end in (-z, z):
            corners = [(-depth / 2, height, end), (depth / 2, height, end), (0, top, end), (0, top, end)]
            b.quad(corners, colour, 0.08, two_sided=True)
    elif rng.random() < 0.5:
        b.box((depth + 0.5, 0.4, width + 0.5), 0.7 * colour, bottom=height)


def bridge(b: Builder, half_width: float, along: float) -> None:
    """Over the road, with walls at its sides."""
    rng = b.rng
    colour, low, deep = stone(rng, 0.3, 0.7), rng.uniform(4.8, 6.5), rng.uniform(5, 14)
    b.at(0.0, along)
    b.hexa(
        (low, -deep / 2, deep / 2), (-deep / 2, low + 1.3), (deep / 2, low + 1.3), (120, 120), colour, 0.12, sides="bft"
    )
    under = [(-60, low, deep / 2), (60, low, deep / 2), (60, low, -deep / 2), (-60, low, -deep / 2)]
    b.quad(under, 0.35 * colour, two_sided=True)
    if rng.random() < 0.6:
        rail = [
            (-60, low + 1.3, -deep / 2),
            (60, low + 1.3, -deep / 2),
            (60, low + 2.2, -deep / 2),
            (-60, low + 2.2, -deep / 2),
        ]
        b.quad(rail, (0.4, 0.45, 0.45), cut=Cut.PICKETS, look=(0.5, 0.15, 0.0), two_sided=True)
    for side in (-1, 1):
        b.at(side * (half_width + 10), along)
        b.box((20 - 2 * rng.uniform(0.5, 2), low, deep), 0.8 * colour, contrast=0.15)
    b.at(0.0, along)
    b.decal([(-60, -deep / 2), (60, -deep / 2), (60, deep / 2), (-60, deep / 2)], None, 0.5)


def gantry(b: Builder, half_width: float, along: float) -> None:
    """Signs over the road."""
    rng = b.rng
    low = rng.uniform(5.0, 6.5)
    for side in (-1, 1):
        b.at(side * (half_width + 0.8), along)
        b.box((0.35, low + 1.5, 0.35), (0.4, 0.42, 0.43))
    b.at(0.0, along)
    b.hexa((low + 0.4, -0.2, 0.2), (-0.2, low + 0.9), (0.2, low + 0.9), (2 * half_width + 2,) * 2, (0.4, 0.42, 0.43))
    for _ in range(rng.integers(1, 4)):
        w, h, x = rng.uniform(2.5, 5), rng.uniform(1.2, 3), rng.uniform(-0.8, 0.8) * half_width
        colour = ((0.05, 0.2, 0.55), (0.02, 0.3, 0.15), (0.85, 0.85, 0.85))[rng.integers(3)]
        corners = [
            (x - w / 2, low, -0.3),
            (x + w / 2, low, -0.3),
            (x + w / 2, low + h, -0.3),
            (x - w / 2, low + h, -0.3),
        ]
        b.quad(corners, colour, material=Material.SIGN, look=(h / 3, 0, 0), two_sided=True)
