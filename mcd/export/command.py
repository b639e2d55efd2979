"""A trained depth net as a file for other programs: ``mcd export RUN --format onnx|exported-program|aoti``.

    onnx               ONNX, for onnxruntime and whatever else reads it; --opset says which version
    exported-program   torch.export's program (.pt2), for torch.export.load
    aoti               AOTInductor's compiled package (.pt2), for this machine's processor; it needs a C++ compiler

The file takes image [B, 3, h, w], float32 in [0, 1], and gives depth [B, 1, h, w] in the net's unit. The batch and,
where the net allows, the size are free (sides multiples of 32); --batch and --fixed-size hold them. With --preprocess
inside it takes image [B, H, W, 3], uint8, of any size and gives depth [B, H, W]; the net sees it at --size.

The file appears when it computes what the net does: on noise of several sizes its depth differs by less than 1e-4 of
the net's. Then its speed is measured beside PyTorch's. --precision fp16 or int8 are made from that file by
onnxruntime's own tools, and what they cost is printed as abs_rel: on rendered roads, or on --images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from mcd import __version__
from mcd.export.formats import FORMATS, OPSET, Format, Run
from mcd.export.graph import ExportError, Request, trace
from mcd.export.precision import PRECISIONS, given, loss, lower, rendered
from mcd.files import atomic_path
from mcd.inference.command import parse_size
from mcd.inference.inputs import VIDEOS, find_inputs, read_image
from mcd.inference.predictor import DepthPredictor
from mcd.run.checkpoint import find_weights

CLOSE = 1e-4
ROUNDS = 10


def check(run: Run, original: Callable[..., Any], request: Request) -> float:
    """The largest relative difference of the depth that a file says from the original's.

    Raises:
        ExportError: it is 1e-4 or more, or another shape.
    """
    worst = 0.0
    for image in request.other_examples():
        with torch.no_grad():
            expected = original(image).numpy()
        try:
            found = run(image)
        except Exception as error:  # whatever the runtime raises
            raise ExportError(f"the file does not run on {list(image.shape)}: {str(error).splitlines()[0]}") from error
        if found.shape != expected.shape:
            raise ExportError(f"the file gives {list(found.shape)} for {list(image.shape)}, not {list(expected.shape)}")
        difference = float(np.abs(found / expected - 1).max())
        if not difference < CLOSE:
            raise ExportError(
                f"the file's depth differs from the net's by {difference:.1e}, which is {CLOSE:g} or more"
            )
        worst = max(worst, difference)
    return worst


def seconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 2):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if number > 1:  # the first two warm up
                taken[name].append(time.perf_counter() - begun)
    return {name: median(found) for name, found in taken.items()}


def export(net: nn.Module, request: Request, form: Format, facts: dict[str, str], opset: int = OPSET) -> bytes:
    """A net as the bytes of a file that was compared with it.

    Raises:
        ExportError: it cannot be exported, or the file computes something else.
    """
    data = form.make(trace(net, request), facts, opset)
    difference = check(form.open(data), _original(net, request), request)
    print(f"compared with the net in {form.runtime}: depth differs by {difference:.1e} at most")
    return data


def _original(net: nn.Module, request: Request) -> Callable[..., Any]:
    """What the file should compute, by the net as it is loaded."""
    module = request.module(net)
    module.net = net  # without what was changed for the graph
    return module


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mcd export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("net", metavar="RUN", help="run folder, stage folder, weights file, or start; see mcd models")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the net's name in this folder")
    parser.add_argument("--stage", help="of a run folder: which stage's net (default: final, else scene)")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="size for the net (default: as trained)")
    parser.add_argument("--fixed-size", action="store_true", help="images of this size alone")
    parser.add_argument("--batch", type=int, metavar="N", help="batches of this many alone (default: any)")
    parser.add_argument(
        "--preprocess",
        choices=("outside", "inside"),
        default="outside",
        help="inside: the file takes uint8 pictures of any size and resizes them itself (default: outside)",
    )
    parser.add_argument("--opset", type=int, default=OPSET, metavar="N", help=f"of ONNX (default: {OPSET})")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of ONNX (default: fp32)")
    parser.add_argument(
        "--images", metavar="FOLDER", help="of pictures that calibrate and measure --precision (default: rendered)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    given = parser.parse_args(arguments)
    if given.batch is not None and given.batch < 1:
        parser.error(f"argument --batch: {given.batch} is not 1 or more")
    if given.format != "onnx" and (given.precision != "fp32" or given.opset != OPSET):
        parser.error(f"--precision and --opset are of ONNX, not of {given.format}")
    if given.precision != "fp32" and given.preprocess == "inside":
        parser.error("--precision fp16 and int8 would round the positions of pixels: give --preprocess outside")
    if not OPSET <= given.opset <= 25:
        parser.error(f"argument --opset: {given.opset} is not from {OPSET} to 25")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 with a line that says what is wrong."""
    options = _parse(arguments)
    form = FORMATS[options.format]
    try:
        weights = find_weights(options.net, options.stage)
        name = weights.stem if weights.stem != "weights" else Path(options.net).absolute().name
        out = options.output or Path(name + form.ending)
        if out.is_dir():
            raise ExportError(f"{out} is a folder; -o names a file")
        if out.exists() and not options.force:
            raise ExportError(f"{out} exists already; --force overwrites")
        predictor = DepthPredictor.load(options.net, options.stage, size=options.size)
        request = Request(predictor.size, options.batch, options.fixed_size, options.preprocess == "inside")
        height, width = predictor.size
        facts = {
            "mcd": __version__,
            "net": options.net,
            "size": f"{height}x{width}",
            "preprocessing": options.preprocess,
            "precision": options.precision,
        }
        data = export(predictor.net, request, form, facts, options.opset)
        run = form.open(data)
        if options.precision != "fp32":
            pictures = _pictures(options.images, predictor.size)
            half = (len(pictures) + 1) // 2
            lowered = lower(data, options.precision, pictures[:half])
            # One picture both calibrates and is measured on, if it is all there is.
            print(f"{options.precision}: {loss(run, lowered, pictures[half:] or pictures)}")
            data, run = lowered, form.open(lowered)
        with atomic_path(out) as temporary:
            temporary.write_bytes(data)
        _print_speed(run, predictor.net, request, form)
    except (ValueError, OSError) as error:  # of the size, the pictures, the disk
        print(f"mcd export: {error}", file=sys.stderr)
        return 1
    opset = f", opset {options.opset}" if options.format == "onnx" else ""
    print(f"{out}: {options.format}{opset}, {options.precision}, {len(data) / 1e6:.1f} MB; {_shape(request)}")
    return 0


def _pictures(folder: str | None, size: tuple[int, int]) -> list[Any]:
    if folder is None:
        return rendered(size)
    return given([read_image(path) for path in find_inputs([folder]) if path.suffix.lower() not in VIDEOS][:64], size)


def _print_speed(run: Run, net: nn.Module, request: Request, form: Format) -> None:
    image = request.example(batch=1)
    original = _original(net, request)
    with torch.no_grad():
        taken = seconds({"PyTorch": lambda: original(image), form.runtime: lambda: run(image)})
    said = ", ".join(f"{name} {1e3 * found:.1f} ms" for name, found in taken.items())
    threads = torch.get_num_threads()
    print(f"{list(image.shape)} on the CPU, {threads} thread{'s' * (threads > 1)}, median of {ROUNDS} in turns: {said}")


def _shape(request: Request) -> str:
    batch = request.batch or "B"
    height, width = request.size
    if request.preprocessing:
        sides = f"{height}, {width}" if request.fixed_size else "H, W"
        return f"image [{batch}, {sides}, 3] uint8 to depth [{batch}, {sides}], seen by the net at {height}x{width}"
    sides = f"{height}, {width}" if request.fixed_size else "h, w"
    return f"image [{batch}, 3, {sides}] float32 in [0, 1] to depth [{batch}, 1, {sides}]"
