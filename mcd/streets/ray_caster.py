"""Ray caster: textured boxes seen by a pinhole camera, in NumPy.

World axes: x right, y down, z forward, in metres; the ground is the plane y = 0 (the top of a very large box).
A ray is (u, v, 1) in camera axes, so the ray parameter of a hit is its depth. Every box is tested with the slab method
in its own axes, inside its window of the image only; the nearest entry wins, which makes occlusion exact. Colour comes
afterwards, once for all hits: noise anchored to the surface, looked up in a mip pyramid.

A pixel's colour is the mean of several rays; its depth and its box are those of the ray through its centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32, which NumPy's stubs lose in arithmetic

NEAR = 0.1  # m, nothing closer is drawn
BAND_PIXELS = 16384  # drawn at a time: their rays stay in the processor's cache
# The pixel's centre first, then a rotated grid: edges along a row or a column of pixels get several grey levels.
RAY_OFFSETS = np.array([(0, 0), (0.125, 0.375), (-0.375, 0.125), (-0.125, -0.375), (0.375, -0.125)], np.float32)

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_EDGES = np.array([(i, j) for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2])


class Material(IntEnum):
    """What a box is made of, which decides what is painted on it."""

    GROUND = 0
    FACADE = 1
    PAINT = 2  # the body of a vehicle: lamps at its ends, wheels at its sides
    PLAIN = 3


@dataclass(frozen=True)
class Boxes:
    """N boxes; box 0 is the ground.

    centre [N,3] at time 0 and half sizes [N,3] in m; velocity [N,3] in m a frame; yaw [N], about the y axis, 0 looks
    along +z; colour [N,3] in [0,1]; contrast [N], std of the texture at mid grey; anchor [N,2], the texture coordinates
    of the box's origin; owner [N], the vehicle it belongs to or -1; material [N].
    """

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    velocity: NDArray[np.float64]
    yaw: NDArray[np.float64]
    colour: Floats
    contrast: Floats
    anchor: Floats
    owner: NDArray[np.int32]
    material: NDArray[np.int8]

    def at(self, time: float) -> Boxes:
        """The same boxes `time` frames later."""
        return replace(self, centre=self.centre + time * self.velocity)


@dataclass(frozen=True)
class Light:
    """What does not depend on the surfaces: sky colour [3], direction to the sun [3], half width of the road in m and
    |x| of the painted line between the lanes."""

    sky: Floats
    sun: Floats
    road_half_width: float
    lane_line: float


@dataclass(frozen=True)
class View:
    """image [H,W,3] uint8, depth [H,W] float32 in m (0 = sky), owner [H,W] int32 (vehicle or -1), road [H,W] bool."""

    image: NDArray[np.uint8]
    depth: Floats
    owner: NDArray[np.int32]
    road: NDArray[np.bool_]


def yaw_matrix(yaw: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """World from local axes for a turn about y: [...,3,3]; positive yaw turns +z towards +x."""
    yaw = np.asarray(yaw, np.float64)
    cos, sin, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    rows = [[cos, zero, sin], [zero, one, zero], [-sin, zero, cos]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


class NoiseTexture:
    """Seven octaves of noise of zero mean and unit std on a periodic square, with its mip pyramid."""

    SIDE = 512  # texels
    TEXELS_PER_METRE = 36.0

    def __init__(self, rng: np.random.Generator, octaves: int = 7, slope: float = 1.4):
        """`slope`: amplitude ~ frequency ** -slope; 1 is as much contrast in every octave, more is smoother."""
        frequency = np.fft.fftfreq(self.SIDE, 1 / self.SIDE)
        radius = np.hypot(frequency[:, None], frequency[None, :])
        highest = self.SIDE / 2
        band = (radius <= highest) & (radius >= highest / 2**octaves)
        spectrum = np.fft.fft2(rng.standard_normal((self.SIDE, self.SIDE)))
        level = np.fft.ifft2(spectrum * np.where(band, np.maximum(radius, 1) ** -slope, 0)).real
        level /= level.std()
        quads, self._start = [], [0]
        while True:
            # The four texels of a bilinear lookup lie side by side: one gather instead of four.
            right = np.roll(level, -1, 1)
            quads.append(np.stack([level, right, np.roll(level, -1, 0), np.roll(right, -1, 0)], -1).reshape(-1, 4))
            self._start.append(self._start[-1] + level.size)
            if level.shape[0] == 1:
                break
            level = level.reshape(level.shape[0] // 2, 2, -1, 2).mean((1, 3))
        self._quads = np.concatenate(quads).astype(np.float32)
        self._first = np.array(self._start, np.int32)
        self.levels = len(quads)

    def lookup(self, u: Floats, v: Floats, footprint: Floats) -> Floats:
        """Noise at (u, v) m, averaged over about `footprint` m: linear between texels and between mip levels."""
        level = np.log2(np.maximum(footprint * np.float32(self.TEXELS_PER_METRE), 1))
        level = np.minimum(level, np.float32(self.levels - 1.001))
        fine = level.astype(np.int32)
        blend = level - fine
        below = self._bilinear(u, v, fine)
        return below + blend * (self._bilinear(u, v, fine + 1) - below)

    def _bilinear(self, u: Floats, v: Floats, level: NDArray[np.int32]) -> Floats:
        shift = np.int32(self.SIDE.bit_length() - 1) - level
        scale = np.exp2(-level.astype(np.float32)) * np.float32(self.TEXELS_PER_METRE)
        x, y = u * scale - np.float32(0.5), v * scale - np.float32(0.5)
        x_floor, y_floor = np.floor(x), np.floor(y)
        x -= x_floor
        y -= y_floor
        last = (np.int32(1) << shift) - np.int32(1)
        row, column = y_floor.astype(np.int32) & last, x_floor.astype(np.int32) & last
        quad = self._quads.take(self._first[level] + (row << shift) + column, axis=0)
        top = quad[:, 0] + x * (quad[:, 1] - quad[:, 0])
        bottom = quad[:, 2] + x * (quad[:, 3] - quad[:, 2])
        return top + y * (bottom - top)


def render(
    boxes: Boxes,
    texture: NoiseTexture,
    light: Light,
    K: NDArray[np.float64],
    size: tuple[int, int],
    T_world_cam: NDArray[np.float64],
) -> View:
    """The boxes as the camera with pose `T_world_cam` [4,4] and intrinsics `K` [3,3] sees them, `size` = (H, W)."""
    height, width = size
    bands = []
    for top in range(0, height, max(1, BAND_PIXELS // width)):
        rows = min(max(1, BAND_PIXELS // width), height - top)
        K_band = K - [[0, 0, 0], [0, 0, top], [0, 0, 0]]
        bands.append(_render_band(boxes, texture, light, K_band, (rows, width), T_world_cam))
    return View(*(np.concatenate([getattr(band, name) for band in bands]) for name in View.__dataclass_fields__))


def _render_band(
    boxes: Boxes,
    texture: NoiseTexture,
    light: Light,
    K: NDArray[np.float64],
    size: tuple[int, int],
    T_world_cam: NDArray[np.float64],
) -> View:
    height, width = size
    ray_x = (np.arange(width) + RAY_OFFSETS[:, :1] - K[0, 2]) / K[0, 0]
    ray_y = (np.arange(height) + RAY_OFFSETS[:, 1:] - K[1, 2]) / K[1, 1]
    ray_x, ray_y = ray_x.astype(np.float32), ray_y.astype(np.float32)

    camera = _box_axes(boxes, T_world_cam)
    depth, index = _cast(camera, ray_x, ray_y, _windows(camera, K, size))

    hit = np.nonzero(index.ravel() >= 0)[0]
    hit_x = np.broadcast_to(ray_x[:, None, :], index.shape).ravel().take(hit)
    hit_y = np.broadcast_to(ray_y[:, :, None], index.shape).ravel().take(hit)
    box = index.ravel().take(hit).astype(np.intp)
    x, shaded = _shade(boxes, camera, texture, light, box, depth.ravel().take(hit), hit_x, hit_y, 1 / K[0, 0])
    colour = np.empty((index.size, 3), np.float32)
    colour[:] = light.sky
    colour[hit] = shaded
    image = colour.reshape(len(index), -1).mean(0).reshape(height, width, 3)

    centre_index = index[0]
    across = np.full(index.size, np.inf, np.float32)
    across[hit] = np.abs(x)
    road = (centre_index == 0) & (across[: height * width].reshape(size) < light.road_half_width)
    owner = np.where(centre_index >= 0, boxes.owner[centre_index], -1).astype(np.int32)
    return View(
        image=(image.clip(0, 1) * 255 + 0.5).astype(np.uint8),
        depth=np.where(centre_index >= 0, depth[0], 0).astype(np.float32),
        owner=owner,
        road=road,
    )


class _BoxAxes(NamedTuple):
    """The camera in the axes of each box: `turn` [N,3,3] takes directions there, `eye` [N,3]: its place, `half`."""

    turn: Floats
    eye: Floats
    half: Floats


def _box_axes(boxes: Boxes, T_world_cam: NDArray[np.float64]) -> _BoxAxes:
    to_local = yaw_matrix(boxes.yaw).transpose(0, 2, 1)
    eye = np.einsum("nij,nj->ni", to_local, T_world_cam[:3, 3] - boxes.centre)
    turn = to_local @ T_world_cam[:3, :3]
    return _BoxAxes(turn.astype(np.float32), eye.astype(np.float32), boxes.half.astype(np.float32))


def _windows(camera: _BoxAxes, K: NDArray[np.float64], size: tuple[int, int]) -> list[tuple[int, slice, slice]]:
    """(box, rows, columns) of the boxes that may be seen: bounds of their outlines, cut at the near plane."""
    height, width = size
    local = _CORNERS * camera.half[:, None] - camera.eye[:, None]
    corners = np.einsum("nji,ncj->nci", camera.turn, local)  # box axes back to camera axes
    first, second = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    z_first, z_second = first[..., 2:], second[..., 2:]
    crosses = (z_first > NEAR) != (z_second > NEAR)
    step = np.where(crosses, (NEAR - z_first) / np.where(crosses, z_second - z_first, 1), 0)
    points = np.concatenate([corners, first + step * (second - first)], 1)
    seen = np.concatenate([corners[..., 2] > NEAR, crosses[..., 0]], 1)
    z = np.where(seen, points[..., 2], 1)
    x = points[..., 0] / z * K[0, 0] + K[0, 2]
    y = points[..., 1] / z * K[1, 1] + K[1, 2]
    bounds = [np.where(seen, x, np.inf).min(1), np.where(seen, x, -np.inf).max(1)]
    bounds += [np.where(seen, y, np.inf).min(1), np.where(seen, y, -np.inf).max(1)]
    # Rays lie up to half a pixel away from the pixel that they belong to.
    left, top = np.floor(bounds[0]).clip(0, width), np.floor(bounds[2]).clip(0, height)
    right, bottom = np.ceil(bounds[1] + 1).clip(0, width), np.ceil(bounds[3] + 1).clip(0, height)
    return [
        (int(k), slice(int(top[k]), int(bottom[k])), slice(int(left[k]), int(right[k])))
        for k in np.nonzero(seen.any(1) & (left < right) & (top < bottom))[0]
    ]


def _cast(
    camera: _BoxAxes, ray_x: Floats, ray_y: Floats, windows: list[tuple[int, slice, slice]]
) -> tuple[Floats, NDArray[np.int16]]:
    """Depth and box (-1 = sky) of the nearest hit of every ray, [rays a pixel, H, W]."""
    shape = (ray_x.shape[0], ray_y.shape[1], ray_x.shape[1])
    depth = np.full(shape, np.inf, np.float32)
    index = np.full(shape, -1, np.int16)
    turn, eye, half = camera
    for k, rows, columns in windows:
        x, y = ray_x[:, None, columns], ray_y[:, rows, None]
        entries, leaves = [], []
        for axis in range(3):
            # The tiny term keeps a ray that is parallel to a face from dividing by zero.
            inverse = 1 / (turn[k, axis, 0] * x + (turn[k, axis, 1] * y + (turn[k, axis, 2] + np.float32(1e-9))))
            middle = inverse * -eye[k, axis]
            reach = np.abs(inverse, out=inverse)
            reach *= half[k, axis]
            entries.append(middle - reach)
            leaves.append(middle + reach)
        entry = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
        leave = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
        nearest = depth[:, rows, columns]
        wins = (entry < leave) & (entry < nearest) & (entry > NEAR)
        np.copyto(nearest, entry, where=wins)
        np.copyto(index[:, rows, columns], k, where=wins)
    return depth, index


def _shade(
    boxes: Boxes,
    camera: _BoxAxes,
    texture: NoiseTexture,
    light: Light,
    box: NDArray[np.intp],
    depth: Floats,
    ray_x: Floats,
    ray_y: Floats,
    pixel: float,
) -> tuple[Floats, Floats]:
    """Local x [n] and colour [n,3] of n hits. `pixel`: width of a pixel at depth 1."""
    turn, eye, half = camera
    rays, points, rest = [], [], []
    for axis in range(3):
        first, second, third = (turn[:, axis, column].take(box) for column in range(3))
        rays.append(first * ray_x + second * ray_y + third)
        points.append(eye[:, axis].take(box) + depth * rays[axis])
        rest.append(np.abs(points[axis]) - half[:, axis].take(box))
    x, y, z = points
    on_x = (rest[0] > rest[1]) & (rest[0] > rest[2])
    on_y = ~on_x & (rest[1] > rest[2])

    length = np.sqrt(ray_x * ray_x + ray_y * ray_y + 1)
    normal_ray = np.where(on_x, rays[0], np.where(on_y, rays[1], rays[2]))
    slant = np.abs(normal_ray) / length
    # A slanted pixel is longer than wide. The geometric mean of both blurs less than the length; its rays do the rest.
    footprint = np.float32(pixel) * depth * length / np.sqrt(np.maximum(slant, np.float32(0.02)))
    u: Floats = np.where(on_x, z, x)
    v: Floats = np.where(on_y, z, y) + on_x * np.float32(5)  # the faces at a corner do not mirror each other
    anchor_u, anchor_v = (boxes.anchor[:, axis].take(box) for axis in range(2))
    noise = texture.lookup(u + anchor_u, v + anchor_v, footprint * np.float32(0.7))
    factor = 1 + 2 * boxes.contrast.take(box) * noise.clip(-2.3, 2.3)
    face = on_x * (x > 0) + on_y * 2 + ~(on_x | on_y) * (4 + (z > 0))
    factor *= _lambert(boxes, light).take(box * 6 + face)

    base = boxes.colour.take(box, axis=0)
    material = boxes.material.take(box)
    ground = np.nonzero(material == Material.GROUND)[0]
    base[ground] = _ground(base.take(ground, axis=0), x[ground], z[ground], depth[ground] * np.float32(pixel), light)
    wall = np.nonzero((material == Material.FACADE) & ~on_y)[0]
    factor[wall] *= 1 - np.float32(0.55) * _windowpanes(u[wall], y[wall] + half[:, 1].take(box[wall]), footprint[wall])
    body = np.nonzero((material == Material.PAINT) & ~on_y)[0]
    base[body] = _vehicle(base.take(body, axis=0), x[body], y[body], z[body], half.take(box[body], axis=0), on_x[body])
    base *= factor[:, None]
    return x, base


def _lambert(boxes: Boxes, light: Light) -> Floats:
    """Brightness [N,6] of the faces -x, +x, top, (unused), -z, +z under sun and sky."""
    axes = yaw_matrix(boxes.yaw)
    side, front = axes[:, :, 0] @ light.sun, axes[:, :, 2] @ light.sun
    top = np.full(len(side), -light.sun[1])
    facing = np.stack([-side, side, top, top, -front, front], 1)
    return (0.68 + 0.4 * facing.clip(0, None)).astype(np.float32)


def _stripe(distance: Floats, half_width: float, footprint: Floats) -> Floats:
    """Share of a pixel that a stripe covers, `distance` from its middle line."""
    return ((half_width - distance) / np.maximum(footprint, np.float32(1e-3)) + np.float32(0.5)).clip(0, 1)


def _wrap(value: Floats, period: float) -> Floats:
    """`value` modulo `period`; many times as fast as np.mod."""
    return value - period * np.floor(value * (1 / period))


def _ground(base: Floats, x: Floats, z: Floats, across: Floats, light: Light) -> Floats:
    """Asphalt, a dashed line between the lanes, a kerb and the pavement."""
    side = np.abs(x)
    pavement = _stripe(-side, -light.road_half_width, across)[:, None]
    kerb = _stripe(np.abs(side - light.road_half_width), 0.12, across)
    dash = _stripe(np.abs(x - light.lane_line), 0.08, across) * (_wrap(z, 6) < 3)
    paint = np.maximum(np.float32(0.7) * kerb, dash)[:, None]
    base = base + pavement * (np.array([0.62, 0.57, 0.5], np.float32) - base)
    return base + paint * (np.float32(0.9) - base)


def _windowpanes(u: Floats, above: Floats, footprint: Floats) -> Floats:
    """Share of window in a facade pixel, `above` m under the roof: 1.4 m x 1.6 m panes every 3 m."""
    horizontal = _stripe(np.abs(_wrap(u, 3) - 1.5), 0.7, footprint)
    return horizontal * _stripe(np.abs(_wrap(above, 3) - 1.5), 0.8, footprint)


def _vehicle(base: Floats, x: Floats, y: Floats, z: Floats, half: Floats, on_side: NDArray[np.bool_]) -> Floats:
    """Red lamps behind, white lamps in front, a number plate at both ends, wheel arches at the sides."""
    relative_x, relative_y = np.abs(x) / half[:, 0], y / half[:, 1]
    lamp = ~on_side & (relative_x > 0.66) & (np.abs(relative_y + 0.1) < 0.34)
    base[lamp & (z < 0)] = (0.85, 0.1, 0.08)
    base[lamp & (z > 0)] = (0.95, 0.95, 0.85)
    base[~on_side & (relative_x < 0.3) & (np.abs(relative_y - 0.5) < 0.22)] = (0.85, 0.85, 0.8)
    wheel_z = np.abs(z) - half[:, 2] * np.float32(0.62)
    base[on_side & (wheel_z**2 + (y - half[:, 1]) ** 2 < np.float32(0.36**2))] = 0.06
    return base
