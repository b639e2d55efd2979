"""The formats: how a graph becomes the bytes of a file, and how such bytes run."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from mcd.export.graph import INPUT, OUTPUT, ExportError, one_line
from mcd.extras import extra

Run = Callable[[Tensor], NDArray[np.float32]]
OPSET = 18


@dataclass(frozen=True)
class Format:
    """A format: its ending, what makes it, what opens it."""

    ending: str
    runtime: str
    make: Callable[[ExportedProgram, Mapping[str, str], int], bytes]
    """Of a graph, facts to be kept in the file, and an opset."""
    open: Callable[[bytes], Run]


def _stopped(error: BaseException | None) -> bool:
    """Whether what was raised is an answer to Ctrl-C or SIGTERM: torch.onnx takes those for faults of the net."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own future
            yield
    except (ImportError, ExportError):
        raise
    except Exception as error:  # torch, the compiler and the runtime raise whatever the net leads them to
        if _stopped(error):
            raise KeyboardInterrupt from error
        raise ExportError(f"{what}: {one_line(error)}") from error


def make_onnx(program: ExportedProgram, facts: Mapping[str, str], opset: int) -> bytes:
    with extra("export", "mcd export --format onnx"):
        import onnx
        import onnxruntime  # noqa: F401 - before minutes are spent
        import onnxscript  # noqa: F401
    with _said("torch.onnx cannot write the net"):
        written = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=opset, verbose=False
        )
        assert written is not None
        model = written.model_proto
        onnx.helper.set_model_props(model, dict(facts))
        model.producer_name = "mcd"
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def open_onnx(data: bytes) -> Run:
    with extra("export", "running ONNX"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with _said("onnxruntime cannot open what was written"):
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> NDArray[np.float32]:
        return session.run([OUTPUT], {INPUT: image.numpy()})[0]

    return run


def make_program(program: ExportedProgram, facts: Mapping[str, str], opset: int) -> bytes:
    buffer = io.BytesIO()
    with _said("torch.export cannot save the net"):
        torch.export.save(program, buffer, extra_files={"mcd.json": json.dumps(dict(facts))})
    return buffer.getvalue()


def open_program(data: bytes) -> Run:
    with _said("torch.export cannot load what was saved"):
        module = torch.export.load(io.BytesIO(data)).module()
    return lambda image: module(image).numpy()


def make_package(program: ExportedProgram, facts: Mapping[str, str], opset: int) -> bytes:
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, _said("AOTInductor cannot compile the net"):
        path = aoti_compile_and_package(program, package_path=str(Path(folder) / "net.pt2"))
        return Path(path).read_bytes()


def open_package(data: bytes) -> Run:
    from torch._inductor import aoti_load_package

    with tempfile.TemporaryDirectory() as folder, _said("AOTInductor cannot load what was compiled"):
        path = Path(folder) / "net.pt2"
        path.write_bytes(data)
        module: Any = aoti_load_package(str(path))
    return lambda image: module(image).numpy()


FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", make_onnx, open_onnx),
    "exported-program": Format(".pt2", "torch.export", make_program, open_program),
    "aoti": Format(".aoti.pt2", "AOTInductor", make_package, open_package),
}
