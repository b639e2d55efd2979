"""``python -m mcd.train [CONFIG] [--set a.b=c …]``: train every stage of a config, evaluate, report.

A run that was killed goes on where it was: finished stages are skipped, an unfinished one continues from its last
checkpoint; on a CPU it is bit for bit the same run (with the same thread count).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

import mcd
from mcd import ops
from mcd.config import Config, ConfigError, known_keys, load_config
from mcd.data import open_reader
from mcd.errors import McdError
from mcd.evaluation.discovery import evaluate_discovery
from mcd.evaluation.stages import evaluate_stage, run_contact, write_metrics
from mcd.inference.predictor import choose_device
from mcd.report.page import write_report
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.run.networks import check_nets
from mcd.stages import STAGES, Preparation, Stage, TrainingStage
from mcd.streets.synthetic import generate
from mcd.training.loop import train
from mcd.training.memory import keep_freed_memory
from mcd.training.profiling import ProfileWindow, step_window
from mcd.training.state import LAST
from mcd.training.stop import InterruptedRun, StopSignal

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "synthetic.yaml"


# FileExistsError: another's folder stands where data should.
EXPECTED = (McdError, FileExistsError, BlockingIOError)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        config = load_config(options.config, options.set)
        with StopSignal() as stop:
            train_run(config, stop, options.profile)
    except InterruptedRun:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except EXPECTED as error:
        print(f"mcd.train: {error}", file=sys.stderr)
        return 1
    return 0


def train_run(config: Config, stop: StopSignal, profile: tuple[int, int] | None = None) -> Path:
    """Train, evaluate and report every stage of ``config``; returns the run folder."""
    check_nets(config)
    device = set_up(config)
    run = Run(config)
    make_data(config)
    context = Context(config, run, device)
    frames = sum(len(open_reader(config.data, split).frames) for split in ("train", "val"))
    with closing(ProfileWindow(profile, run.path)) as window:
        for name in config.stages:
            if run.finished(name) is not None:
                continue
            facts = run_stage(STAGES[name], context, stop, window)
            facts["metrics"] = evaluate_stage(config, run.path, name, device)
            facts["discovery"] = evaluate_discovery(context, name)
            facts["frames"] = frames
            run.finish(name, **facts)
            write_metrics(run.path)
    write_metrics(run.path, contact=run_contact(config, run.path, device), show=True)
    print(f"report: {write_report(run.path)}")
    return run.path


def run_stage(kind: type[Stage], context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Run all parts of a stage; returns what the last one has to say, and the time that all took."""
    facts: dict[str, Any] = {}
    seconds = 0.0
    for part in kind.parts(context):
        done = context.run.finished(part.name)
        facts = run_part(part, context, stop, window) if done is None else done
        if done is None and part.name != kind.name:
            context.run.finish(part.name, **facts)
        if part.name != kind.name:
            # A part that is over needs no state to go on from: ten rounds of the published detector would keep 2.5 GB.
            shutil.rmtree(part.folder / LAST, ignore_errors=True)
        seconds += facts["seconds"]
    return facts | {"seconds": seconds}


def run_part(part: Stage, context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Prepare or train, and write what later stages read; returns facts for ``done.json``."""
    facts: dict[str, Any] = {"seconds": 0.0}
    if isinstance(part, TrainingStage):
        facts = train(part, context, stop, window)
    begin = time.perf_counter()
    try:
        if isinstance(part, TrainingStage):
            facts |= part.export(stop)
        elif isinstance(part, Preparation):
            facts |= part.prepare(stop)
    except KeyboardInterrupt:
        raise InterruptedRun from None
    facts["seconds"] += time.perf_counter() - begin
    return facts


def set_up(config: Config) -> torch.device:
    """Device, threads, seed and backend of a run."""
    try:
        device = choose_device(config.device)
    except ValueError as error:
        raise ConfigError(f"'device': {error}") from None
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    try:
        mcd.set_backend(config.backend)
    except mcd.BackendUnavailable as error:
        raise ConfigError(str(error)) from None
    print(f"operators on {device}: {ops.backend_summary(device)}")
    return device


def make_data(config: Config) -> None:
    """Render the synthetic scenes that a config asks for; scenes that are there already are kept."""
    wanted = config.data.synthetic
    if wanted is not None:
        generate(
            config.data.root,
            train=wanted.frames,
            val=wanted.val_frames,
            size=config.data.size,
            seed=wanted.seed,
            workers=max(config.data.workers, 1),
            progress=True,
        )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    lines = [f"  {name:34} {default!s:24} {text}" for name, default, text in known_keys()]
    parser = argparse.ArgumentParser(
        prog="python -m mcd.train",
        description="Train every stage of a config, evaluate, report.",
        epilog="keys, defaults:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", default=DEFAULT_CONFIG, help="YAML file (default: configs/synthetic.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the config")
    parser.add_argument("--backend", help="reference, native, triton or auto; short for --set backend=")
    parser.add_argument("--profile", type=step_window, metavar="START:STOP", help="profile these training steps")
    options = parser.parse_args(arguments)
    if options.backend:
        options.set.append(f"backend={options.backend}")
    return options


if __name__ == "__main__":
    sys.exit(main())
