"""What a road scene is made of: flat quadrilaterals, ellipsoids and decals on the ground, in world metres.

World axes: x right, y down, z forward. The ground is y = -(slope z + bend z²), one parabola along z. `Builder` collects
parts one by one in the road's own axes, lateral and along, and bends them with the road.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

FOLLOWS_ROAD = -2  # in place of an owner: the part is bent with the road, not placed as a rigid one


class Material(IntEnum):
    """What is painted on a surface."""

    PLAIN = 0
    FACADE = 1  # windows in a grid
    FOLIAGE = 2
    SIGN = 3
    GLASS = 4
    GROUND = 5
    WHEEL = 6


class Cut(IntEnum):
    """Which parts of a surface are not there."""

    NONE = 0
    DISC = 1  # outside a circle
    RAGGED = 2  # above an uneven upper edge
    LEAVES = 3  # holes
    PICKETS = 4  # every second stripe
    RING = 5  # outside and inside


@dataclass(frozen=True)
class Terrain:
    """Height of the ground along z, and the bend of the road to one side."""

    slope: float
    bend: float
    curve: float  # 1/m, of the road's middle line x = curve z² / 2

    def ground(self, z: ArrayLike) -> Array:
        """y of the ground."""
        z = np.asarray(z, np.float64)
        return -(self.slope * z + self.bend * z * z)

    def place(self, points: ArrayLike) -> Array:
        """World points [...,3] of (lateral, height above the ground, along) [...,3]."""
        points = np.asarray(points, np.float64)
        lateral, height, along = points[..., 0], points[..., 1], points[..., 2]
        return np.stack([lateral + self.curve * along**2 / 2, self.ground(along) - height, along], -1)


@dataclass(frozen=True)
class Decal:
    """A polygon [n,2] on the ground, in (lateral, along), that changes colour and nothing else."""

    outline: Array
    colour: tuple[float, float, float] | None  # None: a shadow
    strength: float
    owner: int


@dataclass
class Scene:
    """Arrays over quads (vertices [N,4,3], u/v axes [N,3]), ellipsoids, and what else a view needs."""

    terrain: Terrain
    vertices: Array
    u_axis: Array
    v_axis: Array
    colour: NDArray[np.float32]
    look: NDArray[np.float32]  # contrast, then three numbers for the material or the cut
    material: NDArray[np.int8]
    cut: NDArray[np.int8]
    owner: NDArray[np.int32]
    two_sided: NDArray[np.bool_]
    ball_centre: Array
    ball_radius: Array
    ball_colour: NDArray[np.float32]
    ball_cut: NDArray[np.float32]
    ball_leaves: NDArray[np.bool_]
    ball_owner: NDArray[np.int32]
    decals: list[Decal]
    velocity: Array  # [owners, 2], (lateral, along) in m a frame


@dataclass
class Builder:
    """Collects parts; `frame` places them: origin (lateral, along), turn about the vertical, owner."""

    terrain: Terrain
    rng: np.random.Generator
    quads: list[tuple] = field(default_factory=list)
    balls: list[tuple] = field(default_factory=list)
    decals: list[Decal] = field(default_factory=list)
    velocity: list[tuple[float, float]] = field(default_factory=list)
    origin: tuple[float, float] = (0.0, 0.0)
    yaw: float = 0.0
    owner: int = -1

    def at(self, lateral: float, along: float, yaw: float = 0.0, owner: int = -1) -> Builder:
        """Where the next parts stand; their x is to the right, y up, z forward."""
        self.origin, self.yaw, self.owner = (lateral, along), yaw, owner
        return self

    def mover(self, lateral: float, along: float) -> int:
        """A new moving thing's number."""
        self.velocity.append((lateral, along))
        return len(self.velocity) - 1

    def _road_axes(self, points: ArrayLike) -> Array:
        points = np.asarray(points, np.float64)
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        x, z = points[..., 0], points[..., 2]
        lateral, along = cos * x + sin * z + self.origin[0], -sin * x + cos * z + self.origin[1]
        return np.stack([lateral, points[..., 1], along], -1)

    def quad(
        self,
        corners: ArrayLike,
        colour: ArrayLike,
        contrast: float = 0.08,
        material: Material = Material.PLAIN,
        cut: Cut = Cut.NONE,
        look: Sequence[float] = (0.0, 0.0, 0.0),
        two_sided: bool = False,
    ) -> None:
        """Four corners [4,3] (x, height, z) counted round from the lower left as seen from outside."""
        place = (*self.origin, self.yaw)
        self.quads.append((corners, colour, (contrast, *look), material, cut, self.owner, two_sided, place))

    def ball(
        self,
        centre: Sequence[float],
        radius: Sequence[float],
        colour: ArrayLike,
        cut: float = 0.0,
        leaves: bool = False,
    ) -> None:
        """An ellipsoid, upright, around (x, height, z)."""
        middle = self.terrain.place(self._road_axes(centre))
        self.balls.append((middle, radius, colour, cut, leaves, self.owner))

    def decal(self, outline: ArrayLike, colour: tuple[float, float, float] | None, strength: float) -> None:
        """A polygon [n,2] of (x, z)."""
        flat = np.asarray(outline, np.float64)
        points = self._road_axes(np.stack([flat[:, 0], np.zeros(len(flat)), flat[:, 1]], -1))
        self.decals.append(Decal(points[:, [0, 2]], colour, strength, self.owner))

    def hexa(
        self,
        bottom: tuple[float, float, float],
        top_rear: tuple[float, float],
        top_front: tuple[float, float],
        widths: tuple[float, float],
        colour: ArrayLike,
        contrast: float = 0.05,
        material: Material = Material.PLAIN,
        look: Sequence[float] = (0.0, 0.0, 0.0),
        sides: str = "lrbft",
    ) -> dict[str, Array]:
        """A body with a flat bottom (height, z from, z to), a top from (z, height) to (z, height), and two widths.

        Returns its faces, which take inlaid parts: l, r, b (back), f, t.
        """
        y, z0, z1 = bottom
        (zr, yr), (zf, yf) = top_rear, top_front
        a, b = widths[0] / 2, widths[1] / 2
        faces = {
            "b": [(-a, y, z0), (a, y, z0), (b, yr, zr), (-b, yr, zr)],
            "f": [(a, y, z1), (-a, y, z1), (-b, yf, zf), (b, yf, zf)],
            "l": [(-a, y, z1), (-a, y, z0), (-b, yr, zr), (-b, yf, zf)],
            "r": [(a, y, z0), (a, y, z1), (b, yf, zf), (b, yr, zr)],
            "t": [(-b, yr, zr), (b, yr, zr), (b, yf, zf), (-b, yf, zf)],
        }
        found = {name: np.array(face, np.float64) for name, face in faces.items()}
        for name in sides:
            self.quad(found[name], colour, contrast, material, look=look)
        return found

    def box(self, size: Sequence[float], colour: ArrayLike, bottom: float = 0.0, **options) -> dict[str, Array]:
        """An upright box of (width, height, length) around the origin."""
        width, height, length = size
        ends = (-length / 2, length / 2)
        return self.hexa(
            (bottom, *ends),
            (ends[0], bottom + height),
            (ends[1], bottom + height),
            (width, width),
            colour,
            **options,
        )

    def inlay(
        self,
        face: Array,
        across: tuple[float, float],
        up: tuple[float, float],
        colour: ArrayLike,
        out: float = 0.015,
        **options,
    ) -> None:
        """A part of a face, from and to shares of its width and height, laid on it."""
        first, second, third, fourth = face
        edge, upper = second - first, third - fourth
        corners = np.empty((4, 3))
        for column, share in enumerate(across):
            low, high = first + share * edge, fourth + share * upper
            corners[column] = low + up[0] * (high - low)
            corners[3 - column] = low + up[1] * (high - low)
        side = fourth - first
        normal = np.array(
            [
                edge[1] * side[2] - edge[2] * side[1],
                edge[2] * side[0] - edge[0] * side[2],
                edge[0] * side[1] - edge[1] * side[0],
            ]
        )
        # Corners are (x, height, z): a left-handed triple, so the outside is against the cross product.
        corners -= normal * (out / max(math.sqrt(float(normal @ normal)), 1e-9))
        self.quad(corners, colour, **options)

    def wall(
        self,
        lateral: tuple[float, float],
        along: tuple[float, float],
        heights: tuple[float, float],
        colour: ArrayLike,
        step: float = 12.0,
        **options,
    ) -> None:
        """A strip that follows the road, from (lateral, height) at its foot to (lateral, height) at its top."""
        self.origin, self.yaw, self.owner = (0.0, 0.0), 0.0, FOLLOWS_ROAD
        start, end = along
        if self.terrain.curve == 0 and self.terrain.bend == 0:
            step = 1e9
        while start < end:
            # Far segments may be long: they are small in the picture.
            stop = min(end, start + max(step, 0.35 * start))
            corners = [
                (lateral[0], heights[0], stop),
                (lateral[0], heights[0], start),
                (lateral[1], heights[1], start),
                (lateral[1], heights[1], stop),
            ]
            self.quad(corners, colour, two_sided=True, **options)
            start = stop
        self.owner = -1

    def _stand(self, corners: Array, place: Array, along_road: NDArray[np.bool_]) -> Array:
        """World points of quads [N,4,3] at their places [N,3]; those `along_road` follow it, others stay rigid."""
        terrain = self.terrain
        lateral, along, yaw = (place[:, i, None] for i in range(3))
        rise = terrain.slope + 2 * terrain.bend * along
        heading = yaw + terrain.curve * along
        cos, sin = np.cos(heading), np.sin(heading)
        x, height, z = corners[..., 0], corners[..., 1], corners[..., 2]
        ahead = -sin * x + cos * z
        foot = terrain.place(np.stack([lateral, np.zeros_like(lateral), along], -1))
        rigid = np.stack(
            [foot[..., 0] + cos * x + sin * z, foot[..., 1] - height - rise * ahead, foot[..., 2] + ahead], -1
        )
        return np.where(along_road[:, None, None], terrain.place(corners), rigid)

    def scene(self) -> Scene:
        raw, colour, look, material, cut, owner, two_sided, place = zip(*self.quads, strict=True)
        corners = self._stand(np.array(raw, np.float64), np.array(place), np.array(owner) == FOLLOWS_ROAD)
        u_axis = corners[:, 1] - corners[:, 0]
        u_axis /= np.maximum(np.linalg.norm(u_axis, axis=1, keepdims=True), 1e-9)
        v_axis = corners[:, 3] - corners[:, 0]
        v_axis -= (v_axis * u_axis).sum(1, keepdims=True) * u_axis
        v_axis /= np.maximum(np.linalg.norm(v_axis, axis=1, keepdims=True), 1e-9)
        centre, radius, ball_colour, ball_cut, leaves, ball_owner = (
            zip(*self.balls, strict=True) if self.balls else ((), (), (), (), (), ())
        )
        return Scene(
            self.terrain,
            corners,
            u_axis,
            v_axis,
            np.array(colour, np.float32),
            np.array(look, np.float32),
            np.array(material, np.int8),
            np.array(cut, np.int8),
            np.maximum(np.array(owner, np.int32), -1),
            np.array(two_sided, bool),
            np.array(centre, np.float64).reshape(-1, 3),
            np.array(radius, np.float64).reshape(-1, 3),
            np.array(ball_colour, np.float32).reshape(-1, 3),
            np.array(ball_cut, np.float32),
            np.array(leaves, bool),
            np.array(ball_owner, np.int32),
            self.decals,
            np.array(self.velocity, np.float64).reshape(-1, 2),
        )
