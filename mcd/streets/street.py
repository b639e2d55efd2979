"""Random streets for the ray caster: buildings, parked and moving vehicles, and the path of the camera car.

The ranges decide whether the demonstration works. The auto-mask would drop a lead car at the camera's own speed, and
one that stopped in the lane looks like a parked one, so lead cars drive at 0.45 to 0.85 of the camera's speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcd.streets.ray_caster import Boxes, Light, Material, yaw_matrix

Range = tuple[float, float]
Role = Literal["parked", "lead", "oncoming", "crossing"]


@dataclass(frozen=True)
class StreetParameters:
    """Ranges are uniform; metres, radians and metres a frame."""

    focal_length: float = 0.8  # of the image width
    horizon: float = 0.4  # row of the principal point, of the image height
    camera_height: float = 1.5
    ego_speed: Range = (0.6, 1.1)
    yaw_rate: Range = (-0.012, 0.012)
    pitch: Range = (-0.01, 0.01)
    building_distance: Range = (7.0, 10.0)
    lead_probability: float = 0.65
    lead_gap: Range = (5.0, 16.0)  # camera to the rear of the car, in every view
    lead_speed: Range = (0.45, 0.85)  # of the camera's speed
    oncoming_probability: float = 0.6
    oncoming_count: tuple[int, int] = (1, 2)
    oncoming_speed: Range = (0.4, 1.0)
    crossing_probability: float = 0.25
    crossing_speed: Range = (0.3, 0.8)
    parked_count: tuple[int, int] = (4, 8)
    parked_distance: Range = (4.2, 5.6)
    side_on_share: float = 0.15  # of the parked cars
    van_share: float = 0.15
    long_share: float = 0.1  # lorries and buses
    angled_share: float = 0.15
    contrast: Range = (0.10, 0.20)


@dataclass(frozen=True)
class Vehicle:
    """`position` [x, z] at time 0 in m, of the middle; `size` length, width, height in m; speed in m a frame."""

    role: Role
    position: tuple[float, float]
    size: tuple[float, float, float]
    yaw: float
    speed: float

    @property
    def velocity(self) -> NDArray[np.float64]:
        return self.speed * np.array([math.sin(self.yaw), math.cos(self.yaw)])

    def footprint(self) -> NDArray[np.float64]:
        """Half extents in x and z."""
        length, width, _ = self.size
        sin, cos = abs(math.sin(self.yaw)), abs(math.cos(self.yaw))
        return 0.5 * np.array([sin * length + cos * width, cos * length + sin * width])


@dataclass(frozen=True)
class Street:
    """A scene: `boxes` whose owners are indices into `vehicles`, and one camera pose `T_world_cam` [V,4,4] a view."""

    boxes: Boxes
    light: Light
    vehicles: list[Vehicle]
    T_world_cam: NDArray[np.float64]


class _BoxList:
    """Collects boxes one by one."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._rows: list[tuple] = []

    def add(
        self,
        centre: ArrayLike,
        half: ArrayLike,
        colour: ArrayLike,
        contrast: float,
        material: Material,
        vehicle: Vehicle | None = None,
        owner: int = -1,
    ) -> None:
        """A box of `vehicle`, number `owner` on the street, or of something that stands."""
        yaw, velocity = (vehicle.yaw, vehicle.velocity) if vehicle else (0.0, (0.0, 0.0))
        anchor = self._rng.uniform(0, 14.2, 2)
        self._rows.append((centre, half, (velocity[0], 0, velocity[1]), yaw, colour, contrast, anchor, owner, material))

    def boxes(self) -> Boxes:
        centre, half, velocity, yaw, colour, contrast, anchor, owner, material = zip(*self._rows, strict=True)
        return Boxes(
            centre=np.array(centre, np.float64),
            half=np.array(half, np.float64),
            velocity=np.array(velocity, np.float64),
            yaw=np.array(yaw, np.float64),
            colour=np.array(colour, np.float32),
            contrast=np.array(contrast, np.float32),
            anchor=np.array(anchor, np.float32),
            owner=np.array(owner, np.int32),
            material=np.array(material, np.int8),
        )


class _Traffic:
    """Places vehicles one after the other so that no two ever touch."""

    def __init__(self, times: NDArray[np.float64]):
        self._times = times[:, None]
        self._tracks: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self.vehicles: list[Vehicle] = []

    def block(self, centres: NDArray[np.float64], half: NDArray[np.float64]) -> None:
        """An obstacle: `centres` [V,2] or [1,2] and half extents [2]."""
        self._tracks.append((centres, half))

    def place(self, sample: Callable[[], Vehicle], tries: int = 40) -> None:
        """Keep the first vehicle drawn by `sample()` that is clear of the others in all views; none if none is."""
        for _ in range(tries):
            vehicle = sample()
            track, half = vehicle.position + self._times * vehicle.velocity, vehicle.footprint()
            if all((np.abs(track - other) > half + size + 0.2).any(1).all() for other, size in self._tracks):
                self.vehicles.append(vehicle)
                self.block(track, half)
                return


def make_street(rng: np.random.Generator, views: int, parameters: StreetParameters) -> Street:
    """A random street and the poses of `views` consecutive views."""
    p = parameters
    T_world_cam = _camera_path(rng, views, p)
    boxes = _BoxList(rng)
    road_half_width, side = rng.uniform(6.0, 6.6), rng.choice((-1, 1))
    grey = rng.uniform(0.36, 0.5)
    tint = rng.uniform(0.95, 1.05, 3)
    boxes.add((0, 50, 0), (1000, 50, 1000), grey * tint, rng.uniform(*p.contrast), Material.GROUND)
    traffic = _Traffic(np.arange(views, dtype=np.float64))
    for centre, half in _buildings(rng, boxes, p):
        traffic.block(centre[None], half)
    _drive(rng, traffic, T_world_cam[:, [0, 2], 3], side, p)
    for owner, vehicle in enumerate(traffic.vehicles):
        _add_vehicle(rng, boxes, vehicle, owner, p)
    sun = rng.normal(size=3)
    sun[1] = -rng.uniform(0.8, 1.6)
    light = Light(
        sky=rng.uniform((0.55, 0.66, 0.8), (0.75, 0.82, 0.95)).astype(np.float32),
        sun=(sun / np.linalg.norm(sun)).astype(np.float32),
        road_half_width=road_half_width,
        lane_line=float(side * 1.25),
    )
    return Street(boxes.boxes(), light, traffic.vehicles, T_world_cam)


def _camera_path(rng: np.random.Generator, views: int, p: StreetParameters) -> NDArray[np.float64]:
    speed, rate = rng.uniform(*p.ego_speed), rng.uniform(*p.yaw_rate)
    pitch = 0.8 * rng.uniform(*p.pitch)
    yaw, position = rng.uniform(-0.02, 0.02), np.array([rng.uniform(-0.3, 0.3), -p.camera_height, 0.0])
    poses = np.tile(np.eye(4), (views, 1, 1))
    for pose in poses:
        tilt = pitch + 0.2 * rng.uniform(*p.pitch)
        cos, sin = math.cos(tilt), math.sin(tilt)
        pose[:3, :3] = yaw_matrix(yaw) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]]
        pose[:3, 3] = position
        step = np.clip(speed * rng.uniform(0.97, 1.03), *p.ego_speed)
        position = position + step * yaw_matrix(yaw)[:, 2]
        yaw += np.clip(rate + rng.uniform(-0.002, 0.002), *p.yaw_rate)
    return poses


def _buildings(
    rng: np.random.Generator, boxes: _BoxList, p: StreetParameters
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Rows of houses with gaps on both sides and a block far down the road; returns their footprints."""
    footprints = []

    def add(x: float, z: float, half_x: float, half_z: float, height: float) -> None:
        colour = rng.uniform(0.35, 0.65) * rng.uniform(0.82, 1.18, 3)
        half = (half_x, height / 2, half_z)
        boxes.add((x, -height / 2, z), half, colour, rng.uniform(*p.contrast), Material.FACADE)
        footprints.append((np.array([x, z]), np.array([half_x, half_z])))

    for side in (-1, 1):
        z = rng.uniform(-14, -4)
        while z < 100:
            length = rng.uniform(8, 22)
            add(side * (rng.uniform(*p.building_distance) + 7), z + length / 2, 7, length / 2, rng.uniform(4, 13))
            z += length + rng.uniform(0.5, 6)
    add(rng.uniform(-8, 8), rng.uniform(115, 130), 45, 6, rng.uniform(5, 14))
    return footprints


def _drive(
    rng: np.random.Generator, traffic: _Traffic, ego: NDArray[np.float64], side: int, p: StreetParameters
) -> None:
    """Lead, oncoming, crossing and parked vehicles around the camera's track `ego` [V,2]; oncoming ones on `side`."""
    traffic.block(ego, np.array([0.9, 2.0]))
    middle = (len(ego) - 1) / 2
    ego_speed = np.linalg.norm(np.diff(ego, axis=0), axis=1).mean()

    def angle(low: float, high: float) -> float:
        return rng.choice((-1, 1)) * rng.uniform(low, high) if rng.random() < p.angled_share else 0.0

    def lead() -> Vehicle:
        size, yaw, speed = _vehicle_size(rng, p), angle(0.1, 0.3), ego_speed * rng.uniform(*p.lead_speed)
        rear = Vehicle("lead", (0, 0), size, yaw, speed).footprint()[1]
        closest = max(p.lead_gap[0], 3.2 * size[2])  # closer, a lorry would be all there is to see
        travelled = speed * math.cos(yaw) * np.arange(len(ego))
        ahead = ego[:, 1] - travelled + rear  # where it would have to start for a gap of zero in each view
        z = rng.uniform(closest + ahead.max(), p.lead_gap[1] + ahead.min())
        return Vehicle("lead", (rng.uniform(-0.35, 0.35), z), size, yaw, speed)

    def oncoming() -> Vehicle:
        size, yaw, speed = _vehicle_size(rng, p), math.pi + angle(0.05, 0.15), rng.uniform(*p.oncoming_speed)
        x, z = side * rng.uniform(2.2, 2.5), ego[:, 1].mean() + rng.uniform(6, 32)
        return Vehicle("oncoming", (x, z - middle * speed * math.cos(yaw)), size, yaw, speed)

    def crossing() -> Vehicle:
        direction, speed = rng.choice((-1, 1)), rng.uniform(*p.crossing_speed)
        yaw = direction * math.pi / 2 + angle(0.1, 0.3)
        x, z = rng.uniform(-5, 5) - middle * speed * math.sin(yaw), ego[-1, 1] + rng.uniform(9, 28)
        return Vehicle("crossing", (x, z), _vehicle_size(rng, p), yaw, speed)

    def parked() -> Vehicle:
        yaw = rng.choice((0.0, math.pi)) + angle(0.15, 0.6)
        if rng.random() < p.side_on_share:
            yaw = rng.choice((-1, 1)) * math.pi / 2
        x = rng.choice((-1, 1)) * rng.uniform(*p.parked_distance)
        return Vehicle("parked", (x, rng.uniform(3, 45)), _vehicle_size(rng, p), yaw, 0.0)

    if rng.random() < p.lead_probability:
        traffic.place(lead)
    if rng.random() < p.oncoming_probability:
        for _ in range(rng.integers(p.oncoming_count[0], p.oncoming_count[1] + 1)):
            traffic.place(oncoming)
    if rng.random() < p.crossing_probability:
        traffic.place(crossing)
    for _ in range(rng.integers(p.parked_count[0], p.parked_count[1] + 1)):
        traffic.place(parked)


def _vehicle_size(rng: np.random.Generator, p: StreetParameters) -> tuple[float, float, float]:
    kind = rng.random()
    if kind < p.long_share:
        return rng.uniform(6.5, 10), rng.uniform(2.1, 2.4), rng.uniform(2.5, 3.1)
    if kind < p.long_share + p.van_share:
        return rng.uniform(4.6, 5.6), rng.uniform(1.8, 2.0), rng.uniform(1.9, 2.3)
    return rng.uniform(3.7, 4.6), rng.uniform(1.65, 1.85), rng.uniform(1.4, 1.55)


def _add_vehicle(rng: np.random.Generator, boxes: _BoxList, vehicle: Vehicle, owner: int, p: StreetParameters) -> None:
    """Three boxes: dark underside, body, dark cabin (a van's and a lorry's is the windscreen at the front)."""
    length, width, height = vehicle.size
    tall = height > 1.8
    clearance = 0.3
    body_top = height if tall else rng.uniform(0.85, 0.95)
    forward = np.array([math.sin(vehicle.yaw), math.cos(vehicle.yaw)])
    colour = rng.uniform(0.3, 0.75) * rng.uniform(0.7, 1.3, 3)
    dark, black = rng.uniform(0.12, 0.2) * np.array([0.9, 1.0, 1.15]), np.full(3, 0.05)
    cabin_length = 0.22 * length if tall else rng.uniform(0.5, 0.62) * length
    cabin_shift = (length - cabin_length) / 2 + 0.03 if tall else rng.uniform(-0.1, 0.02) * length
    cabin = (body_top - 0.42 * height, body_top - 0.08) if tall else (body_top, height)

    def add(
        bottom: float,
        top: float,
        box_length: float,
        box_width: float,
        shift: float,
        paint: ArrayLike,
        contrast: float,
        material: Material,
    ) -> None:
        x, z = vehicle.position + shift * forward
        half = (box_width / 2, (top - bottom) / 2, box_length / 2)
        boxes.add((x, -(top + bottom) / 2, z), half, paint, contrast, material, vehicle, owner)

    add(0, clearance, 0.9 * length, 0.94 * width, 0, black, 0.1, Material.PLAIN)
    add(clearance, body_top, length, width, 0, colour, rng.uniform(*p.contrast), Material.PAINT)
    add(*cabin, cabin_length, (width + 0.04) if tall else 0.88 * width, cabin_shift, dark, 0.15, Material.PLAIN)
