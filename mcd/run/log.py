"""Scalars and pictures of a stage while it trains."""

from __future__ import annotations

import csv
import threading
from collections.abc import Mapping

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mcd import world
from mcd.files import DataError, naming, reading, write_text
from mcd.run.folder import Run


class StageLog:
    """Scalars of one stage, to TensorBoard and to ``log/STAGE.csv``; both drop what was logged after step ``start``.

    The table grows by appending, a line a call. It is written anew only where a scalar appears that has no column yet.
    The first process of a run writes; for the others nothing happens here.
    """

    def __init__(self, run: Run, stage: str, start: int):
        self._board: SummaryWriter | None = None
        if not world.is_first():
            return
        self._path = run.path / "log" / f"{stage}.csv"
        rows = [row for row in self._read() if int(row["step"]) <= start]
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._write(rows)
        self._before, threading.excepthook = threading.excepthook, self._in_thread
        with naming(run.path / "log" / stage):
            self._board = SummaryWriter(str(run.path / "log" / stage), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            row = {"step": str(step)} | {name: f"{value:.6g}" for name, value in values.items()}
            with naming(self._path):
                self._scalars(self._board, step, row, values)

    def _scalars(self, board: SummaryWriter, step: int, row: dict[str, str], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)
        added = [name for name in row if name not in self._columns]
        if added:
            rows = [*self._read(), row]
            self._columns += added
            self._write(rows)
        else:
            with self._path.open("a") as file:
                file.write(self._line(row))

    def image(self, step: int, name: str, image: Tensor) -> None:
        """image: [3,H,W] in [0,1]."""
        if self._board is not None:
            with naming(self._path):
                self._board.add_image(name, image, step)

    def close(self) -> None:
        if self._board is None:
            return
        try:
            with naming(self._path):
                self._board.close()
        finally:
            threading.excepthook = self._before

    def _in_thread(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; what fails there, on a full disk, is raised by the next call too."""
        if not isinstance(failure.exc_value, OSError):
            self._before(failure)

    def _line(self, row: Mapping[str, str]) -> str:
        return ",".join(row.get(name, "") for name in self._columns) + "\n"

    def _write(self, rows: list[dict[str, str]]) -> None:
        if self._columns:
            write_text(self._path, ",".join(self._columns) + "\n" + "".join(map(self._line, rows)))

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with reading("log", self._path):
            # A line without its end was cut off by a kill.
            whole = self._path.read_text().rpartition("\n")[0].splitlines()
            rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(whole)]
            if not all(row.get("step", "").isdecimal() for row in rows):
                raise DataError(f"log {self._path} has a line without the number of its step; delete it")
        return rows
