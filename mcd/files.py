"""Files that are written whole or not at all, and errors that name the file."""

from __future__ import annotations

import csv
import json
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from mcd.errors import McdError

# What Pillow and NumPy raise for files that are cut off, damaged or of another kind.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
    Image.DecompressionBombError,
    csv.Error,
)


class DataError(McdError, ValueError):
    """Data that cannot be used; the message names the file, what it is and what it should be."""


@contextmanager
def reading(what: str, path: Path) -> Iterator[None]:
    """Failures inside the block become a :class:`DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except _BROKEN as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} {path} cannot be read: {said}") from None


def read_json(what: str, path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        DataError: it is missing or broken, or holds something else.
    """
    with reading(what, path):
        document = json.loads(path.read_text())
    if not isinstance(document, dict):
        raise DataError(f"{what} {path} holds {type(document).__name__}; expected a mapping")
    return document


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside the block that names no file, as that of a full disk, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it only when the block ends well.

    A kill or a full disk leaves the old file as it was; after a kill -9 a hidden file stays beside it, which
    :func:`remove_partial` takes away.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        # mkstemp makes files private; a checkpoint is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Take away what killed processes left half written below a folder that no process writes into now."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path | str, document: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def frame_path(folder: Path, split: str, frame: str, suffix: str = ".npz") -> Path:
    return folder / split / f"{frame}{suffix}"
