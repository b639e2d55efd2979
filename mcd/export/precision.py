"""Smaller numbers in an ONNX file, by onnxruntime's own tools, and what they cost in abs_rel.

fp16 halves the file; CPUs compute with it no faster. int8 is static quantisation of the convolutions, per channel, in
onnxruntime's QDQ form; it needs pictures to find the ranges of the activations.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd.data.files import resize_image
from mcd.evaluation.metrics import depth_metrics, median_ratio
from mcd.export.formats import Run, open_onnx
from mcd.export.graph import INPUT, ExportError, one_line
from mcd.extras import extra
from mcd.visualize import from_bytes

PRECISIONS = ("fp32", "fp16", "int8")
VIEWS, SEED = 16, 2000
FARTHEST = 80.0


@dataclass(frozen=True)
class Picture:
    """What calibrates and what is measured on: image [1, 3, h, w], and its true depth [h, w] where it is known."""

    image: Tensor
    truth: Tensor | None


def rendered(size: tuple[int, int], count: int = VIEWS) -> list[Picture]:
    """Rendered roads with their depth (0: none); which ones depends on the size alone."""
    from mcd.streets.roads.views import make_views, textures

    rng = np.random.default_rng([SEED, *size])
    noise = textures(rng)
    views = [clip[0] for _ in range((count + 1) // 2) for clip in make_views(rng, noise, size, cameras=2)]
    return [Picture(from_bytes(view.image)[None], torch.from_numpy(view.depth)) for view in views[:count]]


def given(images: list[NDArray[np.uint8]], size: tuple[int, int]) -> list[Picture]:
    """Pictures [H, W, 3] of the user's, at the net's size."""
    return [Picture(from_bytes(resize_image(image, size))[None], None) for image in images]


def lower(model: bytes, precision: str, pictures: list[Picture]) -> bytes:
    """The ONNX file in another precision; ``pictures`` calibrate int8.

    Raises:
        ExportError: onnxruntime's tools refuse it, or what they make is no depth any more.
    """
    try:
        with _quiet():
            return _to_fp16(model) if precision == "fp16" else _to_int8(model, pictures)
    except ImportError:
        raise
    except Exception as error:  # onnxruntime raises whatever the net leads it to
        raise ExportError(f"onnxruntime's tools cannot make {precision} of the net: {one_line(error)}") from error


def _to_fp16(model: bytes) -> bytes:
    with extra("export", "--precision fp16"):
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

    converted = convert_float_to_float16(onnx.load_model_from_string(model), keep_io_types=True)
    return bytes(converted.SerializeToString())


def _to_int8(model: bytes, pictures: list[Picture]) -> bytes:
    with extra("export", "--precision int8"):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self._left, None)
            return None if picture is None else {INPUT: picture.image.numpy()}

    loaded = onnx.load_model_from_string(model)
    with tempfile.TemporaryDirectory() as folder:
        plain, source, target = (Path(folder) / f"{name}.onnx" for name in ("plain", "source", "target"))
        plain.write_bytes(model)
        quant_pre_process(str(plain), str(source), skip_symbolic_shape=True)
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            # With eight bits on both sides, sums of products overflow on processors without VNNI.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        written = onnx.load(str(target))
    # The tools leave the facts of the file behind.
    onnx.helper.set_model_props(written, {entry.key: entry.value for entry in loaded.metadata_props})
    return bytes(written.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print advice and log to the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)


def loss(before: Run, after: bytes, pictures: list[Picture]) -> str:
    """What a precision costs, in a line: abs_rel to the original's depth, and, where it is known, to the true one.

    Raises:
        ExportError: the depth is not finite and positive any more.
    """
    run = open_onnx(after)
    from_original: list[float] = []
    to_truth: list[tuple[float, float]] = []
    for picture in pictures:
        old, new = (torch.from_numpy(net(picture.image)).flatten() for net in (before, run))
        if not bool((torch.isfinite(new) & (new > 0)).all()):
            raise ExportError("the depth of the lower precision is not finite and positive")
        from_original.append(float(depth_metrics(new, old)["abs_rel"]))
        if picture.truth is not None:
            truth = picture.truth.flatten()
            known = (truth > 0) & (truth < FARTHEST)
            if bool(known.any()):
                errors = [
                    float(depth_metrics(depth * median_ratio(depth, truth, known), truth, known)["abs_rel"])
                    for depth in (old, new)
                ]
                to_truth.append((errors[0], errors[1]))
    line = f"abs_rel to the original's depth {np.mean(from_original):.4f}"
    if to_truth:
        old_error, new_error = np.mean(to_truth, axis=0)
        line += f"; to the true depth {old_error:.4f} before, {new_error:.4f} after"
    return f"{line} ({len(pictures)} pictures)"
