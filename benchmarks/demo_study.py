"""The demonstration over several seeds, with its control: ``python -m benchmarks.demo_study``.

Trains ``configs/synthetic.yaml`` once a seed (scenes, networks and order all follow the seed), the control included,
and writes the table of docs/results.md between its two markers, with machine and commit.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from mcd.checkpoint import write_text
from mcd.run import environment
from mcd.train import DEFAULT_CONFIG
from mcd.train import main as train

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
COLUMNS = [("static", "abs_rel"), ("static", "a1"), ("dynamic", "abs_rel"), ("dynamic", "a1"), ("all", "abs_rel")]
BEGIN, END = "<!-- demo-study begin -->", "<!-- demo-study end -->"
STAGES = "[scene, instances, object, scale, pseudo, final, control]"


def run_seed(seed: int, runs: Path, data: Path, overrides: list[str]) -> dict:
    """Train one seed (or go on with it); returns its metrics.json."""
    name = f"synthetic-seed{seed}"
    settings = [f"run={name}", f"runs={runs}", f"seed={seed}", f"stages={STAGES}"]
    settings += [f"data.root={data / name}", f"data.synthetic.seed={seed}", *overrides]
    arguments = [str(DEFAULT_CONFIG)]
    for setting in settings:
        arguments += ["--set", setting]
    if train(arguments):
        raise SystemExit(f"seed {seed} did not finish")
    return json.loads((runs / name / "metrics.json").read_text())


def table(results: dict[int, dict]) -> str:
    """Markdown rows of every seed, and the ratios that the demonstration is judged by."""
    lines = [
        "| seed | stage | static abs_rel | static a1 | dynamic abs_rel | dynamic a1 | all abs_rel | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, metrics in results.items():
        for stage in ("scene", "pseudo", "final", "control"):
            regions = metrics["stages"][stage]
            cells = " | ".join(f"{regions[region][metric]:.3f}" for region, metric in COLUMNS)
            lines.append(f"| {seed} | {stage} | {cells} | {metrics['seconds'].get(stage, 0):.0f} |")
    lines += ["", "| seed | final / scene, dynamic | final / control, dynamic | final / scene, static | seconds, all |"]
    lines += ["|---|---|---|---|---|"]
    ratios = []
    for seed, metrics in results.items():
        scene, final, control = (metrics["stages"][stage] for stage in ("scene", "final", "control"))
        row = (
            final["dynamic"]["abs_rel"] / scene["dynamic"]["abs_rel"],
            final["dynamic"]["abs_rel"] / control["dynamic"]["abs_rel"],
            final["static"]["abs_rel"] / scene["static"]["abs_rel"],
        )
        ratios.append(row)
        seconds = sum(value for stage, value in metrics["seconds"].items() if stage != "control")
        lines.append(f"| {seed} | " + " | ".join(f"{ratio:.2f}" for ratio in row) + f" | {seconds:.0f} |")
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    lines.append("| median | " + " | ".join(f"{median:.2f}" for median in medians) + " | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    results = {seed: run_seed(seed, options.runs, options.data, options.set) for seed in options.seeds}
    machine = environment()
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']}"
    block = f"{BEGIN}\nMeasured on {where}, commit {str(machine['commit'])[:10]}.\n\n{table(results)}\n{END}"
    print(block)
    document = RESULTS.read_text()
    write_text(RESULTS, re.sub(f"{BEGIN}.*{END}", lambda _: block, document, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
