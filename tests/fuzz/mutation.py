"""Small damages to files, drawn from a seed: what disks, editors, transfers and other programs do to them."""

from __future__ import annotations

import random
import re
from pathlib import Path

NUMBERS = ("0", "-1", "nan", "inf", "1e308", "99999999999999999999", "0.5", "null", '""', "[]", "{}", "true")


def damage(draw: random.Random, data: bytes) -> bytes:
    """``data`` changed in one to three places, or emptied, or made another kind of file."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = draw.choice((_flip, _flip, _cut, _drop, _double, _swap, _fill, _number, _word, _empty))(draw, data)
    return data


def damage_file(draw: random.Random, path: Path) -> str:
    """Damage a file in place, or take it away, or put a folder where it was; says what was done."""
    kind = draw.random()
    if kind < 0.04:
        path.unlink()
        return "missing"
    if kind < 0.06:
        path.unlink()
        path.mkdir()
        return "a folder"
    path.write_bytes(damage(draw, path.read_bytes()))
    return "damaged"


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 32))):
        if changed:
            # Headers stand at the beginning, and are what programs trust.
            most = len(changed) if draw.random() < 0.5 else min(len(changed), 64)
            changed[draw.randrange(most)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _drop(draw: random.Random, data: bytes) -> bytes:
    begin = draw.randrange(len(data) + 1)
    return data[:begin] + data[begin + draw.choice((1, 3, 40)) :]


def _double(draw: random.Random, data: bytes) -> bytes:
    begin = draw.randrange(len(data) + 1)
    end = begin + draw.choice((1, 8, 200))
    return data[:end] + data[begin:end] + data[end:]


def _swap(draw: random.Random, data: bytes) -> bytes:
    first, second = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[second:] + data[first:second]


def _fill(draw: random.Random, data: bytes) -> bytes:
    begin, size = draw.randrange(len(data) + 1), draw.choice((4, 16, 256))
    return data[:begin] + draw.choice((b"\0", b"\xff")) * size + data[begin + size :]


def _number(draw: random.Random, data: bytes) -> bytes:
    """Another value in place of a number of a text; in other files of whatever looks like one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20_000]))
    if not found:
        return data
    place = draw.choice(found)
    return data[: place.start()] + draw.choice(NUMBERS).encode() + data[place.end() :]


def _word(draw: random.Random, data: bytes) -> bytes:
    """A name of a text written otherwise, or its lines out of order."""
    if draw.random() < 0.5:
        lines = data.split(b"\n")
        draw.shuffle(lines)
        return b"\n".join(lines)
    found = list(re.finditer(rb"[A-Za-z_]{3,}", data[:20_000]))
    if not found:
        return data
    place = draw.choice(found)
    return data[: place.start()] + draw.choice((b"x", b"", b"'", b"\xc3\xa9\n", b": [")) + data[place.end() :]


def _empty(draw: random.Random, data: bytes) -> bytes:
    return draw.choice((b"", b"[]", b"{}", b"null", b"\n", b"\x89PNG\r\n\x1a\n", b"SQLite format 3\0"))
