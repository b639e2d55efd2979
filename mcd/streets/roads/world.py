"""Random road scenes: streets of towns, suburbs, country roads and motorways, with their traffic and light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mcd.streets.roads import surroundings, things
from mcd.streets.roads.cross_section import WHITE, Lanes, make_road
from mcd.streets.roads.scene import FOLLOWS_ROAD, Builder, Cut, Material, Scene, Terrain
from mcd.streets.roads.shading import Light, Surface
from mcd.streets.roads.surroundings import sun_shadow

KINDS = {"town": 0.34, "suburb": 0.22, "country": 0.16, "motorway": 0.28}


@dataclass(frozen=True)
class World:
    """A scene, its ground and light, the camera's lane (lateral) and its speed in m a frame."""

    kind: str
    scene: Scene
    surface: Surface
    light: Light
    lane: float
    speed: float


def make_world(rng: np.random.Generator, kind: str | None = None) -> World:
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    curve = 0.0 if rng.random() < 0.35 else rng.normal(0, 0.0012 if kind == "motorway" else 0.0035)
    steep = 0.03 if kind == "motorway" else 0.05
    bend = 0.0 if rng.random() < 0.3 else rng.normal(0, 0.00025)
    terrain = Terrain(float(rng.normal(0, steep / 2)), float(bend), float(curve))
    b = Builder(terrain, rng)
    light = _light(rng)
    surface, lanes = make_road(rng, kind)
    speed = rng.uniform(0.6, 1.5) * {"town": 0.8, "suburb": 0.9, "country": 1.6, "motorway": 2.2}[kind]
    lane = lanes.own[rng.integers(len(lanes.own))] + rng.normal(0, 0.25)
    _horizon(b)
    getattr(surroundings, kind)(b, surface, lanes, light)
    _traffic(b, kind, lanes, lane, speed, light)
    _marks(b, lanes)
    return World(kind, b.scene(), surface, light, float(lane), float(speed))


def _light(rng: np.random.Generator) -> Light:
    overcast = rng.random() < 0.4
    height, turn = rng.uniform(0.15, 1.3), rng.uniform(0, 2 * math.pi)
    sun = np.array([math.cos(height) * math.sin(turn), -math.sin(height), math.cos(height) * math.cos(turn)])
    direct = rng.uniform(0, 0.15) if overcast else rng.uniform(0.35, 0.9)
    grey = rng.uniform(0.6, 0.98)
    low = grey * rng.uniform((0.9, 0.95, 0.98), (1.0, 1.0, 1.05))
    top = low * rng.uniform(0.8, 1.0) if overcast else rng.uniform((0.2, 0.38, 0.6), (0.5, 0.65, 0.9))
    warm = rng.uniform(0, 0.2)
    return Light(
        sun=sun,
        direct=float(direct),
        ambient=float(rng.uniform(0.55, 0.9) if overcast else rng.uniform(0.25, 0.5)),
        sky_top=tuple(top),
        sky_low=tuple(low),
        sun_colour=(1 + warm / 2, 1.0, 1 - warm),
        clouds=float(rng.uniform(0, 0.7)),
        cloud_colour=float(rng.uniform(0.7, 1.0)),
        visibility=float(math.exp(rng.uniform(math.log(120), math.log(3000)))),
    )


def _horizon(b: Builder) -> None:
    """Woods and hills far away."""
    rng = b.rng
    for distance in sorted(rng.uniform(130, 380, rng.integers(0, 4)), reverse=True):
        tall, colour = rng.uniform(6, 30), things.leaf(rng) * rng.uniform(0.7, 1.5)
        b.at(0.0, 0.0)
        b.owner = FOLLOWS_ROAD
        x0, x1 = (
            sorted(rng.choice((-1, 1)) * rng.uniform((50, -500), (500, 300))) if rng.random() < 0.5 else (-600, 600)
        )
        corners = [(x0, -6, distance), (x1, -6, distance), (x1, tall, distance), (x0, tall, distance)]
        look = (rng.uniform(0.02, 0.3), rng.uniform(0.1, 0.7), 0.0)
        b.quad(corners, colour, 0.3, Material.FOLIAGE, Cut.RAGGED, look=look, two_sided=True)
        b.owner = -1


def _traffic(b: Builder, kind: str, lanes: Lanes, lane: float, speed: float, light: Light) -> None:
    """Vehicles in every lane; many keep the camera's own speed."""
    rng = b.rng
    names = ("hatch", "sedan", "suv", "van", "lorry", "bus")
    shares = {"motorway": (0.3, 0.24, 0.15, 0.11, 0.19, 0.01), "town": (0.38, 0.25, 0.16, 0.11, 0.05, 0.05)}
    density = math.exp(rng.uniform(math.log(0.25), math.log(3.0)))
    stopped = kind != "motorway" and rng.random() < 0.15
    for middles, direction in ((lanes.own, 1), (lanes.other, -1)):
        for middle in middles:
            own = direction > 0 and abs(middle - lane) < 1.4
            first = (
                rng.uniform(-6, 25) if not own else rng.uniform(4.5, 14) if rng.random() < 0.5 else rng.uniform(14, 60)
            )
            flow = speed * (rng.uniform(0.9, 1.1) if own or rng.random() < 0.6 else rng.uniform(0.5, 1.4))
            z = first
            while z < 170:
                name = str(rng.choice(names, p=shares.get(kind, shares["town"])))
                if kind == "town" and rng.random() < 0.02:
                    name = "tram"
                velocity = 0.0 if stopped else direction * flow * rng.uniform(0.95, 1.05)
                owner = b.mover(0.0, velocity)
                # The origin is a vehicle's middle; its rear must not reach into the camera.
                room = 18.0 if name == "tram" else 9.0 if name in ("lorry", "bus") else 3.0
                at = z + room if own else z
                b.at(middle + rng.normal(0, 0.2), at, (0.0 if direction > 0 else math.pi) + rng.normal(0, 0.015), owner)
                length, width = things.vehicle(b, name)
                sun_shadow(b, light, width / 2, length / 2, 1.6 if room < 9 else 3)
                z = at + length / 2 + room + rng.exponential(22 / density) + (1.0 if stopped else 4.0)
    if kind in ("town", "suburb", "country") and rng.random() < 0.4:
        for _ in range(rng.integers(1, 4)):
            direction = rng.choice((-1, 1))
            x = direction * (abs(lanes.right) - rng.uniform(0.4, 1.2))
            owner = b.mover(0.0, direction * rng.uniform(0.2, 0.6))
            things.cyclist(b.at(x, rng.uniform(5, 50), 0.0 if direction > 0 else math.pi, owner))
    if kind == "town" and rng.random() < 0.3:
        owner = b.mover(rng.choice((-1, 1)) * rng.uniform(0.2, 0.9), 0.0)
        b.at(rng.uniform(-6, 8), rng.uniform(14, 45), rng.choice((-1, 1)) * math.pi / 2, owner)
        things.vehicle(b, str(rng.choice(("hatch", "sedan", "van", "bus"))))


def _marks(b: Builder, lanes: Lanes) -> None:
    """Arrows, letters, cracks, patches, manholes: flat, whatever they look like."""
    rng = b.rng
    wide = lanes.right - lanes.left
    for _ in range(rng.integers(0, 4)):
        b.at(float(rng.choice(lanes.own + lanes.other)), rng.uniform(4, 50))
        length, head, s = rng.uniform(2, 6), rng.uniform(0.25, 0.6), rng.choice((-1, 1))
        b.decal([(-0.09, 0), (0.09, 0), (0.09, length), (-0.09, length)], WHITE, 0.8)
        b.decal([(-head, length), (head, length), (0, length + 1.2)], WHITE, 0.8)
        if rng.random() < 0.4:
            b.decal(
                [(0, 0.55 * length), (s * 0.9, 0.75 * length), (s * 0.9, 0.85 * length), (0, 0.65 * length)], WHITE, 0.8
            )
    for _ in range(rng.integers(0, 10)):
        b.at(lanes.left + rng.uniform(0, 1) * wide, rng.uniform(2, 40), rng.normal(0, 0.1))
        tone, kind = rng.uniform(0.1, 0.6), rng.random()
        if kind < 0.4:  # a patch
            x, z = rng.uniform(0.3, 1.6), rng.uniform(0.5, 8)
            b.decal([(-x, -z), (x, -z), (x, z), (-x, z)], (tone,) * 3, rng.uniform(0.2, 0.7))
        elif kind < 0.8:  # a crack or a filled joint
            at = np.array([0.0, 0.0])
            turn, thick = rng.uniform(0, 3.14), rng.uniform(0.02, 0.07)
            for _ in range(rng.integers(2, 9)):
                step = rng.uniform(0.4, 1.8) * np.array([math.cos(turn), math.sin(turn)])
                side = thick * np.array([-math.sin(turn), math.cos(turn)])
                b.decal([at - side, at + step - side, at + step + side, at + side], (0.08,) * 3, rng.uniform(0.3, 0.9))
                at, turn = at + step, turn + rng.normal(0, 0.4)
        else:
            ring = [(0.35 * math.cos(a), 0.35 * math.sin(a)) for a in np.linspace(0, 6.28, 13)[:-1]]
            b.decal(ring, (0.6 * tone,) * 3, 0.8)
    if rng.random() < 0.25:
        z = rng.uniform(4, 40)
        b.at(0, z)
        b.decal([(0, 0), (lanes.right, 0), (lanes.right, 0.4), (0, 0.4)], WHITE, 0.8)
