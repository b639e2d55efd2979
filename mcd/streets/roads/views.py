"""Views of random roads: the camera, the picture with its depth, and files of many of them.

A view's unit of depth is the metre. Colours are stored plain; what a camera does to them, `photograph`, is drawn anew
each time a view is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.rasterizer import Camera, rasterize
from mcd.streets.roads.scene import Array, Scene
from mcd.streets.roads.shading import shade
from mcd.streets.roads.world import World, make_world

SUPERSAMPLING = 2
FARTHEST = 300.0  # m; what is farther counts as sky


@dataclass(frozen=True)
class View:
    """image [H,W,3] uint8, depth [H,W] float32 in m (0: sky), moving [H,W] bool, K [3,3] in pixels, height in m."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    moving: NDArray[np.bool_]
    K: Array
    T_world_cam: Array
    height: float


def textures(rng: np.random.Generator) -> list[NoiseTexture]:
    """A smooth one for stains and clouds and a fine one; natural images have spectra between the two."""
    return [NoiseTexture(rng, octaves=9, slope=1.7), NoiseTexture(rng, octaves=7, slope=rng.uniform(0.8, 1.2))]


def rotation(pitch: float, yaw: float, roll: float) -> Array:
    """World from camera axes; a positive pitch looks down, a positive yaw to the right."""
    cp, sp, cy, sy, cr, sr = (f(a) for a in (pitch, yaw, roll) for f in (math.cos, math.sin))
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def sample_camera(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, float, tuple[float, float, float]]:
    """K in pixels of `size`, height above the ground in m, and pitch, yaw and roll."""
    height, width = size
    wide = width / height > 2.4
    view = math.radians(rng.uniform(60, 100) if wide else rng.uniform(40, 100))
    focal = width / 2 / math.tan(view / 2)
    K = np.array(
        [
            [focal, 0, width * rng.uniform(0.46, 0.54) - 0.5],
            [0, focal * math.exp(rng.normal(0, 0.06)), height * rng.uniform(0.4, 0.58) - 0.5],
            [0, 0, 1],
        ]
    )
    stands = float(rng.uniform(1.1, 1.8) if rng.random() < 0.65 else rng.uniform(0.8, 3.0))
    # The horizon stays in the picture.
    row = rng.uniform(0.22, 0.62) * height
    pitch = math.atan((K[1, 2] - row) / K[1, 1])
    if rng.random() < 0.5:
        pitch = rng.normal(0, 0.03)
    return K, stands, (float(pitch), float(rng.normal(0, 0.05)), float(rng.normal(0, 0.012)))


def later(scene: Scene, frames: float) -> Scene:
    """The scene with everything that moves `frames` later."""
    if not len(scene.velocity):
        return scene
    terrain = scene.terrain

    def moved(points: Array, owner: NDArray[np.int32]) -> Array:
        velocity = np.concatenate([scene.velocity, [[0.0, 0.0]]])[owner] * frames
        velocity = velocity.reshape(-1, *(1,) * (points.ndim - 2), 2)
        z = points[..., 2] + velocity[..., 1]
        x = points[..., 0] + velocity[..., 0] + terrain.curve / 2 * (z**2 - points[..., 2] ** 2)
        y = points[..., 1] + terrain.ground(z) - terrain.ground(points[..., 2])
        return np.stack([x, y, z], -1)

    steps = np.concatenate([scene.velocity, [[0.0, 0.0]]]) * frames
    decals = [
        replace(decal, outline=decal.outline + steps[decal.owner]) if decal.owner >= 0 else decal
        for decal in scene.decals
    ]
    return replace(
        scene,
        vertices=moved(scene.vertices, scene.owner),
        ball_centre=moved(scene.ball_centre, scene.ball_owner) if len(scene.ball_centre) else scene.ball_centre,
        decals=decals,
    )


def render(
    world: World,
    noise: list[NoiseTexture],
    K: Array,
    height: float,
    turn: tuple[float, float, float],
    size: tuple[int, int],
    along: float = 0.0,
    frames: float = 0.0,
) -> View:
    """The world after some frames from the camera's lane, `along` m down the road."""
    scene = later(world.scene, frames) if frames else world.scene
    terrain = scene.terrain
    pose = np.eye(4)
    slope = terrain.slope + 2 * terrain.bend * along
    pitch, yaw, roll = turn
    pose[:3, :3] = rotation(pitch - math.atan(slope), yaw + math.atan(terrain.curve * along), roll)
    pose[:3, 3] = terrain.place([world.lane, height, along])
    n = SUPERSAMPLING
    fine = K.copy()
    fine[:2] *= n
    fine[:2, 2] += (n - 1) / 2
    camera = Camera(fine, pose, (size[0] * n, size[1] * n))
    buffer = rasterize(scene, camera, noise[1])
    colour = shade(scene, buffer, camera, world.surface, world.light, noise)
    colour = colour.reshape(size[0], n, size[1], n, 3).mean((1, 3))

    def corners(values: NDArray) -> NDArray:
        return values.reshape(size[0], n, size[1], n).transpose(0, 2, 1, 3).reshape(*size, n * n)

    # Of an edge's samples the second nearest: a mean would lie where nothing is.
    inverse, surface = corners(buffer.inverse), corners(buffer.surface)
    second = np.argsort(-inverse, axis=-1)[..., 1:2]
    inverse = np.take_along_axis(inverse, second, -1)[..., 0]
    surface = np.take_along_axis(surface, second, -1)[..., 0]
    owner = np.concatenate([scene.owner, scene.ball_owner, [-1]])[np.where(surface < 0, -1, surface)]
    speed = np.concatenate([np.linalg.norm(scene.velocity, axis=1), [0.0]])
    return View(
        image=(colour.clip(0, 1) * 255 + 0.5).astype(np.uint8),
        depth=np.where(inverse > 1 / FARTHEST, 1 / np.maximum(inverse, 1e-6), 0).astype(np.float32),
        moving=speed[owner] > 0.02,
        K=K,
        T_world_cam=pose,
        height=height,
    )


def make_views(
    rng: np.random.Generator, noise: list[NoiseTexture], size: tuple[int, int], cameras: int = 1, frames: int = 1
) -> list[list[View]]:
    """Consecutive views of a new world through several cameras, in turn: `cameras` lists of `frames`."""
    world = make_world(rng)
    found = []
    for index in range(cameras):
        K, height, (pitch, yaw, roll) = sample_camera(rng, size)
        # The lane of the first; others look from elsewhere along the road, at other moments.
        start = 0.0 if index == 0 else rng.uniform(0, 3)
        lane = world.lane if index == 0 else world.lane + rng.normal(0, 0.4)
        begin = 0.0 if index == 0 else start / world.speed
        clip = []
        for frame in range(frames):
            turn = (pitch + rng.normal(0, 0.002), yaw + rng.normal(0, 0.003), roll + rng.normal(0, 0.001))
            along = start + frame * world.speed
            clip.append(render(replace(world, lane=lane), noise, K, height, turn, size, along, begin + frame))
        found.append(clip)
    return found
