from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import Augment, Data
from mcd.data import FrameDataset, Frames, Map, dataset, open_reader
from mcd.data.files import read_image, resize_image
from mcd.files import DataError

Files = Any

FLIP = Augment(flip=1, jitter=0)
HEIGHT, WIDTH = 10, 17


@dataclass
class OneFrame:
    """A reader of given images."""

    image: np.ndarray
    K: np.ndarray
    frames = ("frame",)

    def spacings(self, frame: str) -> tuple[int, ...]:
        return (1,)

    def pictures(self, frame: str, spacing: int | None = None) -> tuple[str, ...]:
        return (frame,) * 3

    def read(self, frame: str, spacing: int | None = None, *, sources: bool = True) -> Frames:
        return Frames((self.image,) * (3 if sources else 1), self.K)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def test_an_item_holds_the_triplet_and_its_camera(triplets: Data, files: Files) -> None:
    item = FrameDataset(open_reader(triplets, "train"), triplets)[0]
    whole = torch.from_numpy(files.noise(HEIGHT, 3 * WIDTH, seed=2)).permute(2, 0, 1)
    assert item["frame"] == "a/a_000000_000009"
    assert item["index"] == 0
    assert torch.equal(item["reference"], whole[..., WIDTH : 2 * WIDTH])
    assert torch.equal(item["sources"], torch.stack((whole[..., :WIDTH], whole[..., 2 * WIDTH :])))
    assert item["K"].dtype == torch.float32
    assert item["K"].tolist() == [[12.5, 0, 8.25], [0, 11.5, 4.5], [0, 0, 1]]


def test_what_looks_at_the_reference_alone_reads_and_ships_nothing_else(
    triplets: Data, sequence: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, alone = (
        FrameDataset(open_reader(triplets, "train"), triplets, Augment(flip=1, jitter=1), images=s)[0, 3]
        for s in ("triplet", "reference")
    )
    assert set(whole) - set(alone) == {"sources"}
    assert same(alone, {name: value for name, value in whole.items() if name != "sources"})
    opened: list[Path] = []
    monkeypatch.setattr("mcd.data.sequence.read_image", lambda path: opened.append(path) or read_image(path))
    config = sequence()
    reader = open_reader(config, "train")
    for images, count in (("triplet", 3), ("reference", 1)):
        opened.clear()
        FrameDataset(reader, config, images=images)[0]
        assert len(opened) == count and opened[count // 2].stem == reader.frames[0]
    opened.clear()
    labels = {"plane": Map(np.arange(48.0, dtype=np.float32).reshape(1, 6, 8))}
    blind, seeing = (
        FrameDataset(reader, config, Augment(flip=0.5), images=images, labels=lambda item: labels)
        for images in ("none", "reference")
    )
    for draw in range(4):
        without, item = blind[2, draw], seeing[2, draw]
        assert set(item) - set(without) == {"reference", "K", "jitter"}
        assert same(without, {name: item[name] for name in without}), "the same draws"
    assert len(opened) == 1, "by the one that sees, once"


def test_an_item_depends_on_seed_draw_and_index_alone(triplets: Data) -> None:
    reader = open_reader(triplets, "train")
    first, second = (FrameDataset(reader, triplets, Augment(), seed=3) for _ in range(2))
    keys = [(index, draw) for draw in range(4) for index in range(4)]
    items = {key: first[key] for key in keys}
    for key in reversed(keys):
        assert same(items[key], second[key])
    for name in ("reference", "jitter"):
        assert len({items[0, draw][name].numpy().tobytes() for draw in range(4)}) > 1, "draws differ"
    other = FrameDataset(reader, triplets, Augment(), seed=4)
    assert not all(same(items[key], other[key]) for key in keys), "seeds differ"


def test_draws_of_the_stage_are_spread_over_the_unit_interval(triplets: Data) -> None:
    items = FrameDataset(open_reader(triplets, "train"), triplets)
    draws = [float(items[index, draw]["draw"]) for index in range(4) for draw in range(50)]
    assert 0 <= min(draws) < 0.05
    assert 0.95 < max(draws) < 1


def test_a_flip_takes_labels_and_camera_with_it() -> None:
    """A marked pixel stays on its masks, its depth and (mirrored) its ray; rows are not turned over."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[2, 5] = 200
    K = np.array([[12.5, 0, 7.25], [0, 11.5, 4.5], [0, 0, 1]])
    reader, config = OneFrame(image, K), Data(size=(HEIGHT, WIDTH))
    mark = image[..., 0] > 0

    def labels(item: Any) -> dict[str, Any]:
        return {
            "instances": Map(np.stack([mark, ~mark, mark])),
            "object_masks": Map(mark[None]),
            "pseudo_depth": Map(np.where(mark, 7.0, 1.0)[None]),
            "ids": [4, 5, 9],
            "pose": torch.eye(4)[:3],
        }

    plain = FrameDataset(reader, config, None, labels=labels)[0]
    flipped = FrameDataset(reader, config, FLIP, labels=labels)[0]
    row, column = 2, WIDTH - 1 - 5
    for name in ("reference", "sources", "instances", "object_masks", "pseudo_depth"):
        assert torch.equal(flipped[name], plain[name].flip(-1)), name
        assert flipped[name].dtype == plain[name].dtype
    assert flipped["reference"][0, row, column] == 200
    assert flipped["object_masks"][0, row, column]
    assert flipped["pseudo_depth"][0, row, column] == 7
    assert flipped["ids"] == [4, 5, 9]
    assert torch.equal(flipped["pose"], torch.eye(4)[:3])
    ray, mirrored = (
        np.linalg.solve(item["K"].double().numpy(), [x, row, 1]) for item, x in ((plain, 5), (flipped, column))
    )
    # K is stored in float32: 1e-7 of coordinates of about 1.
    assert np.allclose(mirrored, ray * [-1, 1, 1], atol=1e-6)


def test_flips_come_with_their_probability(triplets: Data) -> None:
    reader = open_reader(triplets, "train")
    plain = FrameDataset(reader, triplets)
    flipping = FrameDataset(reader, triplets, Augment(flip=0.25, jitter=0))
    flips = [not torch.equal(flipping[0, draw]["reference"], plain[0]["reference"]) for draw in range(200)]
    # Standard deviation 0.03: four of them.
    assert abs(np.mean(flips) - 0.25) < 0.12


@pytest.mark.parametrize("half_pixel", [True, False])
def test_a_point_is_seen_where_the_resized_camera_projects_it(half_pixel: bool) -> None:
    """Exact with the half-pixel rule; the published row scaling is off by what the rule says."""
    height, width, size = 48, 96, (16, 24)
    y, x = np.mgrid[:height, :width]
    centre = np.array([61.3, 20.6])
    blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 8.0**2))
    image = np.repeat(blob.astype(np.uint8)[..., None], 3, axis=2)
    K = np.array([[50.0, 0, 47.5], [0, 60.0, 23.5], [0, 0, 1]])
    config = Data(size=size, half_pixel=half_pixel)
    item = FrameDataset(OneFrame(image, K), config)[0]
    weight = item["reference"][0].double().numpy()
    rows, columns = np.mgrid[: size[0], : size[1]]
    seen = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    projected = (item["K"].double().numpy() @ np.linalg.solve(K, [*centre, 1]))[:2]
    bias = (0, 0) if half_pixel else (0.5 - 0.5 * 24 / 96, 0.5 - 0.5 * 16 / 48)
    # The blob is rounded to 256 levels and cut at the border: a few hundredths of a pixel.
    assert np.allclose(projected - seen, bias, atol=0.04)


def test_images_are_resized_straight_from_the_native_size_by_lanczos(files: Files) -> None:
    image = files.noise(48, 96)
    item = FrameDataset(OneFrame(image, np.eye(3)), Data(size=(12, 20)))[0]
    expected = np.asarray(Image.fromarray(image).resize((20, 12), Image.Resampling.LANCZOS))
    assert np.array_equal(item["reference"].permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(resize_image(image, (12, 20)), expected)


def test_labels_of_another_size_are_resized_without_blending(files: Files) -> None:
    values = np.random.default_rng(0).uniform(size=(2, 20, 34)).astype(np.float64)
    reader = OneFrame(files.noise(HEIGHT, WIDTH), np.eye(3))
    labels = {"depth": Map(values), "mask": Map(values > 0.5)}
    item = FrameDataset(reader, Data(size=(HEIGHT, WIDTH)), labels=lambda item: labels)
    # A pixel of half the size has its centre on the corner of four; the rule takes the lower right one.
    expected = torch.from_numpy(values[:, 1::2, 1::2].astype(np.float32))
    assert item[0]["depth"].dtype == torch.float32
    assert torch.equal(item[0]["depth"], expected)
    assert item[0]["mask"].dtype == torch.bool
    assert torch.equal(item[0]["mask"], expected > 0.5)


def test_a_label_that_is_not_finite_names_itself_and_the_frame(triplets: Data) -> None:
    depth = np.ones((1, HEIGHT, WIDTH), np.float32)
    depth[0, 3, 3] = np.nan
    broken = FrameDataset(open_reader(triplets, "train"), triplets, labels=lambda item: {"pseudo_depth": Map(depth)})
    with pytest.raises(DataError, match="'pseudo_depth' of frame a/a_000000_000009 is not finite"):
        broken[0]


def test_labels_are_bool_or_floating(triplets: Data) -> None:
    """An integer mask would be taken for an image on its way to the device."""
    grey = np.ones((1, HEIGHT, WIDTH), np.uint8)
    with pytest.raises(TypeError, match="label 'road' is uint8"):
        FrameDataset(open_reader(triplets, "train"), triplets, labels=lambda item: {"road": Map(grey)})[0]


def test_an_array_that_may_be_a_picture_or_not_is_refused(triplets: Data) -> None:
    """Poses [2,4,4] look as masks do, and would be resized."""
    poses = np.eye(4, dtype=np.float32)[None].repeat(2, 0)
    with pytest.raises(TypeError, match=r"label 'T' is an array \[2, 4, 4\]: Map\(array\)"):
        FrameDataset(open_reader(triplets, "train"), triplets, labels=lambda item: {"T": poses})[0]


def test_items_may_be_fewer_or_more_than_frames(triplets: Data) -> None:
    @dataclass(frozen=True)
    class Thing:
        frame: str
        row: int

    things = [Thing("b/b_000000_000001", 1), Thing("b/b_000000_000001", 0)]
    items = FrameDataset(
        open_reader(triplets, "train"), triplets, items=things, labels=lambda thing: {"row": thing.row}
    )
    assert [items[index]["row"] for index in range(len(items))] == [1, 0]
    assert len(FrameDataset(open_reader(triplets, "train"), triplets, items=[])) == 0


def test_spacing_is_drawn_while_training_and_the_first_otherwise(sequence: Callable[..., Data]) -> None:
    config = sequence(spacing=(2, 1))
    reader = open_reader(config, "train")
    index = reader.frames.index("0004")

    def distances(augment: Augment | None) -> list[int]:
        items = FrameDataset(reader, config, augment)
        return [40 - int(items[index, draw]["sources"][0, 0, 0, 0]) for draw in range(20)]

    assert distances(None) == [20] * 20
    assert set(distances(Augment(flip=0, jitter=0))) == {10, 20}


def test_options_of_the_augmentation_do_not_change_each_other(triplets: Data) -> None:
    """Turning the jitter off must leave the flips of a seed as they were."""
    reader = open_reader(triplets, "train")
    with_jitter, without = (FrameDataset(reader, triplets, Augment(jitter=jitter)) for jitter in (1, 0))
    for draw in range(8):
        assert torch.equal(with_jitter[1, draw]["K"], without[1, draw]["K"])


def test_a_broken_item_stops_by_default(triplets: Data, files: Files) -> None:
    files.truncate(triplets.root / "triplets" / "a" / "a_000000_000010.png")
    with pytest.raises(DataError, match=r"a_000000_000010\.png"):
        FrameDataset(open_reader(triplets, "train"), triplets)[1]


def test_a_broken_item_gives_way_to_the_next_that_can_be_read(triplets: Data, files: Files) -> None:
    config = triplets.model_copy(update={"on_error": "skip"})
    items = FrameDataset(open_reader(triplets, "train"), config, Augment(), seed=1)
    whole = items[3, 5]
    assert whole["skipped"] == []
    items = FrameDataset(open_reader(triplets, "train"), config, Augment(), seed=1)
    files.truncate(config.root / "triplets" / "a" / "a_000000_000010.png")
    (config.root / "triplets" / "a" / "a_000001_000000_cam.txt").unlink()
    replaced = items[1, 5]
    assert len(replaced["skipped"]) == 2
    assert "a_000000_000010.png" in replaced["skipped"][0]
    assert same(replaced | {"skipped": []}, whole)
    for path in (config.root / "triplets").glob("*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 4 items can be read"):
        FrameDataset(open_reader(triplets, "train"), config)[0]


def test_a_bug_in_a_label_is_not_skipped(triplets: Data) -> None:
    config = triplets.model_copy(update={"on_error": "skip"})
    with pytest.raises(ZeroDivisionError):
        FrameDataset(open_reader(triplets, "train"), config, labels=lambda item: {"x": 1 // 0})[0]


@pytest.mark.parametrize("room", [0, 4 * 9 * HEIGHT * WIDTH])
def test_a_small_data_set_is_read_once(triplets: Data, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(dataset, "CACHE_BYTES", room)
    items = FrameDataset(open_reader(triplets, "train"), triplets, Augment(), seed=0)
    first = [items[index, 1] for index in range(4)]
    for path in (triplets.root / "triplets").glob("*/*.png"):
        path.unlink()
    if room:
        assert all(same(items[index, 1], first[index]) for index in range(4))
    else:
        with pytest.raises(DataError):
            items[0, 1]
