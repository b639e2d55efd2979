"""What the functions of basic blocks ask of the machine: memory, and what the lanes of a warp tell each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from gates.ptx.memory import (
    BOUNDS,
    DIVERGED,
    NEVER_WRITTEN,
    RACE,
    GlobalMemory,
    KernelError,
    SharedMemory,
    apply_atomics,
    bank_cycles,
    check_aligned,
    count_global,
    distinct,
)
from gates.ptx.parse import Kernel


class Access:
    check: bool
    count: bool
    kernel: Kernel
    memory: GlobalMemory
    shared: SharedMemory
    threads: int
    """Of a block, rounded up to whole warps."""
    lanes: np.ndarray
    numbers: np.ndarray
    """Of the blocks that run side by side."""
    fill: int
    """What every byte is that nobody has written."""
    memory_counts: Counter

    def special(self, name: str, lanes: np.ndarray) -> np.ndarray:
        return self._special[name][lanes].astype(np.uint32)

    def _stamp(self, lanes: np.ndarray) -> np.ndarray:
        thread = lanes % self.threads
        return (self._barriers[lanes] + 1) << 26 | (self._warp_barriers[lanes] & 0xFFFF) << 10 | thread

    def parameter(self, address: np.ndarray, dtype: str, count: int) -> list[np.ndarray]:
        size = np.dtype(dtype).itemsize
        first = int(address[0])
        if (address == first).all():
            if first < 0 or first + size * count > self.kernel.parameter_bytes:
                raise KernelError(BOUNDS, f"parameter {first}")
            values = np.frombuffer(self._padded_parameters, dtype, count, first)
            return [np.full(len(address), value) for value in values]
        table = np.frombuffer(self._padded_parameters, np.uint8)
        octets = table[address[:, None] + np.arange(size * count)]
        return [np.ascontiguousarray(octets[:, i * size : (i + 1) * size]).view(dtype)[:, 0] for i in range(count)]

    def load(
        self, space: str, address: np.ndarray, dtype: str, count: int, lanes: np.ndarray, where: Any, number: int
    ) -> list:
        of = np.dtype(dtype)
        if where is not None:
            chosen = where.nonzero()[0]
            whole = [np.zeros(len(address), of) for _ in range(count)]
            if len(chosen):
                found = self.load(space, address[chosen], dtype, count, lanes[chosen], None, number)
                for out, value in zip(whole, found, strict=True):
                    out[chosen] = value
            return whole
        width = of.itemsize * count
        try:
            if space == "shared":
                place = self.shared.place(address, width, lanes)
                if self.check:
                    self.shared.read(place, width, self._stamp(lanes), lanes)
                self._count_shared("load", place, width, lanes)
                view, at = self.shared.bytes.view(of), place // of.itemsize
                return [view[at + i] for i in range(count)]
            if space == "local":
                return self._load_local(address, of, count, lanes)
            return self._load_global(address, of, count, lanes)
        except KernelError as fault:
            fault.number = number
            raise

    def _load_global(self, address: np.ndarray, of: np.dtype, count: int, lanes: np.ndarray) -> list:
        width = of.itemsize * count
        check_aligned(address, width, lanes)
        result = None
        for region, chosen, offset in self.memory.find(address, width, lanes):
            at = offset // of.itemsize
            if region.written is not None and self.check:
                known = region.written[offset[:, None] + np.arange(width)].all(1)
                if not known.all():
                    lane = int((lanes if chosen is None else lanes[chosen])[~known][0])
                    where = f"global memory, offset {int(offset[~known][0])} of {region.size}"
                    self.shared.undefined.append(KernelError(NEVER_WRITTEN, where, lane))
                    region.bytes[offset[~known][:, None] + np.arange(width)] = self.fill
            if self.count:
                region.read_sectors[offset >> 5] = True
                count_global(
                    self.memory_counts, "load", offset, width, (lanes if chosen is None else lanes[chosen]) >> 5
                )
            found = [region.view(of)[at + i] for i in range(count)]
            if chosen is None:
                return found
            result = result or [np.zeros(len(address), of) for _ in range(count)]
            for out, value in zip(result, found, strict=True):
                out[chosen] = value
        return result

    def _local_at(self, address: np.ndarray, width: int, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_aligned(address, width, lanes)
        if (address < 0).any() or (address + width > self.kernel.local_bytes).any():
            raise KernelError(BOUNDS, "local memory", int(lanes[0]))
        return lanes[:, None], address[:, None] + np.arange(width)

    def _load_local(self, address: np.ndarray, of: np.dtype, count: int, lanes: np.ndarray) -> list:
        at = self._local_at(address, of.itemsize * count, lanes)
        if not self.local_written[at].all():
            lane = int(lanes[~self.local_written[at].all(1)][0])
            self.shared.undefined.append(KernelError(NEVER_WRITTEN, "local memory", lane))
        octets = self.local[at]
        size = of.itemsize
        return [np.ascontiguousarray(octets[:, i * size : (i + 1) * size]).view(of)[:, 0] for i in range(count)]

    def store(self, space: str, address: np.ndarray, values: list, lanes: np.ndarray, where: Any, number: int) -> None:
        if where is not None:
            chosen = where.nonzero()[0]
            if not len(chosen):
                return
            address, lanes, values = address[chosen], lanes[chosen], [value[chosen] for value in values]
        of = values[0].dtype
        width = of.itemsize * len(values)
        try:
            if space == "shared":
                place = self.shared.place(address, width, lanes)
                stamp = self._stamp(lanes)
                if self.check:
                    self.shared.write(place, width, stamp, lanes)
                self._count_shared("store", place, width, lanes)
                view, at = self.shared.bytes.view(of), place // of.itemsize
                for i, value in enumerate(values):
                    view[at + i] = value
                if self.check:
                    self.shared.same_place_twice(place, width, stamp, lanes, values)
            elif space == "local":
                at = self._local_at(address, width, lanes)
                self.local[at] = np.concatenate([value[:, None].view(np.uint8) for value in values], 1)
                self.local_written[at] = True
            else:
                self._store_global(address, values, width, lanes)
        except KernelError as fault:
            fault.number = number
            raise

    def _store_global(self, address: np.ndarray, values: list, width: int, lanes: np.ndarray) -> None:
        of = values[0].dtype
        check_aligned(address, width, lanes)
        for region, chosen, offset in self.memory.find(address, width, lanes):
            at = offset // of.itemsize
            mine = lanes if chosen is None else lanes[chosen]
            for i, value in enumerate(values):
                region.view(of)[at + i] = value if chosen is None else value[chosen]
            if self.count:
                region.written_sectors[offset >> 5] = True
                count_global(self.memory_counts, "store", offset, width, mine >> 5)
            if self.check:
                octets = offset[:, None] + np.arange(width)
                if region.written is not None:
                    region.written[octets] = True
                if region.writer is None:
                    region.writer = np.zeros(region.size, np.int32)
                block = (self.numbers[mine // self.threads] + 1).astype(np.int32)[:, None]
                before = region.writer[octets]
                region.writer[octets] = block
                meets = (((before != 0) & (before != block)) | (region.writer[octets] != block)).any(1)
                if meets.any():
                    lane = int(meets.nonzero()[0][0])
                    raise KernelError(
                        RACE, f"two blocks write offset {int(offset[lane])} of {region.size}", int(mine[lane])
                    )

    def atomic(
        self,
        space: str,
        how: str,
        address: np.ndarray,
        values: list,
        lanes: np.ndarray,
        where: Any,
        number: int,
        wanted: bool,
    ) -> np.ndarray | None:
        if where is not None:
            chosen = where.nonzero()[0]
            result = np.zeros(len(address), values[0].dtype) if wanted else None
            if len(chosen):
                part = [value[chosen] for value in values]
                found = self.atomic(space, how, address[chosen], part, lanes[chosen], None, number, wanted)
                if wanted:
                    result[chosen] = found
            return result
        of = values[0].dtype
        try:
            check_aligned(address, of.itemsize, lanes)
            if self.count:
                self._count_atomics(space, address, lanes)
            if space == "shared":
                place = self.shared.place(address, of.itemsize, lanes)
                if self.check:
                    self.shared.update(place, of.itemsize, self._stamp(lanes), lanes)
                return apply_atomics(self.shared.bytes.view(of), place // of.itemsize, how, values, wanted)
            result = np.zeros(len(address), of) if wanted else None
            for region, chosen, offset in self.memory.find(address, of.itemsize, lanes):
                if region.written is not None and self.check:
                    known = region.written[offset]
                    if how != "exch" and not known.all():
                        raise KernelError(NEVER_WRITTEN, "global memory, by an atomic operation", int(lanes[0]))
                    region.written[offset[:, None] + np.arange(of.itemsize)] = True
                region.written_sectors[offset >> 5] = True
                part = values if chosen is None else [value[chosen] for value in values]
                found = apply_atomics(region.view(of), offset // of.itemsize, how, part, wanted)
                if wanted:
                    result[slice(None) if chosen is None else chosen] = found
            return result
        except KernelError as fault:
            fault.number = number
            raise

    def _count_shared(self, what: str, place: np.ndarray, width: int, lanes: np.ndarray) -> None:
        if self.count:
            warps = lanes >> 5
            self.memory_counts[f"shared {what}s"] += len(np.unique(warps))
            self.memory_counts["shared cycles"] += bank_cycles(place, width, warps, lanes)

    def _count_atomics(self, space: str, address: np.ndarray, lanes: np.ndarray) -> None:
        """Serial: as many as meet at the address of a warp that most lanes want."""
        warps = lanes >> 5
        keys = (warps << 43) | address
        ordered = np.unique(keys)
        times = distinct(keys)
        starts = np.flatnonzero(np.concatenate(([True], (ordered >> 43)[1:] != (ordered >> 43)[:-1])))
        self.memory_counts[f"{space} atomics"] += len(address)
        self.memory_counts[f"{space} atomic serial"] += int(np.maximum.reduceat(times, starts).sum())
        self.memory_counts[f"{space} atomic sectors"] += len(np.unique((warps << 43) | (address >> 5)))

    def active(self, lanes: np.ndarray) -> np.ndarray:
        here = np.zeros(len(self.lanes), bool)
        here[lanes] = True
        return np.packbits(here.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0][lanes >> 5]

    def _converged(self, mask: np.ndarray, lanes: np.ndarray, number: int) -> None:
        """All lanes of the mask are there; what they did before comes before what they do after."""
        missing = mask & ~self.active(lanes)
        if missing.any():
            fault = KernelError(DIVERGED, "a lane of the mask is not there", int(lanes[missing.nonzero()[0][0]]))
            fault.number = number
            raise fault
        self._warp_barriers[lanes] += 1

    def shuffle(
        self,
        how: str,
        value: np.ndarray,
        b: np.ndarray,
        c: np.ndarray,
        mask: np.ndarray,
        lanes: np.ndarray,
        number: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        self._converged(np.broadcast_to(mask, len(lanes)), lanes, number)
        lane, b, c = lanes & 31, np.asarray(b).astype(np.int64), np.asarray(c).astype(np.int64)
        segment = c >> 8 & 31
        last = lane & segment | (c & 31) & ~segment
        other = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lane & segment | b & ~segment}[how]
        found = other >= last if how == "up" else other <= last
        source = (lanes & ~31) | np.where(found, other, lane) & 31
        whole = np.zeros(len(self.lanes), value.dtype)
        whole[lanes] = value
        return whole[source], np.broadcast_to(found, len(lanes))

    def rows(self, address: np.ndarray, lanes: np.ndarray, matrix: int) -> np.ndarray:
        """Where the lanes of whole warps find their part of a matrix of 8x8 numbers of 16 bits, whose rows eight of
        them name."""
        lane = lanes & 31
        return address[np.searchsorted(lanes, (lanes & ~31) + 8 * matrix + lane // 4)] + 4 * (lane % 4)

    def vote(self, how: str, value: np.ndarray, mask: np.ndarray, lanes: np.ndarray, number: int) -> np.ndarray:
        self._converged(np.broadcast_to(mask, len(lanes)), lanes, number)
        here = np.zeros(len(self.lanes), bool)
        here[lanes] = value
        votes = np.packbits(here.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0][lanes >> 5] & mask
        return {"ballot": votes, "any": votes != 0, "all": votes == mask}[how]

    def reduce(self, how: str, value: np.ndarray, mask: np.ndarray, lanes: np.ndarray, number: int) -> np.ndarray:
        self._converged(np.broadcast_to(mask, len(lanes)), lanes, number)
        function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}[
            how
        ]
        if (mask != np.uint32(0xFFFFFFFF)).any():
            raise NotImplementedError("redux of a part of a warp")
        whole = function.reduce(value.reshape(-1, 32), axis=1, dtype=value.dtype)
        return np.repeat(whole, 32)

    def warp_barrier(self, mask: np.ndarray, lanes: np.ndarray, number: int) -> None:
        self._converged(mask, lanes, number)
