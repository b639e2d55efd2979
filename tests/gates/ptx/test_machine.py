"""The interpreter itself, on kernels written by hand whose results and counts are known."""
# ruff: noqa: E501 - an instruction, its operands and what comes of them stand in a line

from __future__ import annotations

import numpy as np
import pytest
from gates.ptx.text import entry, run

WIDTHS = {
    "s16": "rs",
    "u16": "rs",
    "b16": "rs",
    "u32": "r",
    "s32": "r",
    "b32": "r",
    "f32": "f",
    "u64": "rd",
    "s64": "rd",
}
WIDTHS |= {"b64": "rd", "f64": "fd"}
DTYPES = {"b": "u", "u": "u", "s": "i", "f": "f"}
INF, NAN = np.inf, np.nan


def dtype(kind: str) -> str:
    return DTYPES[kind[0]] + str(int(kind[1:]) // 8)


def computed(instruction: str, inputs: list[tuple[str, list]], result: str) -> list:
    """What a thread for each entry of the inputs finds: `instruction` has {0} for the target and {1}, {2}, … for them."""
    count = len(inputs[0][1])
    body, names = [], [f"%{WIDTHS[result]}19"]
    for i, (kind, _) in enumerate(inputs):
        size = int(kind[1:]) // 8
        register = f"%{WIDTHS[kind]}{10 + i}"
        body += [f"mul.wide.u32 %rd{20 + i}, %r0, {size};", f"add.s64 %rd{20 + i}, %rd{20 + i}, %rd{i};"]
        body.append(f"ld.global.{kind} {register}, [%rd{20 + i}];")
        names.append(register)
    out = len(inputs)
    body += [instruction.format(*names), f"mul.wide.u32 %rd30, %r0, {int(result[1:]) // 8};"]
    body += [f"add.s64 %rd30, %rd30, %rd{out};", f"st.global.{result} [%rd30], {names[0]};"]
    arrays = [np.array(values, dtype(kind)) for kind, values in inputs] + [np.zeros(count, dtype(result))]
    run(entry("\n".join(body), len(arrays)), arrays, count)
    return arrays[-1].tolist()


@pytest.mark.parametrize(
    ("instruction", "inputs", "result", "expected"),
    [
        ("add.s32 {0}, {1}, {2};", [("s32", [2**31 - 1, -5]), ("s32", [1, 3])], "s32", [-(2**31), -2]),
        ("mul.hi.u32 {0}, {1}, {2};", [("u32", [2**31]), ("u32", [6])], "u32", [3]),
        ("mul.hi.u64 {0}, {1}, {2};", [("u64", [2**63]), ("u64", [6])], "u64", [3]),
        ("mul.wide.s32 {0}, {1}, -3;", [("s32", [2**30, -7])], "s64", [-3 * 2**30, 21]),
        ("mad.lo.s32 {0}, {1}, {2}, 5;", [("s32", [-3]), ("s32", [4])], "s32", [-7]),
        ("mad.wide.u32 {0}, {1}, {2}, {3};", [("u32", [2**31]), ("u32", [4]), ("u64", [1])], "u64", [2**33 + 1]),
        ("div.s32 {0}, {1}, {2};", [("s32", [-7, 7, -8]), ("s32", [2, -2, 2])], "s32", [-3, -3, -4]),
        ("rem.s64 {0}, {1}, {2};", [("s64", [-7, 7]), ("s64", [2, -2])], "s64", [-1, 1]),
        ("shl.b32 {0}, {1}, {2};", [("b32", [1, 1, 3]), ("u32", [31, 32, 1])], "b32", [2**31, 0, 6]),
        ("shr.s32 {0}, {1}, {2};", [("s32", [-8, -8, 8]), ("u32", [1, 40, 33])], "s32", [-4, -1, 0]),
        ("shr.u32 {0}, {1}, 33;", [("u32", [8])], "u32", [0]),
        ("shf.l.wrap.b32 {0}, {1}, {2}, 8;", [("b32", [0x11223344]), ("b32", [0x55667788])], "b32", [0x66778811]),
        ("bfe.u32 {0}, {1}, 4, 8;", [("u32", [0xABCDE])], "u32", [0xCD]),
        ("bfe.s32 {0}, {1}, 4, 8;", [("s32", [0xABCDE])], "s32", [0xCD - 256]),
        ("bfi.b32 {0}, {1}, {2}, 4, 8;", [("b32", [0xFF]), ("b32", [0x10003])], "b32", [0x10FF3]),
        ("lop3.b32 {0}, {1}, {2}, 15, 0x96;", [("b32", [12]), ("b32", [10])], "b32", [12 ^ 10 ^ 15]),
        ("prmt.b32 {0}, {1}, {2}, 0x7610;", [("b32", [0x11223344]), ("b32", [0x55667788])], "b32", [0x55663344]),
        ("prmt.b32 {0}, {1}, {2}, 0x0008;", [("b32", [0x80]), ("b32", [0])], "b32", [0x808080FF]),
        ("popc.b32 {0}, {1};", [("b32", [0, 0xF0F])], "u32", [0, 8]),
        ("clz.b64 {0}, {1};", [("b64", [0, 1, 2**63])], "u32", [64, 63, 0]),
        ("brev.b32 {0}, {1};", [("b32", [1, 0xF0])], "b32", [2**31, 0x0F000000]),
        ("min.s32 {0}, {1}, {2};", [("s32", [-1]), ("s32", [1])], "s32", [-1]),
        ("min.u32 {0}, {1}, {2};", [("u32", [2**32 - 1]), ("u32", [1])], "u32", [1]),
        ("max.f32 {0}, {1}, {2};", [("f32", [NAN, 1]), ("f32", [2, NAN])], "f32", [2, 1]),
        ("fma.rn.f32 {0}, {1}, {1}, {2};", [("f32", [1 + 2**-12]), ("f32", [-1 - 2**-11])], "f32", [2**-24]),
        ("fma.rn.f64 {0}, {1}, {1}, {2};", [("f64", [1 + 2**-30]), ("f64", [-1 - 2**-29])], "f64", [2**-60]),
        ("fma.rn.f64 {0}, {1}, {2}, {2};", [("f64", [1e200]), ("f64", [1e200])], "f64", [INF]),
        ("div.rn.f32 {0}, {1}, {2};", [("f32", [1, 1, 0]), ("f32", [3, 0, 0])], "f32", [float(np.float32(1 / 3)), INF, NAN]),
        ("rcp.rn.f32 {0}, {1};", [("f32", [4, 0])], "f32", [0.25, INF]),
        ("sqrt.rn.f64 {0}, {1};", [("f64", [2, -1])], "f64", [2**0.5, NAN]),
        ("ex2.approx.f32 {0}, {1};", [("f32", [3, -INF])], "f32", [8, 0]),
        ("rcp.approx.ftz.f32 {0}, {1};", [("f32", [4, 1e-40, -2.0**127])], "f32", [0.25, INF, 0]),
        ("mul.ftz.f32 {0}, {1}, {2};", [("f32", [1e-30, 1e-40]), ("f32", [1e-10, 1e10])], "f32", [0, 0]),
        ("neg.f32 {0}, {1};", [("f32", [2.5])], "f32", [-2.5]),
        ("abs.s32 {0}, {1};", [("s32", [-4])], "s32", [4]),
        ("cvt.rzi.s32.f32 {0}, {1};", [("f32", [-2.7, 3e9, NAN, -INF])], "s32", [-2, 2**31 - 1, 0, -(2**31)]),
        ("cvt.rni.s64.f64 {0}, {1};", [("f64", [0.5, 1.5, -2.5])], "s64", [0, 2, -2]),
        ("cvt.rmi.f32.f32 {0}, {1};", [("f32", [-1.5, 1.5])], "f32", [-2, 1]),
        ("cvt.rn.f32.f64 {0}, {1};", [("f64", [1 + 2**-24, 1e300])], "f32", [1, INF]),
        ("cvt.rz.f32.f64 {0}, {1};", [("f64", [1 + 2**-23.5, -1e300])], "f32", [1, -float(np.finfo("f4").max)]),
        ("cvt.rp.f32.f64 {0}, {1};", [("f64", [1 + 2**-25])], "f32", [1 + 2**-23]),
        ("cvt.s64.s32 {0}, {1};", [("s32", [-1])], "s64", [-1]),
        ("cvt.u64.u32 {0}, {1};", [("u32", [2**32 - 1])], "u64", [2**32 - 1]),
        ("cvt.s32.s8 {0}, {1};", [("s32", [0xFF, 0x7F])], "s32", [-1, 127]),
        ("cvt.rn.f32.u32 {0}, {1};", [("u32", [2**32 - 1])], "f32", [2.0**32]),
        ("mov.b64 {{%r5, %r6}}, {1}; mov.b64 {0}, {{%r6, %r5}};", [("b64", [1 << 32 | 7])], "b64", [7 << 32 | 1]),
        ("setp.geu.f32 %p1, {1}, {2}; selp.u32 {0}, 1, 0, %p1;", [("f32", [1, 2, NAN]), ("f32", [2, 1, 1])], "u32", [0, 1, 1]),
        ("setp.ge.f32 %p1, {1}, {2}; selp.u32 {0}, 1, 0, %p1;", [("f32", [1, 2, NAN]), ("f32", [2, 1, 1])], "u32", [0, 1, 0]),
        ("setp.ne.f32 %p1, {1}, {2}; selp.u32 {0}, 1, 0, %p1;", [("f32", [1, 2, NAN]), ("f32", [2, 2, 1])], "u32", [1, 0, 0]),
        ("setp.lt.s32 %p1, {1}, 0; mov.u32 {0}, 9; @%p1 mov.u32 {0}, 4;", [("s32", [-1, 1])], "u32", [4, 9]),
    ],
)  # fmt: skip
def test_instructions_compute_what_ptx_says(instruction: str, inputs: list, result: str, expected: list) -> None:
    np.testing.assert_array_equal(computed(instruction, inputs, result), expected)


def test_16_bit_floats_are_rounded_to_even() -> None:
    values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7 + 2**-9]
    assert computed("cvt.rn.bf16.f32 {0}, {1};", [("f32", values)], "b16") == [0x3F80, 0x3F82, 0x3F81]
    assert computed("cvt.rn.f16.f32 {0}, {1};", [("f32", [1 + 2**-11, 1e6])], "b16") == [0x3C00, 0x7C00]


ADDRESS = "mul.wide.u32 %rd10, %r0, {stride}; add.s64 %rd10, %rd10, %rd0;"


@pytest.mark.parametrize(("stride", "sectors"), [(4, 32), (8, 64), (32, 256), (128, 256), (0, 8)])
def test_sectors_of_a_load_are_those_that_each_warp_touches(stride: int, sectors: int) -> None:
    body = ADDRESS.format(stride=stride) + "ld.global.f32 %f1, [%rd10];"
    counts = run(entry(body, 1), [np.zeros(256 * 32, "f4")], 256)
    assert counts.memory["load sectors"] == sectors
    assert counts.memory["load bytes"] == 1024
    assert counts.memory["read"] == min(sectors, 1 if stride == 0 else sectors) * 32
    assert counts.instructions["ld global"] == 8
    assert counts.issued == 8 * 6  # with the parameter, the thread's number and the return
    assert counts.active_lanes == 32


SHARED = ".shared .align 16 .b8 memory[16384];"


@pytest.mark.parametrize(
    ("stride", "kind", "cycles"),
    [(4, "f32", 1), (8, "f32", 2), (128, "f32", 32), (132, "f32", 1), (0, "f32", 1), (8, "f64", 2), (16, "v4.f32", 4)],
)
def test_bank_conflicts_are_counted(stride: int, kind: str, cycles: int) -> None:
    register = {"f32": "%f1", "f64": "%fd1", "v4.f32": "{%f1, %f2, %f3, %f4}"}[kind]
    body = f"mov.u32 %r1, memory; mad.lo.s32 %r2, %r0, {stride}, %r1; st.shared.{kind} [%r2], {register};"
    if stride == 0:
        body = f"mov.u32 %r1, memory; setp.ne.s32 %p1, %r0, 0; @!%p1 st.shared.f32 [%r1], %f1; bar.sync 0; ld.shared.{kind} %f2, [%r1];"
    counts = run(entry(body, 0, SHARED), [], 32)
    assert counts.memory["shared cycles"] == cycles + (stride == 0)


def test_atomics_at_one_address_take_turns() -> None:
    total = np.zeros(1, "u4")
    counts = run(entry("atom.global.add.u32 %r1, [%rd0], 2;", 1), [total], 64, 2)
    assert total[0] == 256
    assert counts.memory["global atomics"] == 128
    assert counts.memory["global atomic serial"] == 128


def test_an_atomic_gives_each_lane_what_stood_there() -> None:
    count, places = np.zeros(1, "u4"), np.zeros(64, "u4")
    body = "atom.global.add.u32 %r1, [%rd0], 1; mul.wide.u32 %rd5, %r1, 4; add.s64 %rd5, %rd5, %rd1; st.global.u32 [%rd5], %r0;"
    run(entry(body, 2), [count, places], 64)
    assert sorted(places) == list(range(64))


def test_both_sides_of_a_branch_are_issued_where_a_warp_parts() -> None:
    body = """
    and.b32 %r1, %r0, {mask};
    setp.ne.s32 %p1, %r1, 0;
    @%p1 bra $odd;
    mov.u32 %r2, 10;
    bra.uni $end;
    $odd:
    mov.u32 %r2, 20;
    $end:
    mul.wide.u32 %rd10, %r0, 4;
    add.s64 %rd10, %rd10, %rd0;
    st.global.u32 [%rd10], %r2;
    """
    out = np.zeros(64, "u4")
    parted = run(entry(body.format(mask=1), 1), [out], 64)
    assert out.tolist() == [10, 20] * 32
    whole = run(entry(body.format(mask=32), 1), [out], 64)
    assert out.tolist() == [10] * 32 + [20] * 32
    assert parted.issued == 2 * (2 + 3 + 2 + 1 + 4)
    assert whole.issued == (2 + 3 + 2 + 4) + (2 + 3 + 1 + 4)
    assert parted.memory["divergent branches"] == 2
    assert whole.memory["divergent branches"] == 0


def test_a_loop_runs_as_long_as_one_lane_of_a_warp_does_and_then_all_meet() -> None:
    body = """
    mov.u32 %r1, 0;
    $next:
    add.s32 %r1, %r1, 1;
    setp.le.s32 %p1, %r1, %r0;
    @%p1 bra $next;
    vote.sync.ballot.b32 %r2, 1, -1;
    mul.wide.u32 %rd10, %r0, 4;
    add.s64 %rd10, %rd10, %rd0;
    st.global.u32 [%rd10], %r1;
    """
    out = np.zeros(64, "u4")
    counts = run(entry(body, 1), [out], 64)
    assert out.tolist() == list(range(1, 65))
    assert counts.instructions["integer"] == (32 + 64) * 2 + 2 * 2
    assert counts.longest_warp == 2 + 1 + 64 * 3 + 5


@pytest.mark.parametrize(
    ("how", "expected"),
    [("bfly.b32 {}, {}, 1, 31, -1", [1, 0, 3]), ("up.b32 {}, {}, 1, 0, -1", [0, 0, 1]), ("idx.b32 {}, {}, 5, 31, -1", [5, 5, 5]),
     ("down.b32 {}, {}, 2, 0x1c1f, -1", [2, 3, 2])],
)  # fmt: skip
def test_lanes_hand_values_to_each_other(how: str, expected: list[int]) -> None:
    body = f"shfl.sync.{how.format('%r1|%p1', '%r0')};" + ADDRESS.format(stride=4) + "st.global.u32 [%rd10], %r1;"
    out = np.zeros(32, "u4")
    run(entry(body, 1), [out], 32)
    assert out[:3].tolist() == expected


def test_a_barrier_votes() -> None:
    body = "setp.eq.s32 %p1, %r0, 40; bar.red.or.pred %p2, 0, %p1; selp.u32 %r1, 1, 0, %p2;" + ADDRESS.format(stride=4)
    out = np.zeros(64, "u4")
    counts = run(entry(body + "st.global.u32 [%rd10], %r1;", 1), [out], 64)
    assert out.all()
    assert counts.memory["barriers"] == 1


def test_a_matrix_stored_by_a_warp_is_the_one_it_loads() -> None:
    body = """
    mov.u32 %r1, memory;
    mad.lo.s32 %r2, %r0, 16, %r1;
    add.s32 %r10, %r0, 100; add.s32 %r11, %r0, 200; add.s32 %r12, %r0, 300; add.s32 %r13, %r0, 400;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2], {%r10, %r11, %r12, %r13};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r2];
    mad.lo.s32 %r3, %r0, 4, %r1;
    ld.shared.u32 %r24, [%r3];
    mul.wide.u32 %rd10, %r0, 8;
    add.s64 %rd10, %rd10, %rd0;
    st.global.v2.u32 [%rd10], {%r22, %r24};
    """
    out = np.zeros((32, 2), "u4")
    run(entry(body, 1, SHARED), [out], 32)
    assert out[:, 0].tolist() == list(range(300, 332))
    assert out[:, 1].tolist() == list(range(100, 132))  # four lanes a row of 16 bytes
