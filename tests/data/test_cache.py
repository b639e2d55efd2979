from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcd.config import Augment, Data
from mcd.data import FrameDataset, StepSampler, build_loader, cache, open_reader, prefetch
from mcd.data import prepare as command
from mcd.data.cache import PictureCache
from mcd.data.prepare_cache import empty_cache, fill_cache, ready_cache
from mcd.files import DataError

Files = Any
SIZE = (7, 11)  # not that of the files: pictures are resized


def cached(config: Data, **keys: Any) -> Data:
    return config.model_copy(update={"size": SIZE, "cache": config.root / "cache", **keys})


def items_of(config: Data, augment: Augment | None = None) -> list[dict[str, Any]]:
    found = FrameDataset(open_reader(config, "train"), config, augment, seed=1)
    return [found[index, draw] for draw in range(2) for index in range(len(found))]


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets keep nothing, so that all is read from files."""
    monkeypatch.setattr("mcd.data.dataset.CACHE_BYTES", 0)


@pytest.fixture(params=["triplets", "sequence", "two spacings"])
def config(request: pytest.FixtureRequest, triplets: Data, sequence: Callable[..., Data]) -> Data:
    if request.param == "triplets":
        return cached(triplets)
    keys = {"train_frames": (0, 7), "val_frames": (0, 7), "spacing": (2, 1) if "two" in request.param else (1,)}
    return cached(sequence(**keys))


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_those_of_the_files(
    config: Data, workers: int, no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PICTURES_A_FILE", 5)  # triplets lie across files
    truth = items_of(config.model_copy(update={"cache": None}), Augment())
    assert fill_cache(config, workers=workers) == []
    found = PictureCache(config.cache, config)
    assert found.present().all() and found.damaged() == []
    assert_same(items_of(config, Augment()), truth)
    # Of nothing but the cache, and any worker.
    for path in config.root.rglob("*.png"):
        if "sequence" not in config.kind:
            path.unlink()
    assert_same(items_of(config, Augment()), truth)
    assert_same(items_of(pickle.loads(pickle.dumps(config)), Augment()), truth)


def test_the_files_are_numpys_own(triplets: Data) -> None:
    config = cached(triplets)
    fill_cache(config)
    pictures = np.load(config.cache / "pictures-00000.npy", mmap_mode="r")
    names = (config.cache / "names.txt").read_text().split()
    assert pictures.shape == (len(names), 3, *SIZE) == (12, 3, *SIZE)
    item = items_of(config)[0]
    assert np.array_equal(pictures[names.index(f"{item['frame']}:1")], item["reference"].numpy())
    assert np.load(config.cache / "index.npy")[0, :9].reshape(3, 3)[0, 0] == 12.5


def test_what_is_there_is_not_made_again(triplets: Data, no_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cached(triplets)
    made = empty_cache(config)
    reader = open_reader(config, "train")
    truth = items_of(config)
    first = reader.frames[0]
    from mcd.data import prepare_cache
    from mcd.data.dataset import load_planes

    made.write(reader.pictures(first), load_planes(reader, first, 1, SIZE, sources=True))
    read: list[str] = []
    load = prepare_cache.load_planes
    monkeypatch.setattr(
        prepare_cache, "load_planes", lambda r, frame, *a, **k: read.append(frame) or load(r, frame, *a, **k)
    )
    fill_cache(config, workers=0)
    assert sorted(read) == sorted(set(reader.frames) - {first})
    read.clear()
    fill_cache(config, workers=0)
    assert read == []
    assert_same(items_of(config), truth)


def test_every_picture_of_a_sequence_is_read_seldom(
    sequence: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cached(sequence(train_frames=(0, 7), val_frames=(0, 7)))
    opened: list[Path] = []
    from mcd.data.files import read_image

    monkeypatch.setattr("mcd.data.sequence.read_image", lambda path: opened.append(path) or read_image(path))
    fill_cache(config, workers=0)
    # Two triplets of 8 pictures, and a third for the two that are left.
    assert len(opened) == 9


def test_a_run_fills_it_while_it_reads(triplets: Data, no_memory: None) -> None:
    config = cached(triplets, fill_cache=True)
    truth = items_of(triplets.model_copy(update={"size": SIZE}), Augment())
    ready_cache(config)
    assert not PictureCache(config.cache, config).present().any()
    found = FrameDataset(open_reader(config, "train"), config, Augment(), seed=1)
    list(prefetch(build_loader(found, StepSampler(4, 2, 0, 0, 2), workers=2)))
    assert PictureCache(config.cache, config).present().all()
    for path in (config.root / "triplets").rglob("*.png"):
        path.unlink()
    assert_same(items_of(config, Augment()), truth)


def test_two_that_begin_at_once_fill_one_cache(triplets: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    config, filled, begun = cached(triplets), threading.Event(), threading.Event()
    make = cache._make_array

    def slow(path: Path, *rest: Any) -> None:
        if threading.current_thread() is other and path.name != cache.INDEX:
            begun.set()
            filled.wait(1)
        make(path, *rest)

    monkeypatch.setattr(cache, "_make_array", slow)
    other = threading.Thread(target=empty_cache, args=(config,))
    other.start()
    begun.wait(60)
    fill_cache(config, workers=0)
    filled.set()
    other.join()
    found = PictureCache(config.cache, config)
    assert found.present().all() and found.damaged() == []


@pytest.mark.parametrize("name", [cache.NAMES, cache.MANIFEST])
def test_a_process_that_is_killed_while_it_makes_it_leaves_nothing_in_the_way(
    triplets: Data, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, replace = cached(triplets), Path.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(Path, "replace", lambda self, path: killed() if path.name == name else replace(self, path))
        with pytest.raises(Killed):
            fill_cache(config, workers=0)
    assert [path for path in config.cache.iterdir() if path.name[0] == "."]
    fill_cache(config, workers=0)
    assert PictureCache(config.cache, config).present().all()


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def test_without_filling_a_missing_picture_is_read_from_its_file(triplets: Data, no_memory: None) -> None:
    config = cached(triplets)
    empty_cache(config)
    assert_same(items_of(config), items_of(triplets.model_copy(update={"size": SIZE})))
    assert not PictureCache(config.cache, config).present().any()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("size", (8, 11), r"made with data.size \[7, 11\], not \[8, 11\]"),
        ("root", Path("elsewhere"), r"made with data.root .*, not .*elsewhere"),
        ("kind", "kitti", "made with data.kind triplets, not kitti"),
    ],
)
def test_another_option_is_named(triplets: Data, key: str, value: Any, says: str) -> None:
    config = cached(triplets)
    fill_cache(config, workers=0)
    with pytest.raises(DataError, match=says):
        PictureCache(config.cache, config.model_copy(update={key: value}))


@pytest.mark.filterwarnings("ignore:intrinsics of")
def test_of_a_sequence_the_camera_may_be_found_later(sequence: Callable[..., Data], no_memory: None) -> None:
    keys = {"train_frames": (0, 7), "val_frames": (0, 7)}
    config = cached(sequence(intrinsics="learn", fov=70, **keys))
    fill_cache(config, workers=0)
    learned = config.model_copy(update={"intrinsics": (12.5, 11.5, 8.25, 4.5)})
    assert_same(items_of(learned), items_of(learned.model_copy(update={"cache": None})))
    assert PictureCache(config.cache, learned).present().all()
    # Here it decides where each pixel comes from.
    bent = learned.model_copy(update={"distortion": (0.1, 0.0, 0.0, 0.0, 0.0)})
    with pytest.raises(DataError, match=r"made with data\.(intrinsics|distortion)"):
        PictureCache(config.cache, bent)


def test_a_data_set_that_was_made_anew_is_noticed(triplets: Data, files: Files) -> None:
    config = cached(triplets)
    fill_cache(config, workers=0)
    ready_cache(config)
    paths = sorted((config.root / "triplets").rglob("*.png"))
    for number, path in enumerate(paths):
        picture = np.asarray(Image.open(path))
        files.save(path, files.noise(*picture.shape[:2], 100 + number))
    with pytest.raises(DataError, match=r"is of other files: its picture .* delete the cache"):
        ready_cache(config)
    # Whoever keeps the cache alone may.
    for path in paths:
        path.unlink()
    ready_cache(config)


def test_another_list_of_frames_is_named(triplets: Data) -> None:
    config = cached(triplets)
    fill_cache(config, workers=0)
    (config.root / "splits" / "train.txt").write_text("a a_000000_000010\n")
    with pytest.raises(DataError, match="another list of frames: it has other pictures too"):
        ready_cache(config)
    (config.root / "splits" / "train.txt").write_text("c c_1\n" + (config.root / "splits" / "val.txt").read_text())
    with pytest.raises(DataError, match="lacks 3 pictures of this data set, first c/c_1:0"):
        ready_cache(config)


def test_a_run_wants_the_cache_that_it_names(triplets: Data) -> None:
    with pytest.raises(DataError, match="is no picture cache: 'mcd prepare cache CONFIG' makes it"):
        ready_cache(cached(triplets))
    (triplets.root / "cache").mkdir()
    (triplets.root / "cache" / "thesis.doc").touch()
    with pytest.raises(DataError, match="holds other files"):
        fill_cache(cached(triplets))
    with pytest.raises(DataError, match=r"give data\.cache"):
        fill_cache(triplets)
    with pytest.raises(ValueError, match="'fill_cache' fills the folder of 'cache'"):
        Data(fill_cache=True)


@pytest.mark.parametrize("name", ["manifest.json", "names.txt", "index.npy", "pictures-00000.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone", "noise", "empty"])
def test_a_damaged_file_is_named(triplets: Data, name: str, damage: str, files: Files) -> None:
    config = cached(triplets)
    fill_cache(config, workers=0)
    path = config.cache / name
    if damage == "cut":
        files.truncate(path)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(range(256)) * (path.stat().st_size // 256 + 1))
    with pytest.raises(DataError, match=str(config.cache)) as error:
        ready_cache(config)
        PictureCache(config.cache, config).read(["a/a_000000_000009:1"])
    assert "\n" not in str(error.value)


def test_bytes_that_have_changed_are_found_and_made_again(triplets: Data, no_memory: None) -> None:
    config = cached(triplets)
    fill_cache(config, workers=0)
    truth = items_of(config)
    with (config.cache / "pictures-00000.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"xxxxx")
    assert PictureCache(config.cache, config).damaged() == ["b/b_000000_000001:2"]
    assert PictureCache(config.cache, config).read(["b/b_000000_000001:2"]) is None
    fill_cache(config, workers=0, verify=True)
    assert_same(items_of(config), truth)


def test_broken_files_stop_it_or_are_listed(triplets: Data, files: Files) -> None:
    config = cached(triplets)
    files.truncate(config.root / "triplets" / "a" / "a_000000_000010.png")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^image .*a_000000_000010.png cannot be read"):
            fill_cache(config, workers=workers)
    (problem,) = fill_cache(config, skip=True)
    assert "a_000000_000010.png" in problem
    assert PictureCache(config.cache, config).present().sum() == 9


def test_the_command_makes_it_and_says_what_there_is(triplets: Data, capsys: pytest.CaptureFixture[str]) -> None:
    path = triplets.root / "config.yaml"
    data = {"root": str(triplets.root), "size": SIZE, "cache": str(triplets.root / "cache")}
    path.write_text(json.dumps({"run": "r", "stages": ["scene"], "scene": {"steps": 1}, "data": data}))
    arguments = ["cache", str(path), "--workers", "1"]
    assert command.main(arguments) == 0
    assert f"12 of 12 pictures of 7x11 are in {triplets.root / 'cache'}" in capsys.readouterr().out
    assert command.main([*arguments, "--set", "data.size=[8,11]"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mcd.data.prepare: picture cache") and said.count("\n") == 1
