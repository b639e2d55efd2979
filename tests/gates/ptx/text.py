"""Kernels written by hand, and their launches on NumPy arrays."""

from __future__ import annotations

import struct

import numpy as np
from gates.ptx.machine import Counts, Launch, Machine
from gates.ptx.memory import GlobalMemory
from gates.ptx.parse import Module

_REGISTERS = (
    ".reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<60>; .reg .f32 %f<40>; .reg .b64 %rd<40>; .reg .f64 %fd<20>;"
)


def entry(body: str, pointers: int, variables: str = "", cluster: int = 1) -> str:
    """A kernel of some pointers, which it finds in %rd0, %rd1, …, and the thread in %r0."""
    parameters = ",\n".join(f".param .u64 kernel_param_{i}" for i in range(pointers))
    loads = "\n".join(f"ld.param.u64 %rd{i}, [kernel_param_{i}];" for i in range(pointers))
    head = ".version 9.0\n.target sm_90\n.address_size 64\n"
    start = f"{loads}\nmov.u32 %r0, %tid.x;\n"
    directive = f".explicitcluster\n.reqnctapercluster {cluster}, 1, 1\n" if cluster > 1 else ""
    return (
        f"{head}{variables}\n.visible .entry kernel(\n{parameters}\n)\n{directive}"
        f"{{\n{_REGISTERS}\n{start}{body}\nret;\n}}\n"
    )


def run(
    text: str,
    arrays: list[np.ndarray],
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    unwritten: tuple[int, ...] = (),
) -> Counts:
    """`unwritten`: the arrays, by number, that count as never written."""
    memory = GlobalMemory()
    for i, array in enumerate(arrays):
        memory.add(array.ctypes.data, array.nbytes, i not in unwritten, f"array {i}")
    parameters = struct.pack(f"{len(arrays)}Q", *(array.ctypes.data for array in arrays))
    launch = Launch((blocks, 1, 1), (threads, 1, 1), shared, parameters)
    return Machine(memory, check=True, count=True).run(Module(text)["kernel"], launch)
