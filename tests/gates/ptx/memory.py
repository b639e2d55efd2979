"""Global and shared memory that know who touched what, and what an access costs.

Faults: outside of every allocation, misaligned, never written before it is read, written by two blocks in one launch;
in shared memory, touched by two threads between barriers, one of them writing.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator

import numpy as np

SECTOR, LINE = 32, 128
BANKS = 32


class KernelError(Exception):
    """What a kernel must not do. `kind` is one of the words below."""

    def __init__(self, kind: str, what: str, lane: int | None = None):
        super().__init__(f"{kind}: {what}")
        self.kind, self.what, self.lane = kind, what, lane


BOUNDS, ALIGNMENT, NEVER_WRITTEN, RACE = "out of bounds", "misaligned", "never written", "race"
DIVERGED, BARRIER = "diverged", "barrier"


def distinct(keys: np.ndarray) -> np.ndarray:
    """How often each distinct key occurs."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return np.diff(np.append(starts, len(ordered)))


def check_aligned(address: np.ndarray, width: int, lanes: np.ndarray) -> None:
    if width > 1 and (wrong := address & (width - 1)).any():
        at = int(wrong.nonzero()[0][0])
        raise KernelError(ALIGNMENT, f"address {int(address[at]):#x} for {width} bytes", int(lanes[at]))


class Region:
    """An allocation of global memory."""

    def __init__(self, start: int, size: int, written: bool, name: str = ""):
        self.start, self.size, self.end, self.name = start, size, start + size, name
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(start))[:size]
        self.written = None if written else np.zeros(size, bool)
        self.writer: np.ndarray | None = None  # the block that wrote a byte in this launch, plus 1
        self.read_sectors = np.zeros(-(-size // SECTOR) + 1, bool)
        self.written_sectors = np.zeros(-(-size // SECTOR) + 1, bool)
        self._views: dict[np.dtype, np.ndarray] = {}

    def view(self, dtype: np.dtype) -> np.ndarray:
        if dtype not in self._views:
            whole = self.size // dtype.itemsize * dtype.itemsize
            self._views[dtype] = self.bytes[:whole].view(dtype)
        return self._views[dtype]


class GlobalMemory:
    def __init__(self) -> None:
        self._regions: dict[int, Region] = {}
        self._starts = np.zeros(0, np.int64)
        self._order: list[Region] = []
        self._last: Region | None = None

    def add(self, start: int, size: int, written: bool, name: str = "") -> Region | None:
        """Told twice of the same allocation it keeps what it knows; one that overlaps others replaces them."""
        if size == 0:
            return None
        known = self._regions.get(start)
        if known is not None and known.size >= size:
            if written:
                known.written = None
            return known
        for other in [r for r in self._regions.values() if r.start < start + size and start < r.end]:
            if other.start <= start and start + size <= other.end:
                return other  # a view of it
            del self._regions[other.start]
        region = self._regions[start] = Region(start, size, written, name)
        self._order = sorted(self._regions.values(), key=lambda r: r.start)
        self._starts = np.array([r.start for r in self._order], np.int64)
        self._last = None
        return region

    def clear(self) -> None:
        self.__init__()

    def new_launch(self) -> None:
        for region in self._order:
            region.writer = None
            region.read_sectors[:] = region.written_sectors[:] = False

    def state(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """What all allocations hold, and which of their bytes have been written."""
        return [(r.bytes.copy(), None if r.written is None else r.written.copy()) for r in self._order]

    def restore(self, state: list[tuple[np.ndarray, np.ndarray | None]]) -> None:
        for region, (octets, written) in zip(self._order, state, strict=True):
            region.bytes[:], region.written = octets, written

    def regions(self) -> list[Region]:
        return self._order

    def find(
        self, address: np.ndarray, width: int, lanes: np.ndarray
    ) -> Iterator[tuple[Region, np.ndarray | None, np.ndarray]]:
        """(allocation, which of the lanes, their offsets in it) for each that is touched."""
        low, high = int(address.min()), int(address.max()) + width
        last = self._last
        if last is None or low < last.start or high > last.end:
            found = np.searchsorted(self._starts, address, "right") - 1
            for number in np.unique(found):
                region = self._order[number] if number >= 0 else None
                chosen = found == number
                mine = address[chosen]
                if region is None or int(mine.max()) + width > region.end:
                    outside = chosen if region is None else chosen & (address + width > region.end)
                    lane = int(outside.nonzero()[0][0])
                    where = (
                        f", {int(address[lane]) - region.end} past {region.name or 'an allocation'}" if region else ""
                    )
                    raise KernelError(BOUNDS, f"global address {int(address[lane]):#x}{where}", int(lanes[lane]))
                self._last = region
                if chosen.all():
                    yield region, None, address - region.start
                else:
                    yield region, chosen, mine - region.start
            return
        yield last, None, address - last.start


class SharedMemory:
    """Of several blocks side by side. A stamp says who touched a byte and when: the block's barriers so far, the
    warp's, the thread. The first and the last reader since a barrier are kept, so one who writes meets another."""

    def __init__(self, blocks: int, size: int, valid: list[tuple[int, int]], threads: int, check: bool, fill: int):
        self.size, self.check, self._threads = size, check, threads
        total = blocks * size
        self.bytes = np.full(total, fill, np.uint8)
        self.undefined: list[KernelError] = []
        self._valid = np.zeros(size + 16, bool)
        for offset, length in valid:
            self._valid[offset : offset + length] = True
        if check:
            self._writes = np.zeros(total, np.int64)
            self._reads = np.zeros((2, total), np.int64)
            self._atomics = np.zeros((2, total), np.int64)

    def place(self, address: np.ndarray, width: int, lanes: np.ndarray) -> np.ndarray:
        """Where an address of each lane's block lies among the bytes of all."""
        check_aligned(address, width, lanes)
        inside = (address >= 0) & (address <= self.size - width)
        if inside.all():
            inside = self._valid[address] & self._valid[address + (width - 1)]
        if not inside.all():
            lane = int((~inside).nonzero()[0][0])
            raise KernelError(BOUNDS, f"shared address {int(address[lane])}", int(lanes[lane]))
        return lanes // self._threads * self.size + address

    def read(self, place: np.ndarray, width: int, stamp: np.ndarray, lanes: np.ndarray) -> None:
        at = place // width
        written = self._written(place, width, lanes)
        self._check(written, stamp, place, lanes, "reads what another thread writes")
        for atomic in self._atomics:
            self._check(atomic.reshape(-1, width)[at], stamp, place, lanes, "reads what another thread updates")
        self._note(self._reads, at, width, stamp)

    def _written(self, place: np.ndarray, width: int, lanes: np.ndarray) -> np.ndarray:
        """Who wrote the bytes; a read before anyone did is noted."""
        written = self._writes.reshape(-1, width)[place // width]
        if not written.all():
            lane = int((written == 0).any(1).nonzero()[0][0])
            self.undefined.append(
                KernelError(NEVER_WRITTEN, f"shared address {int(place[lane]) % self.size}", int(lanes[lane]))
            )
        return written

    def write(self, place: np.ndarray, width: int, stamp: np.ndarray, lanes: np.ndarray) -> None:
        at = place // width
        for seen, what in ((self._writes[None], "writes"), (self._reads, "reads"), (self._atomics, "updates")):
            for touched in seen:
                self._check(touched.reshape(-1, width)[at], stamp, place, lanes, f"writes what another thread {what}")
        self._writes.reshape(-1, width)[at] = stamp[:, None]

    def update(self, place: np.ndarray, width: int, stamp: np.ndarray, lanes: np.ndarray) -> None:
        at = place // width
        self._written(place, width, lanes)
        for seen, what in ((self._writes[None], "writes"), (self._reads, "reads")):
            for touched in seen:
                self._check(touched.reshape(-1, width)[at], stamp, place, lanes, f"updates what another thread {what}")
        self._note(self._atomics, at, width, stamp)

    def same_place_twice(
        self, place: np.ndarray, width: int, stamp: np.ndarray, lanes: np.ndarray, values: list
    ) -> None:
        """Two lanes that write different values with one instruction."""
        last = self._writes[place]
        if (last != stamp).any():
            stored = [self.bytes.view(value.dtype)[place // value.itemsize + i] for i, value in enumerate(values)]
            lost = np.zeros(len(place), bool)
            for value, now in zip(values, stored, strict=True):
                lost |= value != now
            if lost.any():
                lane = int(lost.nonzero()[0][0])
                raise KernelError(
                    RACE, f"two threads write shared address {int(place[lane]) % self.size}", int(lanes[lane])
                )

    @staticmethod
    def _note(first_last: np.ndarray, at: np.ndarray, width: int, stamp: np.ndarray) -> None:
        first, last = first_last[0].reshape(-1, width), first_last[1].reshape(-1, width)
        new = (first[at, 0] >> 26) != (stamp >> 26)
        first[at[new][::-1]] = stamp[new][::-1, None]
        last[at] = stamp[:, None]

    def _check(self, touched: np.ndarray, stamp: np.ndarray, place: np.ndarray, lanes: np.ndarray, what: str) -> None:
        differs = touched ^ stamp[:, None]
        meets = ((differs >> 26) == 0) & ((differs & 1023) != 0)
        if meets.any():
            in_order = ((differs & 1023) < 32) & ((differs >> 10) & 0xFFFF != 0)  # a barrier of their warp between them
            if (meets := (meets & ~in_order).any(1)).any():
                lane = int(meets.nonzero()[0][0])
                raise KernelError(RACE, f"{what} at shared address {int(place[lane]) % self.size}", int(lanes[lane]))


def bank_cycles(place: np.ndarray, width: int, warps: np.ndarray, lanes: np.ndarray) -> int:
    """Cycles that shared memory takes: words of 4 bytes in 32 banks, wide accesses in halves or quarters of a warp."""
    words = max(width // 4, 1)
    group = warps * words + (lanes % 32) // (32 // words)
    word = place[:, None] // 4 + np.arange(words)
    key = np.unique((group[:, None] << 40 | word).ravel())
    if not len(key):
        return 0
    bank = (key >> 40) * BANKS + key % BANKS
    times = distinct(bank)
    ordered = np.unique(bank)
    groups = ordered // BANKS
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1])))
    return int(np.maximum.reduceat(times, starts).sum())


def apply_atomics(
    view: np.ndarray, at: np.ndarray, how: str, values: list[np.ndarray], wanted: bool
) -> np.ndarray | None:
    """Lane after lane; what stood there before each, if it is wanted."""
    value = values[0]
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    if not wanted and how != "cas":
        if how == "exch":
            view[at] = value
        elif how in functions:
            functions[how].at(view, at, value)
        return None
    before = np.empty(len(at), view.dtype)
    for i, place in enumerate(at.tolist()):
        old = before[i] = view[place]
        if how == "cas":
            view[place] = values[1][i] if old == value[i] else old
        else:
            view[place] = value[i] if how == "exch" else functions[how](old, value[i])
    return before


def count_global(counts: Counter, what: str, offset: np.ndarray, width: int, warps: np.ndarray) -> None:
    """Of one allocation, which begins at a line."""
    keys = np.unique((warps << 43) | (offset >> 5))
    counts[f"{what} sectors"] += len(keys)
    counts[f"{what} lines"] += len(np.unique(keys >> 2))
    counts[f"{what} bytes"] += len(offset) * width
