"""Size and exactness of the prediction store: ``python -m benchmarks.prediction_store RUN [--config C] [--set K=V …]``.

Predicts depth and residual flow of all training frames with the scene nets of a run, at the sizes and on the data of
its config or of another one, stores them, reads them back and prints bytes a frame, share of raw float32, and the
largest errors.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from mcd.config import load_config
from mcd.data import FrameDataset, fixed_batches, open_reader, prefetch
from mcd.data.store import Prediction, PredictionStore
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.scene.predictions import ScenePredictions
from mcd.train import set_up


def measure(config_path: Path, run: Path, overrides: list[str], frames: int) -> dict[str, float]:
    """Figures over at most ``frames`` frames spread over the training split."""
    folder = Path(tempfile.mkdtemp(prefix="mcd-store-"))
    # A run without a scene stage of its own takes the nets of `init`.
    settings = [f"init={run / 'scene'}", "stages=[instances]", f"runs={folder}", "store=none", *overrides]
    config = load_config(config_path, settings)
    context = Context(config, Run(config), set_up(config))
    predictions, store = ScenePredictions(context), PredictionStore(folder / "store.sqlite", "measured")
    dataset = FrameDataset(open_reader(config.data, "train"), config.data)
    raw, count, depth_error, flow_error, written, read = 0, 0, 0.0, 0.0, 0.0, 0.0
    loader = fixed_batches(dataset, 1, config.data.workers, context.device, limit=frames)
    for batch in prefetch(loader, context.device):
        scene = predictions("train", batch)
        given = Prediction(*(t[0].cpu().numpy() for t in (scene.depth, scene.flow, scene.T_src_ref)))
        begin = time.perf_counter()
        store.write("train", {batch["frame"][0]: given})
        middle = time.perf_counter()
        found = store.read("train", batch["frame"][0])
        assert found is not None
        read, written = read + time.perf_counter() - middle, written + middle - begin
        raw, count = raw + given.depth.nbytes + given.flow.nbytes, count + 1
        depth_error = max(depth_error, float(np.abs(found.depth / given.depth - 1).max()))
        flow_error = max(flow_error, float(np.abs(found.flow - given.flow).max()))
    size = store.path.stat().st_size
    return {
        "frames": count,
        "bytes a frame": size / count,
        "share of raw float32": size / raw,
        "largest relative depth error": depth_error,
        "largest flow error, pixels": flow_error,
        "milliseconds to write a frame": 1e3 * written / count,
        "milliseconds to read a frame": 1e3 * read / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction_store", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--config", type=Path, help="data of this config instead of the run's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--frames", type=int, default=40)
    given = parser.parse_args()
    for name, value in measure(given.config or given.run / "config.yaml", given.run, given.set, given.frames).items():
        print(f"{name:34} {value:.6g}")


if __name__ == "__main__":
    main()
