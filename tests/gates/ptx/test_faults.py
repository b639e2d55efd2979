"""Planted faults, each of which the interpreter must find: in kernels written by hand, and in the compiled ones."""
# ruff: noqa: E501 - an instruction, its operands and what comes of them stand in a line

from __future__ import annotations

import re

import numpy as np
import pytest
from gates.ptx.device import Device, why_not
from gates.ptx.memory import ALIGNMENT, BARRIER, BOUNDS, DIVERGED, NEVER_WRITTEN, RACE, KernelError
from gates.ptx.parse import Module
from gates.ptx.text import entry, run
from harness import mapped, results, samples

from mcd.ops.registry import OPERATORS

SHARED = ".shared .align 16 .b8 memory[256];\n.shared .align 4 .b8 other[4];"
OWN = "mov.u32 %r1, memory; mad.lo.s32 %r2, %r0, 4, %r1; xor.b32 %r4, %r0, 1; mad.lo.s32 %r3, %r4, 4, %r1;"
OUT = "mul.wide.u32 %rd10, %r0, 4; add.s64 %rd10, %rd10, %rd0;"
SWAP = f"{OWN} st.shared.u32 [%r2], %r0; {{}} ld.shared.u32 %r5, [%r3]; {OUT} st.global.u32 [%rd10], %r5;"
SECOND_WARP = "setp.lt.u32 %p1, %r0, 32; @%p1 bra $end;"


def test_a_barrier_orders_a_swap() -> None:
    out = np.zeros(64, "u4")
    run(entry(SWAP.format("bar.sync 0;"), 1, SHARED), [out], 64)
    assert out[:4].tolist() == [1, 0, 3, 2]


def test_a_barrier_of_the_warp_orders_its_own_lanes_alone() -> None:
    out = np.zeros(64, "u4")
    run(entry(SWAP.format("bar.warp.sync -1;"), 1, SHARED), [out], 64)
    far = SWAP.replace("xor.b32 %r4, %r0, 1", "xor.b32 %r4, %r0, 32")
    with pytest.raises(KernelError, match=RACE):
        run(entry(far.format("bar.warp.sync -1;"), 1, SHARED), [out], 64)


# A thread of each block tells its number and reads that of the other block.
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
TELL = (
    "mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 64, %r0; mul.wide.u32 %rd10, %r2, 4; add.s64 %rd11, %rd10, %rd0;"
    "st.global.u32 [%rd11], %r2; {} xor.b32 %r3, %r2, 64; mul.wide.u32 %rd12, %r3, 4; add.s64 %rd12, %rd12, %rd0;"
    "ld.global.u32 %r4, [%rd12]; add.s64 %rd13, %rd10, %rd1; st.global.u32 [%rd13], %r4;"
)


def test_a_barrier_of_the_cluster_orders_its_blocks() -> None:
    told, out = np.zeros(256, "u4"), np.zeros(256, "u4")
    counts = run(entry(TELL.format(f"bar.sync 0; {MEET}"), 2, cluster=2), [told, out], 64, blocks=4)
    assert out.tolist() == [i ^ 64 for i in range(256)]
    assert (counts.memory["cluster barriers"], counts.memory["barriers"]) == (4, 4)


def test_a_block_that_does_not_come_to_the_clusters_barrier_is_found() -> None:
    body = f"mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 bra $end; {MEET}\n$end:"
    with pytest.raises(KernelError, match=BARRIER):
        run(entry(body, 1, cluster=2), [np.zeros(64, "u4")], 64, blocks=2)


FAULTS = {
    "no barrier between a write and another thread's read": (RACE, SWAP.format(""), {}),
    "a write over what another thread reads": (
        RACE, f"{OWN} st.shared.u32 [%r2], %r0; bar.sync 0; ld.shared.u32 %r5, [%r3]; st.shared.u32 [%r2], %r5;", {}
    ),
    "two threads write one place": (RACE, "mov.u32 %r1, memory; st.shared.u32 [%r1], %r0;", {}),
    "a byte within a word": (
        RACE, f"{OWN} st.shared.u32 [%r2], %r0; shl.b32 %r6, %r0, 2; st.shared.u8 [%r3+1], %r6;", {}
    ),
    "an atomic and a plain write": (
        RACE, f"{OWN} st.shared.u32 [%r2], %r0; atom.shared.add.u32 %r7, [%r3], 1;", {}
    ),
    "two blocks write one place": (RACE, OUT + "st.global.u32 [%rd10], %r0;", {"blocks": 2}),
    "one past the end": (BOUNDS, OUT + "st.global.u32 [%rd10+4], %r0;", {}),
    "one before the beginning": (BOUNDS, OUT + "ld.global.u32 %r5, [%rd10+-4];", {}),
    "a vector past the end": (BOUNDS, OUT + "setp.eq.s32 %p1, %r0, 62; @%p1 ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd10+8];", {}),
    "past a shared array": (BOUNDS, f"{OWN} st.shared.u32 [%r2+4], %r0;", {}),
    "shared memory that the launch does not give": (
        BOUNDS, "mov.u32 %r1, dynamic; mad.lo.s32 %r2, %r0, 4, %r1; st.shared.u32 [%r2], %r0;", {"shared": 252}
    ),
    "misaligned in global memory": (ALIGNMENT, OUT + "ld.global.u16 %rs1, [%rd10+1];", {}),
    "a misaligned vector": (ALIGNMENT, OUT + "ld.global.v2.u32 {%r4, %r5}, [%rd10];", {}),
    "misaligned in shared memory": (ALIGNMENT, "mov.u32 %r1, memory; ld.shared.u32 %r2, [%r1+2];", {}),
    "shared memory read before it is written": (
        NEVER_WRITTEN, f"{OWN} ld.shared.u32 %r5, [%r2]; {OUT} st.global.u32 [%rd10], %r5;", {}
    ),
    "global memory read before it is written": (
        NEVER_WRITTEN, OUT + "add.s64 %rd11, %rd10, 0; ld.global.u32 %r5, [%rd11]; add.s32 %r5, %r5, 1; st.global.u32 [%rd10], %r5;",
        {"unwritten": (0,)},
    ),
    "local memory read before it is written": (
        NEVER_WRITTEN, f".local .align 8 .b8 depot[16]; mov.u64 %rd12, depot; ld.local.u32 %r5, [%rd12+4]; {OUT} st.global.u32 [%rd10], %r5;",
        {},
    ),
    "an atomic on memory that nobody set to 0": (NEVER_WRITTEN, OUT + "red.global.add.u32 [%rd10], 1;", {"unwritten": (0,)}),
    "a barrier that a warp does not reach": (BARRIER, f"{SECOND_WARP} bar.sync 0; $end:", {}),
    "two barriers for one": (BARRIER, "setp.lt.u32 %p1, %r0, 32; @%p1 bra $other; bar.sync 0; bra.uni $end; $other: bar.sync 0; $end:", {}),
    "a shuffle from a lane that is elsewhere": (
        DIVERGED, "and.b32 %r2, %r0, 1; setp.eq.s32 %p1, %r2, 0; @%p1 bra $end; shfl.sync.bfly.b32 %r3|%p2, %r0, 1, 31, -1; $end:", {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    kind, body, how = FAULTS[name]
    text = entry(body, 1, SHARED + "\n.extern .shared .align 16 .b8 dynamic[];")
    with pytest.raises(KernelError, match=kind) as found:
        run(text, [np.zeros(64, "u4")], 64, **how)
    assert found.value.kind == kind


def test_what_is_read_ahead_and_not_used_is_no_fault() -> None:
    out = np.zeros(64, "u4")
    body = f"{OWN} ld.shared.u32 %r5, [%r2]; setp.lt.u32 %p1, %r0, 100; selp.b32 %r5, %r0, %r5, %p1; {OUT} st.global.u32 [%rd10], %r5;"
    run(entry(body, 1, SHARED), [out], 64)
    assert out.tolist() == list(range(64))


# Of the compiled kernels: what the text is changed to, and what must come of it.
PATCHES = {
    "smoothness_loss without a barrier": ("smoothness_loss", "sum_tasks", r"bar\.sync\s+0;", "", 1, {RACE}),
    "photometric_error without its first barrier": ("photometric_error", "error_strips", r"bar\.sync\s+0;", "", 1, {RACE}),
    "backward_warp, one pixel further": (
        "backward_warp", "fwd_rows", r"st\.global\.(f32|u8) \[(%rd\d+)\]", r"st.global.\1 [\2+4]", 0, {BOUNDS, RACE, NEVER_WRITTEN, ALIGNMENT}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHES)
def test_a_fault_planted_in_a_compiled_kernel_is_found(name: str) -> None:
    if why_not():
        pytest.skip(why_not())
    operator, kernel, pattern, to, times, kinds = PATCHES[name]
    device = Device()
    text = device.text(operator)
    device.replace(operator, Module(patched(text, kernel, pattern, to, times)))
    sample = mapped(samples(OPERATORS[operator])[0], lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
    with device.in_place(), pytest.raises(KernelError) as found:
        results(OPERATORS[operator], sample, "native")
    assert found.value.kind in kinds


def patched(text: str, kernel: str, pattern: str, to: str, times: int) -> str:
    """The first occurrences in each of the entries whose name has `kernel` in it; all of them if `times` is 0."""
    parts = re.split(r"(?=^(?:\.visible |\.weak )?\.entry )", text, flags=re.M)
    changed = [re.sub(pattern, to, part, count=times) if kernel in part.split("(", 1)[0] else part for part in parts]
    assert changed != parts
    return "".join(changed)
