"""Colours of what the rasterizer found: textures, materials, markings, decals, light and haze."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.rasterizer import GROUND, SKY, Buffer, Camera, cover, project_corners
from mcd.streets.roads.scene import Array, Material, Scene

Floats = NDArray[Any]  # float32, which NumPy's stubs lose in arithmetic


@dataclass(frozen=True)
class Band:
    """Ground between two lateral places: its colour, its noise's contrast and scale (larger is finer)."""

    start: float
    stop: float
    colour: tuple[float, float, float]
    contrast: float
    scale: float


@dataclass(frozen=True)
class Line:
    """A painted line: its middle, half width, colour, and of a dashed one the period and the painted share."""

    lateral: float
    half: float
    colour: tuple[float, float, float]
    period: float = 0.0
    share: float = 1.0


@dataclass
class Surface:
    """The road's cross-section from left to right, its lines, its crossings (along, half width), wet and worn."""

    bands: list[Band]
    lines: list[Line] = field(default_factory=list)
    crossings: list[tuple[float, float]] = field(default_factory=list)
    zebras: list[tuple[float, float]] = field(default_factory=list)
    asphalt: tuple[float, float, float] = (0.4, 0.4, 0.4)
    wet: float = 0.0  # share of the road
    stains: float = 0.1
    dapple: float = 0.0  # strength of the shadows of leaves
    paint_wear: float = 0.2


@dataclass(frozen=True)
class Light:
    """Direction to the sun [3] (world axes), its strength beside the sky's, colours of sky, sunlight and haze."""

    sun: Array
    direct: float
    ambient: float
    sky_top: tuple[float, float, float]
    sky_low: tuple[float, float, float]
    sun_colour: tuple[float, float, float]
    clouds: float
    cloud_colour: float
    visibility: float  # m


def shade(
    scene: Scene, buffer: Buffer, camera: Camera, ground: Surface, light: Light, textures: list[NoiseTexture]
) -> Floats:
    """Linear colour [H,W,3] of every pixel of the buffer."""
    ray_x, ray_y = camera.rays()
    height, width = camera.size
    x = np.broadcast_to(ray_x, (height, width)).ravel()
    y = np.broadcast_to(ray_y[:, None], (height, width)).ravel()
    turn, eye = camera.T_world_cam[:3, :3].astype(np.float32), camera.T_world_cam[:3, 3].astype(np.float32)
    surface = buffer.surface.ravel()
    colour = np.empty((height * width, 3), np.float32)
    sky = np.nonzero(surface == SKY)[0]
    colour[sky] = _sky(turn, x[sky], y[sky], light, textures[0])
    hit = np.nonzero(surface != SKY)[0]
    x, y, surface = x[hit], y[hit], surface[hit]
    depth = 1 / buffer.inverse.ravel()[hit]
    points = [eye[i] + depth * (turn[i, 0] * x + turn[i, 1] * y + turn[i, 2]) for i in range(3)]
    footprint = depth / np.float32(camera.K[0, 0])
    found = np.empty((len(hit), 3), np.float32)
    on_ground = np.nonzero(surface == GROUND)[0]
    found[on_ground] = _ground(scene, ground, light, textures, _take(points, on_ground), footprint[on_ground], eye)
    on_quad = np.nonzero((surface >= 0) & (surface < len(scene.vertices)))[0]
    found[on_quad] = _quads(scene, light, textures, surface[on_quad], _take(points, on_quad), footprint[on_quad], eye)
    on_ball = np.nonzero(surface >= len(scene.vertices))[0]
    index = surface[on_ball] - len(scene.vertices)
    found[on_ball] = _balls(scene, light, textures, index, _take(points, on_ball), footprint[on_ball])
    colour[hit] = found
    image = colour.reshape(height, width, 3)
    _decals(scene, camera, buffer, image, light)
    haze = np.exp(-1 / (np.maximum(buffer.inverse, 1e-6) * np.float32(light.visibility)))[..., None]
    haze[buffer.surface == SKY] = 1
    return image * haze + np.array(light.sky_low, np.float32) * (1 - haze)


def _take(points: list[Floats], index: NDArray[np.intp]) -> list[Floats]:
    return [axis[index] for axis in points]


def _sky(turn: Floats, x: Floats, y: Floats, light: Light, texture: NoiseTexture) -> Floats:
    ray = [turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] for i in range(3)]
    up = -ray[1] / np.sqrt(ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2)
    share = (up * np.float32(2.2)).clip(0, 1)[:, None]
    colour = np.array(light.sky_low, np.float32) * (1 - share) + np.array(light.sky_top, np.float32) * share
    flat = 1 / np.maximum(up, np.float32(0.06))
    u, v = ray[0] * flat * np.float32(0.9), ray[2] * flat * np.float32(0.9)
    noise = texture.lookup(u, v, np.float32(0.03) * flat)
    cover_share = (np.float32(0.5) * noise + np.float32(2 * light.clouds - 1)).clip(0, 1)[:, None]
    cover_share = cover_share * (up > 0)[:, None]
    return colour + cover_share * (np.float32(light.cloud_colour) - colour)


def _lit(light: Light, normal: Floats) -> Floats:
    """Colour factor [n,3] of a surface with these normals [n,3] (y down)."""
    direct = np.float32(light.direct) * (normal @ light.sun.astype(np.float32)).clip(0, None)
    ambient = np.float32(light.ambient) * (np.float32(0.75) - np.float32(0.25) * normal[:, 1])
    return ambient[:, None] + direct[:, None] * np.array(light.sun_colour, np.float32)


def _noise(texture: NoiseTexture, u: Floats, v: Floats, footprint: Floats, scale: Any, shift: Any = 0.0) -> Floats:
    scale = scale if isinstance(scale, np.ndarray) else np.float32(scale)
    return texture.lookup(u * scale + shift, v * scale + shift, footprint * scale)


def _ground(
    scene: Scene,
    surface: Surface,
    light: Light,
    textures: list[NoiseTexture],
    points: list[Floats],
    footprint: Floats,
    eye: Floats,
) -> Floats:
    x, _, z = points
    lateral = x - np.float32(scene.terrain.curve / 2) * z * z
    edges = np.array([band.stop for band in surface.bands[:-1]], np.float32)
    band = np.searchsorted(edges, lateral)
    crossed = np.zeros(len(z), bool)
    for along, half in surface.crossings:
        crossed |= np.abs(z - np.float32(along)) < half
    road = np.array([b.colour == surface.asphalt for b in surface.bands])[band] | crossed
    colour = np.array([b.colour for b in surface.bands], np.float32)[band]
    colour[crossed] = surface.asphalt
    contrast = np.array([b.contrast for b in surface.bands], np.float32)[band]
    scale = np.array([b.scale for b in surface.bands], np.float32)[band]
    # The pixel is long where the view is flat: the mean of its sides, which the finer drawing makes good.
    slant = np.sqrt(np.maximum(np.hypot(x - eye[0], z - eye[2]) / max(abs(float(eye[1])), 0.5), 1)).astype(np.float32)
    fine = _noise(textures[1], lateral, z, footprint * slant, scale)
    coarse = _noise(textures[0], lateral, z, footprint * slant, np.float32(0.11), 3.3)
    tracks = _noise(textures[0], lateral, z * np.float32(0.04), footprint * slant, np.float32(0.5), 7.7)
    factor = 1 + contrast * fine + np.float32(surface.stains) * (coarse + np.float32(0.7) * tracks * road)
    wear = (np.float32(1.1) - np.float32(surface.paint_wear) * (1 + fine + coarse)).clip(0, 1)
    blur = np.maximum(footprint, np.float32(1e-3))
    for line in surface.lines:
        paint = ((np.float32(line.half) - np.abs(lateral - np.float32(line.lateral))) / blur + np.float32(0.5)).clip(
            0, 1
        )
        if line.period:
            phase = z / np.float32(line.period)
            paint = paint * (phase - np.floor(phase) < np.float32(line.share))
        paint = (paint * wear * ~crossed)[:, None]
        colour += paint * (np.array(line.colour, np.float32) - colour)
    for along, half in surface.zebras:
        stripe = lateral / np.float32(1.0)
        paint = (np.abs(z - np.float32(along)) < half) & (stripe - np.floor(stripe) < 0.5) & road
        colour += (paint * wear)[:, None] * (np.float32(0.85) - colour)
    colour *= factor.clip(0.25, 2.5)[:, None]
    up = np.array([[0.0, -1.0, 0.0]], np.float32)
    lit = _lit(light, up)
    if surface.dapple > 0:
        leaves = _noise(textures[1], lateral, z, footprint * slant, np.float32(0.16), 11.0)
        shadow = (leaves * np.float32(3) + np.float32(0.5)).clip(0, 1)[:, None] * np.float32(surface.dapple)
        dark = _lit(Light(**{**light.__dict__, "direct": 0.0}), up)
        lit = lit * (1 - shadow) + dark * shadow
    colour *= lit
    if surface.wet > 0:
        film = _noise(textures[0], lateral, z, footprint * slant, np.float32(0.2), 5.1)
        flat = np.hypot(x - eye[0], z - eye[2])
        mirror = (flat / (flat + np.float32(12))) ** 2
        share = ((film + np.float32(4 * surface.wet - 2)) * 2).clip(0, 1) * road
        colour *= (1 - np.float32(0.35) * share)[:, None]
        colour += (share * mirror * np.float32(0.75))[:, None] * (np.array(light.sky_low, np.float32) - colour)
    return colour


def _quads(
    scene: Scene,
    light: Light,
    textures: list[NoiseTexture],
    index: NDArray[np.int32],
    points: list[Floats],
    footprint: Floats,
    eye: Floats,
) -> Floats:
    origin = scene.vertices[:, 0].astype(np.float32)
    local = [points[i] - origin[:, i].take(index) for i in range(3)]
    axes = scene.u_axis.astype(np.float32), scene.v_axis.astype(np.float32)
    u, v = (np.sum([local[i] * axis[:, i].take(index) for i in range(3)], axis=0) for axis in axes)
    look = scene.look
    anchor = (index * np.float32(1.37)) % np.float32(14)
    contrast = look[:, 0].take(index)
    fine = textures[1].lookup(u + anchor, v + anchor, footprint)
    coarse = textures[0].lookup(u * np.float32(0.15) + anchor, v * np.float32(0.15), footprint * np.float32(0.15))
    colour = scene.colour.take(index, axis=0)
    material = scene.material.take(index)
    factor = 1 + contrast * (np.float32(0.6) * fine + np.float32(0.8) * coarse)

    wall = np.nonzero(material == Material.FACADE)[0]
    if len(wall):
        pitch_u, pitch_v, tone = (look[:, i].take(index[wall]) for i in (1, 2, 3))
        phase_u, phase_v = u[wall] / pitch_u, v[wall] / pitch_v
        cell_u, cell_v = np.floor(phase_u), np.floor(phase_v)
        blur = (footprint[wall] / pitch_u).clip(1e-3, 1)
        pane = ((np.float32(0.27) - np.abs(phase_u - cell_u - np.float32(0.5))) / blur + np.float32(0.5)).clip(0, 1)
        pane *= ((np.float32(0.28) - np.abs(phase_v - cell_v - np.float32(0.5))) / blur + np.float32(0.5)).clip(0, 1)
        # Curtains, reflections: each window has its own grey.
        random = np.sin(cell_u * np.float32(12.9898) + cell_v * np.float32(78.233) + index[wall]) * np.float32(437.5)
        grey = np.float32(0.08) + np.float32(0.4) * (random - np.floor(random)) ** 3
        share = (pane * (tone > 0))[:, None]
        colour[wall] += share * (grey[:, None] * np.array([0.9, 1.0, 1.1], np.float32) - colour[wall])
    leaves = np.nonzero(material == Material.FOLIAGE)[0]
    factor[leaves] = (1 + np.float32(0.5) * fine[leaves] + np.float32(0.3) * coarse[leaves]).clip(0.15, 2.2)
    panel = np.nonzero(material == Material.SIGN)[0]
    if len(panel):
        rows = v[panel] / look[:, 1].take(index[panel])
        letters = np.sin(u[panel] * np.float32(23) / look[:, 1].take(index[panel]) + np.floor(rows) * np.float32(5.1))
        written = (np.abs(rows - np.floor(rows) - np.float32(0.5)) < 0.28) & (letters + fine[panel] > 0.4)
        colour[panel] += (written * np.float32(0.85))[:, None] * (np.float32(0.92) - colour[panel])
    glass = np.nonzero(material == Material.GLASS)[0]
    if len(glass):
        # Glass shows the sky at its top, and something in it.
        shine = ((v[glass] * np.float32(1.1)).clip(0, 1) * look[:, 1].take(index[glass]))[:, None]
        colour[glass] += shine * (np.array(light.sky_low, np.float32) - colour[glass])
    wheel = np.nonzero(material == Material.WHEEL)[0]
    if len(wheel):
        size = look[:, 3].take(index[wheel])
        radius = np.hypot(u[wheel] - size / 2, v[wheel] - size / 2) / (size / 2)
        colour[wheel] = np.where((radius < 0.62)[:, None], colour[wheel], np.float32(0.05))

    normal = np.cross(scene.u_axis, scene.v_axis).astype(np.float32)
    middle = scene.vertices.mean(1).astype(np.float32) - eye
    # Of a wall with two sides the one that is seen is lit.
    turned = scene.two_sided & ((normal * middle).sum(1) > 0)
    lit = _lit(light, np.where(turned[:, None], -normal, normal))
    low = np.float32(0.72) + np.float32(0.28) * ((_above(scene, points)) / np.float32(1.2)).clip(0, 1)
    return colour * factor.clip(0.1, 3)[:, None] * lit.take(index, axis=0) * low[:, None]


def _above(scene: Scene, points: list[Floats]) -> Floats:
    """Height above the ground."""
    terrain = scene.terrain
    z = points[2]
    return -np.float32(terrain.slope) * z - np.float32(terrain.bend) * z * z - points[1]


def _balls(
    scene: Scene,
    light: Light,
    textures: list[NoiseTexture],
    index: NDArray[np.int32],
    points: list[Floats],
    footprint: Floats,
) -> Floats:
    if not len(index):
        return np.empty((0, 3), np.float32)
    offset = np.stack([points[i] - scene.ball_centre[:, i].astype(np.float32).take(index) for i in range(3)], -1)
    normal = offset / scene.ball_radius.astype(np.float32).take(index, axis=0) ** 2
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    u, v = offset[:, 0] + offset[:, 2] * np.float32(0.8), offset[:, 1] + (index % 17)
    fine = textures[1].lookup(u, v, footprint)
    coarse = textures[0].lookup(u * np.float32(0.4), v * np.float32(0.4), footprint * np.float32(0.4))
    leaves = scene.ball_leaves.take(index)
    factor = 1 + np.where(leaves, np.float32(0.5) * fine + np.float32(0.35) * coarse, np.float32(0.12) * coarse)
    return scene.ball_colour.take(index, axis=0) * factor.clip(0.12, 2.5)[:, None] * _lit(light, normal)


def _decals(scene: Scene, camera: Camera, buffer: Buffer, colour: Floats, light: Light) -> None:
    """Shadows and paint on the ground, in their order; each shadow darkens a place once."""
    shadow = np.ones(buffer.surface.shape, np.float32)
    painted: list[tuple] = []
    lit = _lit(light, np.array([[0.0, -1.0, 0.0]], np.float32))[0]
    for decal in scene.decals:
        world = scene.terrain.place(np.insert(decal.outline, 1, 0.0, axis=1))
        found = cover(camera, project_corners(camera, world))
        if found is None:
            continue
        rows, columns, inside = found
        inside = inside & (buffer.surface[rows, columns] == GROUND)
        if decal.colour is None:
            view = shadow[rows, columns]
            np.copyto(view, np.minimum(view, np.float32(1 - decal.strength)), where=inside)
        else:
            painted.append((rows, columns, inside, decal))
    for rows, columns, inside, decal in painted:
        window = colour[rows, columns]
        mixed = window + np.float32(decal.strength) * (np.array(decal.colour, np.float32) * lit - window)
        np.copyto(window, mixed, where=inside[..., None])
    colour *= shadow[..., None]
