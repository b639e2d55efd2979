"""The prediction store: how exact it is, and that neither kills nor several writers harm it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcd.data.store import PartOfStore, Prediction, PredictionStore
from mcd.files import DataError

SIZE = (13, 21)


def prediction(seed: int, size: tuple[int, int] = SIZE) -> Prediction:
    draw = np.random.default_rng(seed)
    flow = draw.uniform(-300, 300, (2, 2, *size)).astype(np.float32)
    flow[:, :, : size[0] // 2] = 0
    return Prediction(
        depth=(10 ** draw.uniform(-1, 2, (1, *size))).astype(np.float32),
        flow=flow,
        poses=draw.normal(size=(2, 4, 4)).astype(np.float32),
    )


def assert_close(found: Prediction | None, given: Prediction) -> None:
    assert found is not None
    assert (np.abs(found.depth - given.depth) <= 1e-3 * given.depth).all()
    assert (np.abs(found.flow - given.flow) <= 1 / 64).all()
    assert not found.flow[given.flow == 0].any()
    assert np.array_equal(found.poses, given.poses)


def child(work: Callable[[], None]) -> int:
    """Start a process that does the work and nothing else."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def test_depth_to_a_thousandth_and_flow_to_a_64th_of_a_pixel(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    store.write("train", {f"city/{number}": prediction(number) for number in range(5)})
    for number in (3, 0, 4):
        assert_close(store.read("train", f"city/{number}"), prediction(number))
    assert store.read("val", "city/0") is None
    assert len(store) == 5


def test_what_is_stored_is_stored_again_as_it_is(tmp_path: Path) -> None:
    # Else results would depend on how often a frame went through the store.
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    store.write("train", {"a": prediction(1)})
    first = store.read("train", "a")
    assert first is not None
    store.write("train", {"b": first})
    second = store.read("train", "b")
    assert second is not None
    for name in ("depth", "flow", "poses"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_another_reader_sees_it_and_other_nets_are_refused(tmp_path: Path) -> None:
    PredictionStore(tmp_path / "store.sqlite", "old").write("train", {"a": prediction(1)})
    assert_close(PredictionStore(tmp_path / "store.sqlite", "old").read("train", "a"), prediction(1))
    with pytest.raises(DataError, match="is of other nets"):
        PredictionStore(tmp_path / "store.sqlite", "new")


def test_a_writer_that_is_killed_leaves_whole_batches(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "store.sqlite", "nets")

    def write_on() -> None:
        for batch in range(10_000):
            store.write("train", {f"{batch}/{number}": prediction(number) for number in range(4)})

    process = child(write_on)
    while len(store) < 8:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    stored = len(PredictionStore(tmp_path / "store.sqlite", "nets"))
    assert stored >= 8
    assert stored % 4 == 0
    assert_close(store.read("train", f"{stored // 4 - 1}/3"), prediction(3))
    store.write("train", {"more": prediction(9)})
    assert len(store) == stored + 1


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    # The connection of this process is open already: children must not use it.
    store = PredictionStore(tmp_path / "store.sqlite", "nets")

    def write(first: int) -> None:
        for number in range(first, first + 20):
            store.write("train", {str(number): prediction(number)})

    children = [child(lambda first=first: write(first)) for first in (0, 20, 40)]
    for process in children:
        os.waitpid(process, 0)
    assert len(store) == 60
    for number in range(60):
        assert_close(store.read("train", str(number)), prediction(number))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_depth_is_refused_and_its_batch_with_it(tmp_path: Path, bad: float) -> None:
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    broken = prediction(2)
    broken.depth[0, 3, 4] = bad
    with pytest.raises(DataError, match="depth of frame b is not finite and positive"):
        store.write("train", {"a": prediction(1), "b": broken})
    assert len(store) == 0


@pytest.mark.parametrize("bad", [np.nan, 2000.0])
def test_a_flow_that_cannot_be_stored_is_refused(tmp_path: Path, bad: float) -> None:
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    broken = prediction(2)
    broken.flow[1, 0, 3, 4] = bad
    with pytest.raises(DataError, match="flow of frame b is not finite and below 1024 pixels"):
        store.write("train", {"b": broken})


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"something else, and long enough to be read as a header" * 100)
    with pytest.raises(DataError, match=r"store\.sqlite cannot be used: .*not a database"):
        PredictionStore(tmp_path / "store.sqlite", "nets")


def test_a_store_whose_schema_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    PredictionStore(path, "nets")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE about", b"CREATE \x8fABLE about"))
    with pytest.raises(DataError, match=r"store\.sqlite cannot be used: "):
        PredictionStore(path, "nets")


def test_a_locked_store_is_an_error_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcd.data.store._WAIT", 0.05)
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match="locked"):
        store.write("train", {"a": prediction(1)})
    other.execute("ROLLBACK")
    store.write("train", {"a": prediction(1)})


def test_another_machine_writes_a_part_that_the_store_takes_in(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    store.write("train", {"a": prediction(1)})
    part, other = (PartOfStore(tmp_path / "store.sqlite", "nets", 1) for _ in range(2))
    assert part.read("train", "b") is None
    assert not (tmp_path / "store-1.sqlite").exists(), "nothing is written yet"
    part.write("train", {"b": prediction(2)})
    assert_close(other.read("train", "b"), prediction(2))
    part.write("val", {"a": prediction(3)})
    assert_close(part.read("train", "a"), prediction(1))
    assert_close(part.read("train", "b"), prediction(2))
    assert part.frames("train") == {"a", "b"}
    assert len(part) == 3
    assert store.frames("train") == {"a"}, "the file is that of the first machine alone"
    store.take_in_parts()
    assert store.frames("train") == {"a", "b"}
    assert_close(store.read("val", "a"), prediction(3))
    assert [path.name for path in tmp_path.iterdir()] == ["store.sqlite"]
    store.take_in_parts()
    assert len(store) == 3


def test_a_part_of_other_nets_is_named_and_stays(tmp_path: Path) -> None:
    PredictionStore(tmp_path / "store-2.sqlite", "old").write("train", {"a": prediction(1)})
    store = PredictionStore(tmp_path / "store.sqlite", "nets")
    with pytest.raises(DataError, match=r"store-2\.sqlite is of other nets \(old, not nets\): delete it"):
        store.take_in_parts()
    assert (tmp_path / "store-2.sqlite").exists()
    with pytest.raises(DataError, match=r"store\.sqlite is of other nets"):
        PartOfStore(tmp_path / "store.sqlite", "new", 1)


def test_a_part_of_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"store\.sqlite cannot be used: no such table"):
        PartOfStore(tmp_path / "store.sqlite", "nets", 1)
