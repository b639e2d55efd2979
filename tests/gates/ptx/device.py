"""The compiled module `mcd._C` with the interpreter for a GPU: its objects as nvcc made them, its runtime replaced.

The host code runs as it would on a device, launches included; kernels are the PTX in the same objects. Tensors lie in
CPU memory, and each is an allocation by itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gates.ptx.machine import Counts, Launch, Machine
from gates.ptx.memory import NEVER_WRITTEN, GlobalMemory, KernelError
from gates.ptx.parse import Kernel, Module
from torch import Tensor

from mcd.ops import native

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
# What new memory is filled with: a tensor that is all of it has never been written.
PATTERN = 0xCB


class _Size(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

    def tuple(self) -> tuple[int, int, int]:
        return self.x, self.y, self.z


_LAUNCH = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(_Size),
    ctypes.POINTER(_Size),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)
_FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


def build_folder() -> Path | None:
    """Where `make` left the objects of a build with CUDA."""
    folder = ROOT / "build" / "native"
    return folder if list(folder.glob("*/*.cu.cuda.o")) else None


def tool(name: str) -> Path | None:
    """A program of the toolkit, or the one that triton brings."""
    places = [Path("/usr/local/cuda/bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        places.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return next((place / name for place in places if (place / name).is_file()), None)


def why_not() -> str | None:
    if build_folder() is None:
        return "there is no build with CUDA"
    return None if tool("cuobjdump") else "there is no cuobjdump"


@cache
def ptx_of(path: Path) -> str:
    return subprocess.run([tool("cuobjdump"), "-ptx", path], capture_output=True, text=True, check=True).stdout


def link(objects: list[Path], to: Path) -> None:
    """A module of the objects and of the runtime here."""
    to.parent.mkdir(parents=True, exist_ok=True)
    inputs = [*objects, HERE / "runtime.cpp"]
    if to.is_file() and all(to.stat().st_mtime > path.stat().st_mtime for path in inputs):
        return
    command = [
        "c++",
        "-shared",
        "-fPIC",
        "-O1",
        "-std=c++17",
        "-fopenmp",
        "-Wl,-Bsymbolic",
        *map(str, inputs),
        "-o",
        str(to),
    ]
    subprocess.run(command, check=True)


class Memory:
    """The allocations that tensors are, and the launches on them. `before(kernel, launch)` says which blocks of one
    run: all (None), or those of these numbers."""

    def __init__(self, check: bool = True, count: bool = False):
        self.memory = GlobalMemory()
        self.machine = Machine(self.memory, check, count)
        self.launches: list[Counts] = []
        self.before: Callable[[Kernel, Launch], np.ndarray | None] = lambda kernel, launch: None
        self._kept: list[Any] = []

    def run(self, kernel: Kernel, launch: Launch) -> None:
        self.launches.append(self.machine.run(kernel, launch, self.before(kernel, launch)))

    def prepare(self, arguments: Any) -> None:
        """Makes the arguments' tensors known."""
        for tensor in _tensors(arguments):
            size = tensor.numel() * tensor.element_size()
            if size:
                octets = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
                self.memory.add(tensor.data_ptr(), size, not (octets == PATTERN).all(), str(list(tensor.shape)))

    @contextmanager
    def marked(self) -> Iterator[pytest.MonkeyPatch]:
        """New memory counts as never written."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
                patch.setattr(owner, name, self._marking(getattr(owner, name)))
            yield patch
        self.memory.clear()
        self._kept.clear()

    def _marking(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*arguments: Any, **options: Any) -> Tensor:
            tensor = function(*arguments, **options)
            if tensor.device.type == "cpu" and tensor.numel() and tensor.is_contiguous():
                ctypes.memset(tensor.data_ptr(), PATTERN, tensor.numel() * tensor.element_size())
                self._kept.append(tensor)  # its address is not given to another
            return tensor

        return allocate


class Device(Memory):
    """Runs what the compiled module launches."""

    def __init__(self, check: bool = True, count: bool = False):
        super().__init__(check, count)
        folder = build_folder()
        path = ROOT / "build" / "ptx" / "_C.so"
        # Builds without CUDA leave their bindings in the same folder.
        link(sorted(built for built in folder.rglob("*.o") if not built.match("bindings.cpp.*-cpu.so.o")), path)
        # A name of its own: pybind11 finds submodules by their full names, also those of another `_C`.
        specification = importlib.util.spec_from_file_location("gates.ptx._C", path)
        self._module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self._module)
        self.fills = 0
        """Calls of cudaMemsetAsync."""
        self._texts = {path.parent.name: path for path in folder.glob("*/*.cu.cuda.o")}
        self._modules: dict[str, Module] = {}
        self._fault: BaseException | None = None
        self._functions = _LAUNCH(self._launched), _FILL(self._filled)
        self._library = ctypes.CDLL(str(path))
        self.capability = ctypes.c_int.in_dll(self._library, "capability")
        """What the host code takes the device for, the first digit."""

    def text(self, stem: str) -> str:
        return ptx_of(self._texts[stem])

    def replace(self, stem: str, module: Module) -> None:
        """Runs this in place of what was compiled."""
        self._modules[stem] = module

    def module(self, name: str) -> Module:
        """That which has the kernel of this name, in which there is that of its file: kernels are local to files."""
        for stem in sorted(self._texts, key=lambda stem: stem not in name):
            if stem not in self._modules:
                self._modules[stem] = Module(self.text(stem))
            if name in self._modules[stem]:
                return self._modules[stem]
        raise KeyError(name)

    def kernel(self, name: str) -> Kernel:
        return self.module(name)[name]

    def _launched(self, name: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        if self._fault is not None:
            return
        try:
            kernel = self.kernel(name.decode())
            octets = bytearray(kernel.parameter_bytes)
            for i, (offset, size) in enumerate(kernel.parameters.values()):
                octets[offset : offset + size] = ctypes.string_at(arguments[i], size)
            self.run(kernel, Launch(grid[0].tuple(), block[0].tuple(), shared, bytes(octets)))
        except BaseException as error:  # an exception cannot cross the compiled code
            self._fault = error

    def _filled(self, to: int, value: int, size: int) -> None:
        ctypes.memset(to, value, size)
        self.fills += 1
        region = next((r for r in self.memory.regions() if r.start <= to and to + size <= r.end), None)
        if region is not None and region.written is not None:
            region.written[to - region.start : to - region.start + size] = True
        elif region is None and size and self._fault is None:
            self._fault = KernelError("out of bounds", f"cudaMemsetAsync of {size} bytes")

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module.cuda, name)

        def call(*arguments: Any) -> None:
            self._fault = None
            self.prepare(arguments)
            self._library.set_functions(*self._functions)
            function(*arguments)
            self.finish(f"mcd::{name}", arguments)

        return call

    def finish(self, name: str, arguments: Any) -> None:
        if self._fault is not None:
            raise self._fault
        schema = getattr(torch.ops.mcd, name.removeprefix("mcd::")).default._schema
        first, count = len(schema.arguments), len(schema.returns)
        if not self.machine.check or any(launch.blocks_run < launch.blocks for launch in self.launches):
            return
        for number, tensor in enumerate(_tensors(arguments[first : first + count])):
            region = next((r for r in self.memory.regions() if r.start == tensor.data_ptr()), None)
            if region is not None and region.written is not None and not region.written[: tensor.nbytes].all():
                missing = int((~region.written).sum())
                raise KernelError(NEVER_WRITTEN, f"{missing} of {region.size} bytes of output {number} of {name}")

    @contextmanager
    def in_place(self) -> Iterator[Device]:
        """Operators on CPU tensors run here, with new memory marked as never written."""
        with self.marked() as patch:
            patch.setattr(native, "_cpu", self)
            patch.setattr(Tensor, "is_cuda", True)  # scratch memory is then what the kernels need
            yield self


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)
