"""``python -m mcd.train [CONFIG] [--set a.b=c …]``: train every stage of a config, evaluate, report.

A run that was killed goes on where it was: finished stages are skipped, an unfinished one continues from its last
checkpoint; on a CPU it is bit for bit the same run (with the same thread count).
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mcd
from mcd import ops
from mcd.checkpoint import CheckpointError, load_state, save_state
from mcd.config import Config, ConfigError, known_keys, load_config
from mcd.data import DataError, EvaluationSet, StepSampler, build_loader, fixed_batches, open_reader, prefetch
from mcd.data.synthetic import generate
from mcd.discovery import evaluate_discovery
from mcd.evaluate import EvaluationError, evaluate_depth, evaluate_stage, write_metrics
from mcd.memory import keep_freed_memory
from mcd.nan_guard import NanGuard, TrainingDivergedError
from mcd.predictor import choose_device
from mcd.profiling import ProfileWindow, StepTimer, step_window
from mcd.progress import progress
from mcd.report import write_report
from mcd.run import Run, RunError, StageLog
from mcd.stages import STAGES, Context, Preparation, Stage, StageError, TrainingStage, check_nets

LAST = "last"
"""Where a stage keeps what it goes on from."""
DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "synthetic.yaml"


class InterruptedRun(Exception):  # noqa: N818 - not an error
    """SIGTERM or Ctrl-C: what had to be saved is saved."""


# What goes wrong without being a bug: told in one line. FileExistsError: another's folder stands where data should.
EXPECTED = (
    ConfigError,
    RunError,
    DataError,
    CheckpointError,
    TrainingDivergedError,
    StageError,
    EvaluationError,
    FileExistsError,
    BlockingIOError,
)


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
    write_metrics(run.path, show=True)
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


def train(stage: TrainingStage, context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Train one stage to its end, or to a stop; returns facts for ``done.json``."""
    config, schedule, device = context.config, stage.schedule, context.device
    if schedule.steps == 0:
        stage.initialise()
        stage.save_weights(0, None)
        return {"steps": 0, "seconds": 0.0}
    dataset = stage.dataset("train", config.augment)
    if len(dataset) < schedule.batch:
        raise StageError(
            f"stage {stage.name}: a batch of {schedule.batch} cannot be drawn from {len(dataset)} items: "
            "lower its 'batch'"
        )
    validation = Validation(stage, context)
    stage.steps_per_epoch = len(dataset) // schedule.batch
    steps = schedule.length(stage.steps_per_epoch)
    last = stage.folder / LAST / "state.pt"
    state = load_state(last)
    if state is None:
        stage.initialise()
        start, phase, best, seconds = 0, -1, math.inf, 0.0
        optimizer = None
    else:
        start, phase, best, seconds = state["step"], state["phase"], state["best"], state["seconds"]
        for role, net in stage.nets.items():
            net.load_state_dict(state["nets"][role])
        optimizer = make_optimizer(stage, start - 1)
        optimizer.load_state_dict(state["optimizer"])

    sampler = StepSampler(len(dataset), schedule.batch, config.seed, start, steps, first_epoch=stage.first_epoch)
    batches = prefetch(build_loader(dataset, sampler, config.data.workers, device), device, config.channels_last)
    timer, guard = StepTimer(device), NanGuard(config.on_nan, device)
    begin, unread = time.perf_counter() - seconds, 0
    with closing(StageLog(context.run, stage.name, start)) as log, progress(steps, stage.name, "step", start) as bar:
        for step in range(start, steps):
            window.step()
            with timer("data"):
                batch = next(batches)
            unread += len(batch["skipped"])
            if stage.phase(step) != phase or optimizer is None:
                phase, best = stage.phase(step), math.inf
                optimizer = make_optimizer(stage, step)
            stage.set_mode(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            guard.remember(stage.nets)

            with timer("forward"):
                outputs = stage.forward(batch, step)
            with timer("loss"):
                leaves, cut = cut_graph(outputs)
                terms = stage.loss(batch, leaves, step)
            with timer("loss_backward"):
                terms["total"].backward()
            with timer("backward"):
                used = [(tensor, leaf.grad) for tensor, leaf in cut if leaf.grad is not None]
                torch.autograd.backward([tensor for tensor, _ in used], [grad for _, grad in used])
            with timer("optimizer"):
                norms = [clip_gradient(stage.nets[role], schedule.clip) for role in stage.active(step)]
                optimizer.found_inf = guard.check(  # type: ignore[attr-defined]
                    step, batch["frame"], terms["total"], norms, stage.nets
                )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            timer.step()
            bar.update()

            done = step + 1
            if done % config.log_every == 0 or done == steps:
                guard.report()
                scalars = {name: term.item() for name, term in terms.items()}
                milliseconds = timer.report()
                rate = 1e3 * schedule.batch / max(sum(milliseconds.values()), 1e-9)
                log.scalars(done, scalars | {"lr": learning_rate(stage, step), "images_per_s": rate} | milliseconds)
                bar.set_postfix_str(f"loss {scalars['total']:.4f}, {rate:.0f} images/s")
            if done % config.picture_every == 0:
                for name, picture in stage.pictures(batch, leaves).items():
                    log.image(done, name, picture.detach())
            if (done % schedule.validate_every == 0 or done == steps) and phase == stage.last_phase:
                score = validation.score(step)
                log.scalars(done, {"validation": score})
                if score <= best or schedule.select == "last":
                    best = score
                    stage.save_weights(done, score)
            if done % schedule.checkpoint_every == 0 or done == steps or stop():
                guard.report()
                save_state(last, {
                    "step": done,
                    "phase": phase,
                    "best": best,
                    "seconds": time.perf_counter() - begin,
                    "nets": {role: net.state_dict() for role, net in stage.nets.items()},
                    "optimizer": optimizer.state_dict(),
                })  # fmt: skip
                if stop() and done < steps:
                    raise InterruptedRun
    return {
        "steps": steps,
        "seconds": time.perf_counter() - begin,
        "best": best,
        "skipped_steps": guard.skipped,
        "unreadable_items": unread,
    }


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
    mcd.set_backend(config.backend)
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


def make_optimizer(stage: TrainingStage, step: int) -> torch.optim.Optimizer:
    """The stage's optimiser over the nets that are optimised at ``step``, one group each."""
    return stage.optimizer([{"params": list(stage.nets[role].parameters())} for role in stage.active(step)])


def learning_rate(stage: TrainingStage, step: int) -> float:
    """Learning rate of a step: linear warm-up, the schedule's drops, and its steady decay."""
    schedule = stage.schedule
    rate = schedule.lr * min(1.0, (step + 1) / max(schedule.warmup, 1))
    for when, factor in schedule.drops:
        if step >= schedule.in_steps(when, stage.steps_per_epoch):
            rate *= factor
    if schedule.halve_every is not None:
        rate *= 0.5 ** (step / max(schedule.in_steps(schedule.halve_every, stage.steps_per_epoch), 1))
    return rate


def cut_graph(outputs: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor]]]:
    """The outputs as leaves, and every (output, leaf) that carries a gradient.

    The loss is then differentiated apart from the networks, so that both can be timed, and what the loss saved is
    free before the networks' backward begins.
    """
    pairs: list[tuple[Tensor, Tensor]] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(item) for item in value]
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        pairs.append((value, value.detach().requires_grad_()))
        return pairs[-1][1]

    return {name: leaf(value) for name, value in outputs.items()}, pairs


def clip_gradient(net: nn.Module, largest: float | None) -> Tensor:
    """Clip a net's gradient to a norm; returns the norm before, without waiting for the device."""
    return torch.nn.utils.clip_grad_norm_(net.parameters(), math.inf if largest is None else largest)


class Validation:
    """Mean validation loss over a fixed set of batches, or (published option) abs_rel on ground truth."""

    def __init__(self, stage: TrainingStage, context: Context):
        self._stage, self._context = stage, context
        self._dataset = stage.dataset("val", None)

    def score(self, step: int) -> float:
        stage, config = self._stage, self._context.config
        for net in stage.nets.values():
            net.eval()
        if stage.schedule.select == "ground_truth":
            return self._abs_rel(stage.nets["depth"])
        schedule, device = stage.schedule, self._context.device
        loader = fixed_batches(
            self._dataset, schedule.batch, config.data.workers, device, limit=schedule.validate_batches
        )
        totals: list[Tensor] = []
        with torch.no_grad():
            totals.extend(
                stage.loss(batch, stage.forward(batch, step), step)["total"]
                for batch in prefetch(loader, device, config.channels_last)
            )
        return float(torch.stack(totals).mean()) if totals else math.inf

    def _abs_rel(self, net: nn.Module) -> float:
        config, context = self._context.config, self._context

        def predict(batch: dict[str, Any]) -> Tensor:
            with torch.inference_mode(), context.networks():
                return net(batch["image"])[0].float()

        regions = evaluate_depth(predict, EvaluationSet(config), config.evaluation, context.device, config.data.workers)
        return regions["all"]["abs_rel"]


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._stopped = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._stopped

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: object) -> None:
        if self._stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stopped = True


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
