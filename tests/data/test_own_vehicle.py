"""The own vehicle in rendered drives: painted into the picture it is found, and without it nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mcd.data.own_vehicle import LEAST, own_vehicle_in
from mcd.data.video import VideoReader
from mcd.streets.ray_caster import NoiseTexture, render
from mcd.streets.street import StreetParameters, make_street

CLIP = Path(__file__).parents[1] / "clip" / "highway.mp4"
SIZE = (120, 320)
VIEWS = 30

Clip = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def drive() -> Clip:
    """A street with parked cars and one ahead that keeps its place."""
    rng = np.random.default_rng(5)
    parameters = StreetParameters(lead_probability=1.0, lead_speed=(0.97, 1.0), pitch=(-0.015, 0.015))
    street = make_street(rng, VIEWS, parameters)
    texture = NoiseTexture(rng)
    K = np.array([[0.8 * SIZE[1], 0, (SIZE[1] - 1) / 2], [0, 0.8 * SIZE[1], 0.4 * SIZE[0]], [0, 0, 1]])
    return [
        render(street.boxes.at(time), texture, street.light, K, SIZE, pose).image
        for time, pose in enumerate(street.T_world_cam)
    ]


def bonnet(clip: Clip) -> tuple[Clip, NDArray[np.bool_]]:
    """A curved bonnet that mirrors, blurred, what is above it."""
    height, width = SIZE
    v, u = np.mgrid[:height, :width]
    region = v > height * (0.8 + 0.1 * (2 * u / width - 1) ** 2)
    shade = 50 + 40.0 * (v / height)
    painted = []
    for frame in clip:
        mirror = np.asarray(Image.fromarray(frame[::-1]).filter(ImageFilter.GaussianBlur(6)))
        painted.append(np.where(region[..., None], shade[..., None] + 0.12 * mirror, frame).astype(np.uint8))
    return painted, region


def stamp(clip: Clip) -> tuple[Clip, NDArray[np.bool_]]:
    """A logo, and the time in figures that change."""
    painted, region = [], np.zeros(SIZE, bool)
    region[6:26, 285:305] = True
    region[6:18, 10:110] = True
    for number, frame in enumerate(clip):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        draw.ellipse((285, 6, 304, 25), fill=(210, 20, 20), outline=(255, 255, 255))
        draw.text((12, 6), f"12:00:{number:02d} 88 km/h", fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
        painted.append(np.asarray(image))
    return painted, region


def reflection(clip: Clip) -> tuple[Clip, NDArray[np.bool_]]:
    """Something on the dashboard that shines in the windscreen."""
    added = np.zeros(SIZE)
    added[70:90, 120:150] = 100
    return [np.minimum(frame + added[..., None], 255).astype(np.uint8) for frame in clip], added > 0


def compressed(clip: Clip) -> Clip:
    from io import BytesIO

    found = []
    for frame in clip:
        buffer = BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=85)
        found.append(np.asarray(Image.open(buffer)))
    return found


@pytest.mark.parametrize("frames", [slice(72), slice(None), slice(40, None)], ids=["begin", "all", "end"])
def test_a_smooth_road_is_no_bonnet(frames: slice) -> None:
    """On a motorway the border of the road stays, as an outline does, and below it little but markings passes."""
    found = own_vehicle_in(list(VideoReader(CLIP))[frames])
    assert found is not None and found.mean() < 0.01


def test_of_a_clean_drive_nothing_is_marked(drive: Clip) -> None:
    found = own_vehicle_in(compressed(drive))
    assert found is not None
    assert found.mean() < 0.005


def test_a_bonnet_is_marked_and_no_more(drive: Clip) -> None:
    painted, region = bonnet(drive)
    found = own_vehicle_in(compressed(painted))
    assert found is not None
    assert (found & region).sum() > 0.97 * region.sum()
    # Its edge is blurred over two rows of the 24 that it has.
    assert (found & ~region).sum() < 0.1 * region.sum()


def test_a_logo_and_a_time_stamp_are_marked(drive: Clip) -> None:
    painted, region = stamp(drive)
    found = own_vehicle_in(compressed(painted))
    assert found is not None
    assert found[8:24, 287:303].mean() > 0.95
    assert (found & region).sum() > 0.5 * region.sum()
    grown = np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MaxFilter(9))) > 0
    assert (found & ~grown).mean() < 0.005


def test_the_edges_of_a_reflection_are_marked(drive: Clip) -> None:
    painted, region = reflection(drive)
    found = own_vehicle_in(compressed(painted))
    assert found is not None
    edge = np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    edge &= ~(np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MinFilter(3))) > 0)
    # Less bright, and the texture behind it hides more of it: of one of 40 grey levels a quarter is found.
    assert found[edge].mean() > 0.6
    assert (found & ~region).mean() < 0.01


def test_a_camera_that_stands_and_a_clip_too_short_say_nothing(drive: Clip) -> None:
    assert own_vehicle_in([drive[0]] * 40) is None
    assert own_vehicle_in(drive[: LEAST - 1]) is None


def test_a_stop_at_a_light_does_not_outvote_the_drive(drive: Clip) -> None:
    painted, region = bonnet(drive)
    found = own_vehicle_in(painted[:15] + [painted[15]] * 60 + painted[15:])
    assert found is None or (found & ~region).mean() < 0.02
