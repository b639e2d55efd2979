"""Predictions of the scene nets for the stages after them, in one SQLite file.

A frame is a 16-bit grey PNG of planes below one another: the logarithm of the depth, then x and y of the residual flow
towards each source. Steps are fine enough for a relative depth error of 1e-3 and a flow error of 1/64 pixel; PNG's
prediction from neighbouring pixels makes smooth maps and empty flow small. SQLite gives random access, one transaction
for each batch (a killed process leaves all of it or nothing) and locks between processes that write.

Those locks are of one machine. Where several share a run, the first writes the file and each other one a part beside
it, ``STORE-1.sqlite``, which the file takes in when all have written.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcd.files import DataError, reading

# Half a step is the error: 9e-4 of the depth leaves room for rounding in float32.
_DEPTH_STEP = 2 * np.log1p(9e-4)
_FLOW_STEPS = 32  # a pixel
_ZERO = 2**15
_WAIT = 120.0  # seconds for another process to finish writing


@dataclass(frozen=True)
class Prediction:
    """What the scene nets say of one frame with S sources."""

    depth: NDArray[np.float32]
    """[1,H,W]"""
    flow: NDArray[np.float32]
    """[S,2,H,W], residual motion in pixels."""
    poses: NDArray[np.float32]
    """[S,4,4], T_src_ref."""


class PredictionStore:
    """Predictions by split and frame; any number of processes may read and write.

    Args:
        path: the file; it is made if it is not there.
        nets: what made the predictions, such as a digest of the weights.
        made: whether it is there and is only to be read.

    Raises:
        DataError: the file is no store, or one of other nets.
    """

    def __init__(self, path: Path, nets: str, *, made: bool = False):
        self.path, self.nets = path, nets
        self._connections: dict[int, sqlite3.Connection] = {}
        if not made:
            self._make()
        with self._errors():
            (found,) = self._database().execute("SELECT value FROM about WHERE key = 'nets'").fetchone()
        if found != nets:
            raise DataError(f"prediction store {path} is of other nets ({found}, not {nets}): delete it")

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            database.execute("CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS prediction "
                "(split TEXT, frame TEXT, planes BLOB, poses BLOB, PRIMARY KEY (split, frame))"
            )
            database.execute("INSERT OR IGNORE INTO about VALUES ('nets', ?)", (self.nets,))

    def write(self, split: str, predictions: Mapping[str, Prediction]) -> None:
        """Store predictions by frame, all or none of them; those that are there are replaced.

        Raises:
            DataError: a depth is not finite and positive, or a flow is too large or not finite.
        """
        rows = [
            (split, frame, _encode(frame, prediction), prediction.poses.astype("<f4").tobytes())
            for frame, prediction in predictions.items()
        ]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO prediction VALUES (?, ?, ?, ?)", rows)

    def read(self, split: str, frame: str) -> Prediction | None:
        """The prediction of a frame, or None where there is none."""
        with self._errors():
            row = (
                self._database()
                .execute("SELECT planes, poses FROM prediction WHERE split = ? AND frame = ?", (split, frame))
                .fetchone()
            )
        if row is None:
            return None
        with reading(f"frame {frame} of prediction store", self.path):
            found = _decode(*row)
            if not all(np.isfinite(values).all() for values in (found.depth, found.flow, found.poses)):
                raise ValueError("a number is not finite")
            return found

    def frames(self, split: str) -> set[str]:
        """The frames of a split that are there."""
        with self._errors():
            rows = self._database().execute("SELECT frame FROM prediction WHERE split = ?", (split,))
            return {frame for (frame,) in rows}

    def __len__(self) -> int:
        with self._errors():
            return self._database().execute("SELECT count(*) FROM prediction").fetchone()[0]

    def take_in_parts(self) -> None:
        """Take over what other machines have written, and delete their parts. Nobody may write meanwhile.

        Raises:
            DataError: a part is of other nets, or cannot be read; it stays.
        """
        for path in sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            PredictionStore(path, self.nets).close()
            with self._errors():
                self._database().execute("ATTACH ? AS part", (str(path),))
            try:
                with self._transaction() as database:
                    database.execute("INSERT OR REPLACE INTO main.prediction SELECT * FROM part.prediction")
            finally:
                with self._errors():
                    self._database().execute("DETACH part")
            path.unlink()

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def _database(self) -> sqlite3.Connection:
        # A connection must not be used by a child of the process that opened it.
        process = os.getpid()
        if process not in self._connections:
            self._connections[process] = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
        return self._connections[process]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            database = self._database()
            # Taken at once: two processes that read first and write then would wait for each other.
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite has taken it back itself.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite's message may hold the broken text itself
            raise DataError(f"prediction store {self.path} cannot be used: {error}") from error


class PartOfStore(PredictionStore):
    """A store as a machine sees it that does not own it: it reads all, and writes part ``number``, made when wanted."""

    def __init__(self, path: Path, nets: str, number: int):
        super().__init__(path, nets, made=True)
        self._place = path.with_stem(f"{path.stem}-{number}")
        self._part: PredictionStore | None = None

    def write(self, split: str, predictions: Mapping[str, Prediction]) -> None:
        if self._part is None:
            self._part = PredictionStore(self._place, self.nets)
        self._part.write(split, predictions)

    def read(self, split: str, frame: str) -> Prediction | None:
        part = self._written()
        found = None if part is None else part.read(split, frame)
        return super().read(split, frame) if found is None else found

    def frames(self, split: str) -> set[str]:
        part = self._written()
        return super().frames(split) | (set() if part is None else part.frames(split))

    def __len__(self) -> int:
        part = self._written()
        return super().__len__() + (0 if part is None else len(part))

    def _written(self) -> PredictionStore | None:
        # Another process of this machine may have begun it.
        if self._part is None and self._place.is_file():
            self._part = PredictionStore(self._place, self.nets)
        return self._part


def _encode(frame: str, prediction: Prediction) -> bytes:
    depth, flow = prediction.depth, prediction.flow
    if not (np.isfinite(depth) & (depth > 0)).all():
        raise DataError(f"the predicted depth of frame {frame} is not finite and positive")
    planes = np.concatenate(
        [np.log(depth.astype(np.float64)) / _DEPTH_STEP, flow.reshape(-1, *flow.shape[-2:]) * np.float64(_FLOW_STEPS)]
    )
    if not (np.abs(planes) < _ZERO - 1).all():
        raise DataError(f"the predicted flow of frame {frame} is not finite and below {_ZERO // _FLOW_STEPS} pixels")
    levels = (np.rint(planes) + _ZERO).astype(np.uint16)
    file = BytesIO()
    Image.fromarray(levels.reshape(-1, levels.shape[-1])).save(file, "PNG")
    return file.getvalue()


def _decode(planes: bytes, poses: bytes) -> Prediction:
    matrices = np.frombuffer(poses, "<f4").reshape(-1, 4, 4)
    with Image.open(BytesIO(planes)) as file:
        stacked = np.asarray(file).astype(np.float64) - _ZERO
    levels = stacked.reshape(1 + 2 * len(matrices), -1, stacked.shape[-1])
    return Prediction(
        depth=np.exp(levels[:1] * _DEPTH_STEP).astype(np.float32),
        flow=(levels[1:] / _FLOW_STEPS).astype(np.float32).reshape(-1, 2, *levels.shape[1:]),
        poses=matrices.astype(np.float32),
    )
