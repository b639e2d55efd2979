"""Runs a kernel: several blocks of threads side by side, the lanes that are at the lowest instruction first.

Lanes whose branch goes elsewhere wait, so those of a warp meet again where their ways join, as on the device. A fault
ends the launch and names the kernel, the instruction, the block and the thread.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gates.ptx.access import Access
from gates.ptx.emit import functions_of
from gates.ptx.memory import BARRIER, SECTOR, GlobalMemory, KernelError, SharedMemory
from gates.ptx.parse import Kernel

DONE, WAITING = np.int32(2**31 - 1), np.int32(2**31 - 2)
LANES = 4096  # at most so many side by side: where NumPy's overhead is small and arrays still fit the cache


@dataclass
class Launch:
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared: int
    parameters: bytes


@dataclass
class Counts:
    """What a launch did, summed over the blocks that ran."""

    kernel: str
    launch: Launch
    blocks_run: int = 0
    instructions: Counter = field(default_factory=Counter)
    """Issued warp instructions by class."""
    lanes: int = 0
    """Threads that took part in them: 32 an instruction where nothing diverges."""
    longest_warp: int = 0
    memory: Counter = field(default_factory=Counter)
    by_block: np.ndarray | None = None
    """Issues of each basic block."""

    @property
    def blocks(self) -> int:
        return int(np.prod(self.launch.grid))

    @property
    def issued(self) -> int:
        return sum(self.instructions.values())

    @property
    def active_lanes(self) -> float:
        return self.lanes / max(self.issued, 1)


class Machine(Access):
    """check: find faults. count: find what memory accesses cost."""

    def __init__(self, memory: GlobalMemory, check: bool = True, count: bool = False):
        self.memory, self.check, self.count = memory, check, count
        self._compiled: dict[int, tuple[Any, ...]] = {}

    def run(self, kernel: Kernel, launch: Launch, blocks: np.ndarray | None = None) -> Counts:
        """All blocks of the launch, or those of the numbers `blocks`.

        Compilers read ahead what they then do not use. So where memory was read that nobody had written, the launch
        runs again with something else in it: a fault is what changes the result."""
        before = self.memory.state() if self.check else []
        self.fill = 0xFF
        counts = self._run(kernel, launch, blocks)
        if self._undefined and self.check:
            first, found = self._undefined[0], self.memory.state()
            self.memory.restore(before)
            self.fill = 0x41
            self._run(kernel, launch, blocks)
            for region, (octets, written) in zip(self.memory.regions(), found, strict=True):
                same = region.bytes == octets
                if not (same if written is None else same[written]).all():
                    raise first
        return counts

    def _run(self, kernel: Kernel, launch: Launch, blocks: np.ndarray | None) -> Counts:
        if id(kernel) not in self._compiled:
            self._compiled[id(kernel)] = kernel, *functions_of(kernel)
        _, self._functions, classes, self._texts = self._compiled[id(kernel)]
        self.kernel, self.launch = kernel, launch
        self._undefined: list[KernelError] = []
        threads = int(np.prod(launch.block))
        if threads > 1024 or (kernel.max_threads and threads > kernel.max_threads):
            raise KernelError("launch", f"{threads} threads a block, {kernel.max_threads or 1024} at most")
        self.threads = -(-threads // 32) * 32
        self.memory.new_launch()
        self._issues = np.zeros(len(kernel.blocks), np.int64)
        self._sizes = [len(block.instructions) for block in kernel.blocks]
        self.counts = counts = Counts(kernel.name, launch, by_block=self._issues)
        self.memory_counts = counts.memory
        self._padded_parameters = launch.parameters.ljust(kernel.parameter_bytes + 16, b"\0")
        numbers = np.arange(counts.blocks) if blocks is None else blocks
        side = max(LANES // self.threads // kernel.cluster, 1) * kernel.cluster
        with np.errstate(all="ignore"):
            for first in range(0, len(numbers), side):
                self._run_group(numbers[first : first + side], threads)
        counts.blocks_run = len(numbers)
        for number, found in enumerate(classes):
            for name, times in found.items():
                counts.instructions[name] += times * int(self._issues[number])
        if self.count:
            for region in self.memory.regions():
                counts.memory["read"] += int(region.read_sectors.sum()) * SECTOR
                counts.memory["written"] += int(region.written_sectors.sum()) * SECTOR
                counts.memory["allocated"] += region.size * int(region.read_sectors.any())
                counts.memory["allocated"] += region.size * int(region.written_sectors.any())
        return counts

    def _run_group(self, numbers: np.ndarray, threads: int) -> None:
        kernel, launch = self.kernel, self.launch
        count = len(numbers) * self.threads
        self.lanes = np.arange(count)
        self.numbers = numbers
        thread = self.lanes % self.threads
        wide, high, _ = launch.block
        block = numbers[self.lanes // self.threads]
        across, down, _ = launch.grid
        self._special = {
            "tid.x": thread % wide,
            "tid.y": thread // wide % high,
            "tid.z": thread // (wide * high),
            "ctaid.x": block % across,
            "ctaid.y": block // across % down,
            "ctaid.z": block // (across * down),
            "laneid": thread % 32,
            "warpid": thread // 32,
        }
        for i, axis in enumerate("xyz"):
            self._special[f"ntid.{axis}"] = np.full(count, launch.block[i])
            self._special[f"nctaid.{axis}"] = np.full(count, launch.grid[i])
        valid = [(at, size) for name, (at, size) in kernel.variables.items() if size and not name.startswith("__local")]
        end = kernel.shared_end + launch.dynamic_shared
        valid.append((kernel.shared_end, launch.dynamic_shared))
        self.shared = SharedMemory(len(numbers), -(-end // 128) * 128 + 128, valid, self.threads, self.check, self.fill)
        self.local = np.full((count, max(kernel.local_bytes, 1)), self.fill, np.uint8)
        self.local_written = np.zeros((count, max(kernel.local_bytes, 1)), bool)
        self._barriers = np.zeros(count, np.int64)  # of each lane's block so far
        self._warp_barriers = np.zeros(count, np.int64)
        pc = np.where(thread < threads, np.int32(0), DONE)
        crossing = set().union(*(b.live_out for b in kernel.blocks), kernel.blocks[0].live_in)
        registers = {
            name: np.zeros(count, bool if size == 1 else f"u{size}")
            for name, size in kernel.registers.items()
            if name in crossing
        }
        issued = np.zeros(count // 32, np.int64)
        self._follow(pc, registers, issued)
        self._undefined += [self._located(fault, None) for fault in self.shared.undefined[:1]]
        self.counts.longest_warp = max(self.counts.longest_warp, int(issued.max()))

    def _follow(self, pc: np.ndarray, registers: dict[str, np.ndarray], issued: np.ndarray) -> None:
        kernel, everyone, count = self.kernel, self.lanes, len(self.lanes)
        resume = np.zeros(count, np.int32)
        votes = np.zeros(count, bool)
        while True:
            number = int(pc.min())
            if number == DONE:
                return
            if number == WAITING:
                self._release(pc, resume, votes, registers)
                continue
            at = pc == number
            if at.all():
                active, lanes, n = None, everyone, count
                self._issues[number] += count // 32
                issued += self._sizes[number]
            else:
                active = lanes = at.nonzero()[0]
                n = len(active)
                warps = np.unique(active >> 5)
                self._issues[number] += len(warps)
                issued[warps] += self._sizes[number]
            self.counts.lanes += n * self._sizes[number]
            try:
                taken = self._functions[number](self, registers, active, lanes, n)
            except KernelError as fault:
                raise self._located(fault, number) from None
            block = kernel.blocks[number]
            last = block.instructions[-1] if block.instructions else None
            onward = DONE if block.next is None else np.int32(block.next)
            if last is not None and last.waits:
                resume[lanes] = number
                if taken is not None:
                    votes[lanes] = taken
                pc[lanes] = WAITING
            elif last is not None and last.name in ("bra", "ret", "exit", "trap"):
                goes = DONE if block.branch is None else np.int32(block.branch)
                pc[lanes] = goes if taken is None else np.where(taken, goes, onward)
                if taken is not None and self.count:
                    self._count_divergence(taken, lanes)
            else:
                pc[lanes] = onward

    def _count_divergence(self, taken: np.ndarray, lanes: np.ndarray) -> None:
        some = np.bincount(lanes >> 5, taken, len(self.lanes) >> 5)
        whole = np.bincount(lanes >> 5, minlength=len(self.lanes) >> 5)
        self.counts.memory["branches"] += int((whole > 0).sum())
        self.counts.memory["divergent branches"] += int(((some > 0) & (some < whole)).sum())

    def _release(self, pc: np.ndarray, resume: np.ndarray, votes: np.ndarray, registers: dict) -> None:
        """Every block whose threads all wait at the same barrier goes on; at a cluster's, if all its blocks do."""
        shape = (len(self.numbers), self.threads)
        waits, at = (pc == WAITING).reshape(shape), resume.reshape(shape)
        exist = (self._special["tid.x"] >= 0).reshape(shape) & (np.arange(self.threads) < np.prod(self.launch.block))
        kernel, released, alone = self.kernel, 0, []
        for i in range(shape[0]):
            if not waits[i].any():
                continue
            here = at[i][waits[i]]
            number = int(here[0])
            lane = i * self.threads + int(waits[i].argmax())
            if (here != number).any():
                raise self._located(KernelError(BARRIER, "threads wait at different barriers", lane), number)
            if (waits[i] != exist[i]).any():
                raise self._located(KernelError(BARRIER, "some threads of the block have ended", lane), number)
            last = kernel.blocks[number].instructions[-1]
            lanes = slice(i * self.threads, i * self.threads + int(exist[i].sum()))
            if "red" in last.op:
                found = votes[lanes]
                target = last.operands[0]
                value = {"or": found.any(), "and": found.all(), "popc": found.sum()}[last.op[2]]
                if target in registers:
                    registers[target][lanes] = value
            of_cluster = "cluster" in last.op
            if of_cluster:
                first = i - i % kernel.cluster
                together = slice(first, first + kernel.cluster)
                if (at[together][exist[together]] != number).any() or (waits[together] != exist[together]).any():
                    alone.append((lane, number))
                    continue
            released += 1
            pc[lanes] = DONE if kernel.blocks[number].next is None else kernel.blocks[number].next
            self._barriers[lanes] += 1
            self.counts.memory["cluster barriers" if of_cluster else "barriers"] += 1
        if not released:
            lane, number = alone[0]
            raise self._located(KernelError(BARRIER, "other blocks of the cluster have ended", lane), number)

    def _located(self, fault: KernelError, number: int | None) -> KernelError:
        lane = fault.lane or 0
        block, thread = int(self.numbers[lane // self.threads]), lane % self.threads
        at = getattr(fault, "number", None)
        text = f" `{self._texts[at].text}`" if at is not None else ""
        where = f"block {block}, thread {thread}, basic block {number}{text}"
        found = KernelError(fault.kind, f"{fault.what} ({self.kernel.name}: {where})")
        found.lane = fault.lane
        return found
