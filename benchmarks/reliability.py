"""Is confidence what it says? ``python -m benchmarks.reliability ROADS [--net RUN_OR_FILE] [--fit]``.

ROADS is a folder of rendered roads that the net has not seen, of
``python -m mcd.streets.roads.store ROADS --seed 100 --shards 4``. Each view is photographed once, the net predicts it,
its scale is that of the medians, and the pixels nearer than 80 m count. The second half of the shards is for the
reliability curve: for every tenth of confidence, the share of pixels whose depth is right. It goes into docs/use.md,
with its picture. ``--fit`` prints the table of :mod:`mcd.inference.confidence` from the first half.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mcd
from benchmarks.machine import describe
from mcd.files import atomic_path, write_text
from mcd.inference.confidence import calibrated, disagree
from mcd.inference.model import DepthModel
from mcd.streets.ray_caster import NoiseTexture
from mcd.streets.roads.photograph import photograph
from mcd.visualize import from_bytes

DOCS = Path(__file__).parents[1] / "docs"
FARTHEST, RIGHT = 80.0, 1.25
# Shares of the pixels, ordered by disagreement, between which a group lies that becomes a knot.
GROUPS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.97, 0.985, 0.995, 1.0)


def pixels(model: DepthModel, shards: list[Path]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Disagreement of every pixel, and whether its depth is right."""
    found = [measured for shard in shards for measured in _views(model, shard)]
    disagreement, right = (np.concatenate([pair[index] for pair in found]) for index in (0, 1))
    return disagreement, right


def _views(model: DepthModel, shard: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    rng = np.random.default_rng(int(shard.stem))
    texture = NoiseTexture(np.random.default_rng(0), octaves=8, slope=1.4)
    with np.load(shard) as arrays:
        images, depths = arrays["image"], arrays["depth"].astype(np.float32)
    for image, truth in zip(images, depths, strict=True):
        taken = from_bytes(photograph(rng, image, texture))[None]
        with torch.no_grad():
            depth, disagreement = (tensor[0, 0].numpy() for tensor in disagree(model.predictor, taken))
        known = (truth > 0) & (truth < FARTHEST)
        if not known.any():
            continue
        scaled = depth[known] * (np.median(truth[known]) / np.median(depth[known]))
        ratio = np.maximum(scaled / truth[known], truth[known] / scaled)
        yield disagreement[known], ratio < RIGHT


def fit(disagreement: NDArray[Any], right: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Knots: the disagreement of groups of pixels, and the shares of right ones, where neighbours that do not fall are
    pooled."""
    order = np.argsort(disagreement)
    edges = np.round(np.array(GROUPS) * len(order)).astype(int)
    groups = [order[begin:end] for begin, end in itertools.pairwise(edges)]
    at = [float(np.median(disagreement[group])) for group in groups]
    # Share, weight and number of knots of each pool.
    pools = [(float(right[group].mean()), len(group), 1) for group in groups]
    place = 0
    while place + 1 < len(pools):
        if pools[place][0] >= pools[place + 1][0]:
            place += 1
            continue
        (first, weight, count), (second, other, more) = pools[place], pools.pop(place + 1)
        pools[place] = ((first * weight + second * other) / (weight + other), weight + other, count + more)
        place = max(place - 1, 0)
    return at, [share for share, _, count in pools for _ in range(count)]


def curve(confidence: NDArray[Any], right: NDArray[Any]) -> list[tuple[float, float, float]]:
    """Of each tenth that has pixels: mean confidence, share of right pixels, share of all pixels."""
    tenth = np.minimum((confidence * 10).astype(int), 9)
    inside = [tenth == number for number in range(10)]
    return [
        (float(confidence[here].mean()), float(right[here].mean()), float(here.mean())) for here in inside if here.any()
    ]


def write(rows: list[tuple[float, float, float]], expected_error: float, views: int) -> None:
    """Put the curve into docs/use.md and docs/reliability.png."""
    machine = describe()
    lines = [f"`start`, {views} views that it has not seen, commit {machine['commit']}.", ""]
    lines += ["| confidence | right | pixels |", "|---|---|---|"]
    lines += [f"| {said:.2f} | {true:.2f} | {share:.1%} |" for said, true, share in rows]
    lines += ["", f"Mean difference between the first two columns, weighted by pixels: {expected_error:.3f}."]
    page = DOCS / "use.md"
    block = re.compile(r"(<!-- reliability begin -->\n).*?(<!-- reliability end -->)", re.S)
    write_text(page, block.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], page.read_text()))
    _draw(rows)


def _draw(rows: list[tuple[float, float, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.2, 3.6), dpi=110)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as it says")
    axes.plot([row[0] for row in rows], [row[1] for row in rows], "o-", color="#4c78a8", label="measured")
    axes.set(xlabel="confidence", ylabel="share of depths within 25 %", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_path(DOCS / "reliability.png") as path:
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roads", type=Path)
    parser.add_argument("--net", default="start", help="run, file or name; the docs have that of start")
    parser.add_argument("--fit", action="store_true", help="print the table instead of measuring it")
    given = parser.parse_args()
    model = mcd.load(given.net, device="cpu")
    shards = sorted(given.roads.glob("*.npz"))
    half = len(shards) // 2
    shards = shards[:half] if given.fit else shards[half:]
    disagreement, right = pixels(model, shards)
    if given.fit:
        at, shares = fit(disagreement, right)
        print("DISAGREEMENT =", tuple(round(value, 4) for value in at))
        print("RIGHT =", tuple(round(value, 3) for value in shares))
        return
    confidence = calibrated(torch.from_numpy(disagreement)).numpy()
    rows = curve(confidence, right)
    error = sum(abs(said - true) * share for said, true, share in rows)
    for said, true, share in rows:
        print(f"{said:.2f} said, {true:.2f} right, {share:6.1%} of the pixels")
    print(f"expected calibration error {error:.3f}; right in all {right.mean():.3f}")
    if given.net == "start":
        write(rows, error, sum(len(np.load(shard)["image"]) for shard in shards))


if __name__ == "__main__":
    main()
