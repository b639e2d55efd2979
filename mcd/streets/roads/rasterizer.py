"""Depth and surface of every pixel: quads and ellipsoids into a buffer of inverse depth, in NumPy.

The inverse depth of a plane is affine in the pixel, which makes a quad a few operations on its window of the image.
The ground is solved for each pixel. Pixels are drawn finer than they are kept; the caller averages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.scene import Array, Cut, Scene, Terrain

Floats = NDArray[Any]  # float32, which NumPy's stubs lose in arithmetic

NEAR = 0.25  # m
GROUND_REACH = 400.0  # m
GROUND, SKY = -1, -2
COUNT = np.arange(8192, dtype=np.float64)


@dataclass(frozen=True)
class Camera:
    """K [3,3], in pixels of the buffer; pose `T_world_cam` [4,4]; `size` (H, W) of the buffer."""

    K: Array
    T_world_cam: Array
    size: tuple[int, int]

    def rays(self) -> tuple[Floats, Floats]:
        """x [W] and y [H] of the rays (x, y, 1) of columns and rows."""
        height, width = self.size
        x = (np.arange(width) - self.K[0, 2]) / self.K[0, 0]
        y = (np.arange(height) - self.K[1, 2]) / self.K[1, 1]
        return x.astype(np.float32), y.astype(np.float32)


@dataclass(frozen=True)
class Buffer:
    """`inverse` depth in 1/m (0: sky) and `surface`: SKY, GROUND, a quad's number, or that of a ball behind them."""

    inverse: Floats
    surface: NDArray[np.int32]


def rasterize(scene: Scene, camera: Camera, texture: NoiseTexture) -> Buffer:
    inverse = ground_inverse_depth(scene.terrain, camera)
    surface = np.where(inverse > 0, GROUND, SKY).astype(np.int32)
    _draw_quads(scene, camera, texture, inverse, surface)
    _draw_balls(scene, camera, texture, inverse, surface)
    return Buffer(inverse, surface)


def ground_inverse_depth(terrain: Terrain, camera: Camera) -> Floats:
    """1 / depth [H,W] of the ground alone, 0 where it is not seen or too far."""
    x, y = camera.rays()
    turn, eye = camera.T_world_cam[:3, :3].astype(np.float32), camera.T_world_cam[:3, 3]
    dy = turn[1, 0] * x + (turn[1, 1] * y + turn[1, 2])[:, None]
    dz = turn[2, 0] * x + (turn[2, 1] * y + turn[2, 2])[:, None]
    above = np.float32(terrain.ground(eye[2]) - eye[1])
    a = np.float32(terrain.bend) * dz * dz
    b = dy + np.float32(terrain.slope + 2 * terrain.bend * eye[2]) * dz
    square = b * b + 4 * above * a
    inverse = (b + np.sqrt(np.maximum(square, 0))) / (2 * above)
    # Far ground would be a wall where the parabola rises and a hole where it falls.
    return np.where((square >= 0) & (inverse > np.maximum(dz, 0.2) / GROUND_REACH), inverse, 0).astype(np.float32)


def project_corners(camera: Camera, points: Array) -> Array:
    """Camera axes [...,3] of world points."""
    return (points - camera.T_world_cam[:3, 3]) @ camera.T_world_cam[:3, :3]


def clip_near(polygon: Array) -> Array:
    """The part of a polygon [n,3] in camera axes that lies beyond the near plane."""
    inside = polygon[:, 2] > NEAR
    if inside.all():
        return polygon
    kept = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if inside[i]:
            kept.append(polygon[i])
        if inside[i] != inside[j]:
            share = (NEAR - polygon[i, 2]) / (polygon[j, 2] - polygon[i, 2])
            kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
    return np.array(kept).reshape(-1, 3)


def cover(camera: Camera, polygon: Array) -> tuple[slice, slice, NDArray[np.bool_]] | None:
    """Window of the image and the pixels in it whose centre a convex polygon [n,3] (camera axes) covers."""
    polygon = clip_near(polygon)
    if len(polygon) < 3:
        return None
    xs = (polygon[:, 0] / polygon[:, 2] * camera.K[0, 0] + camera.K[0, 2]).tolist()
    ys = (polygon[:, 1] / polygon[:, 2] * camera.K[1, 1] + camera.K[1, 2]).tolist()
    height, width = camera.size
    left, right = max(math.ceil(min(xs)), 0), min(math.floor(max(xs)) + 1, width)
    top, bottom = max(math.ceil(min(ys)), 0), min(math.floor(max(ys)) + 1, height)
    if left >= right or top >= bottom:
        return None
    following = [*range(1, len(xs)), 0]
    # Twice the area: its sign is the sense in which the corners turn.
    area = sum(xs[i] * ys[j] - xs[j] * ys[i] for i, j in enumerate(following))
    sense = 1.0 if area > 0 else -1.0
    columns, rows = COUNT[left:right], COUNT[top:bottom, None]
    inside = np.ones((bottom - top, right - left), bool)
    for i, j in enumerate(following):
        a, b = sense * (ys[i] - ys[j]), sense * (xs[j] - xs[i])
        inside &= a * columns >= (a * xs[i] + b * ys[i]) - b * rows
    return slice(top, bottom), slice(left, right), inside


def _draw_quads(
    scene: Scene, camera: Camera, texture: NoiseTexture, inverse: Floats, surface: NDArray[np.int32]
) -> None:
    ray_x, ray_y = camera.rays()
    corners = project_corners(camera, scene.vertices)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    distance = (normal * corners[:, 0]).sum(1)
    seen = (corners[:, :, 2].max(1) > NEAR) & (np.abs(distance) > 1e-4) & (scene.two_sided | (distance < 0))
    plane = (normal / np.where(np.abs(distance) > 1e-4, distance, 1)[:, None]).astype(np.float32)
    for k in np.nonzero(seen)[0]:
        found = cover(camera, corners[k])
        if found is None:
            continue
        rows, columns, inside = found
        value = plane[k, 0] * ray_x[columns] + (plane[k, 1] * ray_y[rows] + plane[k, 2])[:, None]
        nearest = inverse[rows, columns]
        wins = inside & (value > nearest)
        if scene.cut[k] != Cut.NONE:
            wins &= _kept(scene, camera, texture, int(k), value, ray_x[columns], ray_y[rows])
        np.copyto(nearest, value, where=wins)
        np.copyto(surface[rows, columns], k, where=wins)


def _kept(
    scene: Scene, camera: Camera, texture: NoiseTexture, k: int, inverse: Floats, ray_x: Floats, ray_y: Floats
) -> NDArray[np.bool_]:
    """Which pixels of a quad with holes are there."""
    depth = 1 / np.maximum(inverse, np.float32(1e-4))
    turn, eye = camera.T_world_cam[:3, :3], camera.T_world_cam[:3, 3]
    offset = eye - scene.vertices[k, 0]

    def along(axis: Array) -> Floats:
        to_camera = (axis @ turn).astype(np.float32)
        direction = to_camera[0] * ray_x + (to_camera[1] * ray_y + to_camera[2])[:, None]
        return np.float32(axis @ offset) + depth * direction

    u, v = along(scene.u_axis[k]), along(scene.v_axis[k])
    size = scene.vertices[k, [1, 3]] - scene.vertices[k, 0]
    width, height = float(np.linalg.norm(size[0])), float(np.linalg.norm(size[1]))
    kind = scene.cut[k]
    first, second = (float(value) for value in scene.look[k, 1:3])
    if kind in (Cut.DISC, Cut.RING):
        square = ((u - width / 2) / (width / 2)) ** 2 + ((v - height / 2) / (height / 2)) ** 2
        return (square < 1) & ((square > first**2) if kind == Cut.RING else True)
    if kind == Cut.PICKETS:
        return np.mod(u, np.float32(first)) < np.float32(second)
    shape = u.shape
    footprint = (depth / np.float32(camera.K[0, 0])).ravel()
    shift = np.float32(k % 37)
    if kind == Cut.LEAVES:
        noise = texture.lookup((u * first).ravel() + shift, (v * first).ravel(), footprint * first).reshape(shape)
        rim = np.minimum(np.minimum(u, width - u) / width, np.minimum(v + height, height - v) / height)
        return noise < np.float32(second) + 6 * rim
    zero = np.zeros(u.size, np.float32)
    noise = texture.lookup((u * first).ravel() + shift, zero, footprint * first).reshape(shape)
    return v < height * (1 - second * (0.5 + 0.25 * noise).clip(0, 1))


def _draw_balls(
    scene: Scene, camera: Camera, texture: NoiseTexture, inverse: Floats, surface: NDArray[np.int32]
) -> None:
    if not len(scene.ball_centre):
        return
    ray_x, ray_y = camera.rays()
    turn = camera.T_world_cam[:3, :3]
    centres = project_corners(camera, scene.ball_centre)
    reach = scene.ball_radius.max(1)
    height, width = camera.size
    for k in np.nonzero(centres[:, 2] - reach > NEAR)[0]:
        x, y, z = centres[k]
        close = z - reach[k]
        spread_x, spread_y = camera.K[0, 0] * reach[k] / close, camera.K[1, 1] * reach[k] / close
        column, row = camera.K[0, 0] * x / z + camera.K[0, 2], camera.K[1, 1] * y / z + camera.K[1, 2]
        # A sphere off the axis is drawn out; the window has some reserve.
        left, right = max(int(column - 1.3 * spread_x), 0), min(int(column + 1.3 * spread_x) + 2, width)
        top, bottom = max(int(row - 1.3 * spread_y), 0), min(int(row + 1.3 * spread_y) + 2, height)
        if left >= right or top >= bottom:
            continue
        window = slice(top, bottom), slice(left, right)
        # In axes in which the ellipsoid is the unit sphere.
        scaled = (turn / scene.ball_radius[k][:, None]).astype(np.float32)
        eye = ((camera.T_world_cam[:3, 3] - scene.ball_centre[k]) / scene.ball_radius[k]).astype(np.float32)
        ray = [
            scaled[i, 0] * ray_x[window[1]] + (scaled[i, 1] * ray_y[window[0]] + scaled[i, 2])[:, None]
            for i in range(3)
        ]
        a = ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2]
        b = eye[0] * ray[0] + eye[1] * ray[1] + eye[2] * ray[2]
        c = np.float32(eye @ eye - 1)
        square = b * b - a * c
        depth = (-b - np.sqrt(np.maximum(square, 0))) / a
        value = 1 / np.maximum(depth, np.float32(NEAR))
        nearest = inverse[window]
        wins = (square > 0) & (depth > NEAR) & (value > nearest)
        cut = float(scene.ball_cut[k])
        if cut > 0 and wins.any():
            # Leaves thin out towards the outline.
            scale = np.float32(scene.ball_radius[k, 0] * 1.4)
            u, v = ((eye[i] + depth * ray[i]) * scale for i in (0, 1))
            footprint = (depth / np.float32(camera.K[0, 0])).ravel()
            noise = texture.lookup(u.ravel() + np.float32(k % 29), v.ravel(), footprint).reshape(u.shape)
            wins &= noise * np.float32(0.4 * cut) < square / a
        np.copyto(nearest, value, where=wins)
        np.copyto(surface[window], k + len(scene.vertices), where=wins)
