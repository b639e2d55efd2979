"""Every kernel of kernels/ as Triton compiled it for sm_90, run without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from compare import assert_close_in_float64
from gates.ptx.device import Memory
from gates.ptx.machine import Launch
from gates.ptx.parse import Module
from harness import mapped, results, samples
from torch import Tensor

from mcd.ops import backend
from mcd.ops.registry import OPERATORS, Operator, Sample

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="under TRITON_INTERPRET=1 nothing compiles"),
]

ARCHITECTURE = 90
WITH_TRITON = [pytest.param(operator, id=name) for name, operator in OPERATORS.items() if operator.triton]


class TritonDevice(Memory):
    """Runs what Triton's launchers launch."""

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, Module] = {}

    def launched(self, function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        from gates import triton_code
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        kwargs |= {"debug": False, "instrumentation_mode": ""}
        compiled = triton_code.compiled(triton_code.Launch(function, args, kwargs, ()), ARCHITECTURE)
        text = compiled.asm["ptx"]
        if text not in self._modules:
            self._modules[text] = Module(text)
        (kernel,) = self._modules[text].values()
        self.prepare(args)
        target = make_backend(GPUTarget("cuda", ARCHITECTURE, 32))
        bound, _, _ = create_function_from_signature(function.signature, function.params, target)(*args, **kwargs)
        values = [bound[name] for name, kind in compiled.src.signature.items() if kind != "constexpr"]
        octets = bytearray(kernel.parameter_bytes)
        for value, (offset, size) in zip(values, kernel.parameters.values(), strict=False):  # then Triton's own scratch
            number = value.data_ptr() if isinstance(value, Tensor) else int(value)
            octets[offset : offset + size] = (number % 256**size).to_bytes(size, "little")
        across = (*(grid(bound) if callable(grid) else grid), 1, 1)[:3]
        threads = 32 * compiled.metadata.num_warps
        self.run(kernel, Launch(across, (threads, 1, 1), compiled.metadata.shared, bytes(octets)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        from triton.runtime.jit import JITFunction

        with self.marked() as patch:
            patch.setattr(
                JITFunction, "run", lambda function, *args, **kwargs: self.launched(function, *args, **kwargs)
            )
            patch.setattr(backend, "why_not", lambda *_: None)
            yield


@pytest.fixture(scope="module")
def device() -> TritonDevice:
    return TritonDevice()


def check(operator: Operator, sample: Sample, exact: Sample, device: TritonDevice, relative: float) -> None:
    expected = results(operator, exact, "reference")
    with device.in_place():
        actual = results(operator, sample, "triton")
    assert_close_in_float64(actual, expected, sample.label, relative)


@pytest.mark.parametrize("operator", WITH_TRITON)
def test_compiled_kernels_agree_in_float32(operator: Operator, device: TritonDevice) -> None:
    for sample in samples(operator):
        single = mapped(sample, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
        exact = mapped(single, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
        check(operator, single, exact, device, 1e-4)


@pytest.mark.parametrize("operator", WITH_TRITON)
def test_compiled_kernels_agree_with_the_reference(operator: Operator, device: TritonDevice) -> None:
    sample = samples(operator)[0]
    check(operator, sample, sample, device, 1e-10)
