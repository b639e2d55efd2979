"""The demonstration over several seeds, with its control: ``python -m benchmarks.demo_study``.

Trains a config of the synthetic streets once a seed (scenes, networks and order all follow the seed), the control
included, and writes its table into docs/results.md, between the markers that bear the config's name, with machine and
commit. ``--config configs/synthetic_unsupervised.yaml`` is the variant that finds masks itself.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from mcd.config import load_config
from mcd.files import write_text
from mcd.run.folder import environment
from mcd.train import DEFAULT_CONFIG
from mcd.train import main as train

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
COLUMNS = [("static", "abs_rel"), ("static", "a1"), ("dynamic", "abs_rel"), ("dynamic", "a1"), ("all", "abs_rel")]


def run_seed(config: Path, seed: int, runs: Path, data: Path, overrides: list[str]) -> dict:
    """Train one seed (or go on with it); returns its metrics.json."""
    name = f"{config.stem}-seed{seed}"
    stages = [*load_config(config).stages, "control"]
    settings = [f"run={name}", f"runs={runs}", f"seed={seed}", f"stages=[{', '.join(stages)}]"]
    settings += [f"data.root={data}/synthetic-seed{seed}", f"data.synthetic.seed={seed}", *overrides]
    arguments = [str(config)]
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


def discovery_table(results: dict[int, dict]) -> str:
    """What each seed found, held against the truth; empty where masks were given."""
    lines = ["", "", "| seed | | found | moving | precision | recall | ground IoU |", "|---|---|---|---|---|---|---|"]
    for seed, metrics in results.items():
        for stage, scores in metrics.get("discovery", {}).items():
            counts = [str(scores.get(name, "")) for name in ("found", "moving")]
            shares = [f"{scores[name]:.2f}" if name in scores else "" for name in ("precision", "recall", "iou")]
            lines.append(f"| {seed} | {stage} | " + " | ".join(counts + shares) + " |")
    return "\n".join(lines) if len(lines) > 4 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    results = {seed: run_seed(options.config, seed, options.runs, options.data, options.set) for seed in options.seeds}
    machine = environment()
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']}"
    tables = table(results) + discovery_table(results)
    begin, end = (f"<!-- demo-study {options.config.stem} {edge} -->" for edge in ("begin", "end"))
    block = f"{begin}\nMeasured on {where}, commit {str(machine['commit'])[:10]}.\n\n{tables}\n{end}"
    print(block)
    document = RESULTS.read_text()
    write_text(RESULTS, re.sub(f"{begin}.*{end}", lambda _: block, document, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
