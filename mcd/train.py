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
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before imports of packages that may be missing, which `mcd` names
    from mcd.cli import main as command

    sys.exit(command(["train", *sys.argv[1:]]))

import torch
from PIL import Image

import mcd
from mcd import ops, world
from mcd.config import PACKAGED, Config, ConfigError, known_keys, load_config
from mcd.data import open_reader
from mcd.data.prepare_cache import ready_cache
from mcd.errors import McdError, NothingToLearnError, out_of_memory
from mcd.evaluation.discovery import evaluate_discovery
from mcd.evaluation.protocol import NothingCountsError, Regions
from mcd.evaluation.stages import evaluate_stage, run_contact, write_metrics
from mcd.extras import MissingPackage, extra
from mcd.files import atomic_path
from mcd.inference.predictor import OWN_VEHICLE, choose_device
from mcd.run.checkpoint import WEIGHTS
from mcd.run.context import Context
from mcd.run.folder import Run, run_folder
from mcd.run.lock import lock_run
from mcd.run.networks import check_motion, check_nets
from mcd.run.processes import check_processes, count_frames, open_run
from mcd.run.progress import RunLine
from mcd.run.warned import DATA, warn
from mcd.stages import STAGES, Preparation, Stage, TrainingStage
from mcd.stages.segment import check_segmenter
from mcd.streets.synthetic import generate
from mcd.training.checks import look_at_frames, look_at_results
from mcd.training.expect import expected_stages
from mcd.training.loop import train
from mcd.training.memory import keep_freed_memory
from mcd.training.plan import peak_bytes, plan, show
from mcd.training.profiling import ProfileWindow, step_window
from mcd.training.state import LAST
from mcd.training.stop import InterruptedRun, StopSignal

STAGES_OF_OBJECTS = ("slots", "detector", "proposals", "instances", "object", "scale", "pseudo", "final")
"""What needs objects, to the end."""

DEFAULT_CONFIG = PACKAGED / "synthetic.yaml"
CONFIG_HELP = "YAML file, or the name of a config that comes with the program (default: synthetic)"


# OSError: a full or read-only disk, a folder of another where data should be.
EXPECTED = (McdError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        with StopSignal() as stop, world.joined():
            config = load_config(options.config, options.set)
            if options.plan:
                return world.from_first(partial(show_plan, config))
            train_run(config, stop, options.profile)
    except InterruptedRun:
        world.complain("stopped; the same command goes on from here")
        return 130
    except EXPECTED as error:
        world.complain(f"mcd.train: {error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        world.complain(f"mcd.train: not enough memory: lower data.size or the stage's batch ({error})")
        return 1
    return 0


def show_plan(config: Config) -> int:
    """Print what a run will do and take; returns 0."""
    check_nets(config)
    check_motion(config)
    show(config, plan(config, set_up(config)))
    return 0


def train_run(config: Config, stop: StopSignal, profile: tuple[int, int] | None = None) -> Path:
    """Train, evaluate and report every stage of ``config``; returns the run folder.

    Of many processes the first holds and writes the run folder, evaluates and reports; the others share the stages.
    """
    check_nets(config)
    check_motion(config)
    if "segment" in config.stages and Run.at(run_folder(config), config).finished("segment") is None:
        world.from_first(partial(check_segmenter, config))
    check_processes(config)
    device = set_up(config)
    with lock_run(run_folder(config)) if world.is_first() else nullcontext():
        run = open_run(config)
        world.from_first(partial(make_data, config))
        world.from_first(partial(ready_cache, config.data))
        context = Context(config, run, device)
        frames = count_frames(config)
        window = ProfileWindow(profile if world.is_first() else None, run.path)
        with RunLine(expected_stages(config, frames)) as line, closing(window):
            left = world.from_first(lambda: [name for name in config.stages if run.finished(name) is None])
            if left:
                world.from_first(lambda: warn(run.path, DATA, look_at_frames(config)))
                world.from_first(partial(keep_own_vehicle, context))
            for name in left:
                line.begin(name)
                facts = run_or_leave_out(name, context, stop, window) | {"frames": frames}
                world.from_first(partial(finish, context, name, facts))
                line.end()
        world.from_first(partial(conclude, context))
    return run.path


def finish(context: Context, name: str, facts: dict[str, Any]) -> None:
    """Evaluate a stage that is over, and write down what it found."""
    if "left_out" in facts:
        leave_out(context, name)
    facts["metrics"] = evaluate(context, name)
    facts["discovery"] = evaluate_discovery(context, name)
    facts["peak_bytes"] = peak_bytes(context.device)
    context.run.finish(name, **facts)
    write_metrics(context.run.path)


def conclude(context: Context) -> None:
    """Gather the figures of a run that is over, and draw its report."""
    run = context.run
    write_metrics(run.path, contact=run_contact(context.config, run.path, context.device), show=True)
    report(run.path)


def report(run: Path) -> None:
    """Draw the report; where its packages are missing, say so: a run is worth more than its report."""
    try:
        with extra("report", "the report"):
            from mcd.report.page import write_report
    except MissingPackage as error:
        print(f"no report: {error}", file=sys.stderr)
    else:
        print(f"report: {write_report(run)}")


def why_left_out(run: Run, name: str) -> str | None:
    """Why a stage is left out: an earlier one has found nothing to learn objects from. None: it is not."""
    before = STAGES_OF_OBJECTS[: STAGES_OF_OBJECTS.index(name)] if name in STAGES_OF_OBJECTS else ()
    return next((facts["left_out"] for stage in before if "left_out" in (facts := run.finished(stage) or {})), None)


def say_left_out(context: Context, name: str, reason: str) -> None:
    """Say that the stages from ``name`` on are left out, and why."""
    stages = [stage for stage in STAGES_OF_OBJECTS[STAGES_OF_OBJECTS.index(name) :] if stage in context.config.stages]
    instead = "; the final net is the scene's" if "final" in stages else ""
    warn(context.run.path, name, [f"{reason}. Left out: {', '.join(stages)}{instead}"])


def leave_out(context: Context, name: str) -> None:
    """Where the final stage is left out, the scene's net, which is right where nothing moves, becomes the final."""
    if name == "final":
        with atomic_path(context.run.stage(name) / WEIGHTS) as temporary:
            temporary.write_bytes(context.weights_of("scene").read_bytes())


def evaluate(context: Context, name: str) -> Regions:
    """Evaluate a stage; ground truth without a valid pixel is reported and does not stop the run."""
    notes: list[str] = []
    metrics: Regions = {}
    try:
        metrics = evaluate_stage(context.config, context.run.path, name, context.device, notes)
    except NothingCountsError as error:
        notes.append(str(error))
    if notes:
        warn(context.run.path, "evaluation", notes)
    return metrics


def run_or_leave_out(name: str, context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Run a stage, unless there is nothing for it to learn; returns facts for ``done.json``."""
    reason = world.from_first(partial(why_left_out, context.run, name))
    if reason is None:
        try:
            return run_stage(STAGES[name], context, stop, window)
        except NothingToLearnError as error:
            reason = str(error)
            say_left_out(context, name, reason)
    return {"seconds": 0.0, "left_out": reason}


def run_stage(kind: type[Stage], context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Run all parts of a stage; returns what the last one has to say, and the time that all took."""
    facts: dict[str, Any] = {}
    seconds = 0.0
    for part in kind.parts(context):
        done = world.from_first(partial(context.run.finished, part.name))
        facts = run_part(part, context, stop, window) if done is None else done
        if part.name != kind.name:
            world.from_first(partial(close_part, context, part, facts))
        seconds += facts["seconds"]
    return facts | {"seconds": seconds}


def close_part(context: Context, part: Stage, facts: dict[str, Any]) -> None:
    context.run.finish(part.name, **facts)
    # A part that is over needs no state to go on from: ten rounds of the published detector would keep 2.5 GB.
    shutil.rmtree(part.folder / LAST, ignore_errors=True)


def run_part(part: Stage, context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Prepare or train, and write what later stages read; returns facts for ``done.json``."""
    facts: dict[str, Any] = {"seconds": 0.0}
    if isinstance(part, TrainingStage):
        facts = train(part, context, stop, window)
    begin = time.perf_counter()
    try:
        if isinstance(part, TrainingStage):
            world.from_first(lambda: warn(context.run.path, part.name, look_at_results(part)))
            facts |= part.export(stop)
        elif isinstance(part, Preparation):
            facts |= part.prepare(stop)
    except KeyboardInterrupt:
        raise InterruptedRun from None
    facts["seconds"] += time.perf_counter() - begin
    return facts


def keep_own_vehicle(context: Context) -> None:
    """Leave the mask of the own vehicle with the run: whoever measures the road in its predictions leaves that out."""
    mask = getattr(open_reader(context.config.data, "train"), "own_mask", None)
    if mask is not None:
        with atomic_path(context.run.path / OWN_VEHICLE) as temporary:
            Image.fromarray(mask).save(temporary)


def set_up(config: Config) -> torch.device:
    """Device, threads, seed and backend of a run."""
    device = own_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    try:
        mcd.set_backend(config.backend)
    except mcd.BackendUnavailable as error:
        raise ConfigError(str(error)) from None
    if world.is_first():
        shared = f", {world.size()} processes" if world.size() > 1 else ""
        print(f"operators on {device}{shared}: {ops.backend_summary(device)}")
    return device


def own_device(name: str) -> torch.device:
    """The device of this process, made the current one: that of the config, or of many processes each its own.

    Raises:
        ConfigError: torch knows no such device, it is not on this machine, or there are fewer than processes.
    """
    shared = world.size() > 1
    if shared and name in ("auto", "cuda") and torch.cuda.is_available():
        number, count = world.local_rank(), torch.cuda.device_count()
        if number >= count:
            raise ConfigError(
                f"'device': of this machine's processes number {number} has no device, for it has {count}: lower "
                "--nproc-per-node"
            )
        name = f"cuda:{number}"
    elif shared and name.startswith("cuda:"):
        raise ConfigError(f"'device' is {name}, one device, and there are {world.size()} processes: set cuda")
    try:
        device = choose_device(name)
    except ValueError as error:
        raise ConfigError(f"'device': {error}") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
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
        prog="mcd train",
        description="Train every stage of a config, evaluate, report.",
        epilog="keys, defaults:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the config")
    parser.add_argument("--backend", help="reference, native, triton or auto; short for --set backend=")
    parser.add_argument(
        "--camera-height",
        type=float,
        metavar="METRES",
        help="of the camera above the road; short for --set data.camera_height=",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what stages, steps, time, disk and memory a run takes, and do nothing"
    )
    parser.add_argument("--profile", type=step_window, metavar="START:STOP", help="profile these training steps")
    options = parser.parse_args(arguments)
    if options.camera_height is not None:
        options.set.append(f"data.camera_height={options.camera_height}")
    if options.backend:
        options.set.append(f"backend={options.backend}")
    return options
