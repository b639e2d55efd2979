"""The training loop of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from mcd import world
from mcd.data import Batch, FrameDataset, StepSampler, build_loader, prefetch
from mcd.errors import NothingToLearnError, StageError
from mcd.run.context import Context
from mcd.run.log import StageLog
from mcd.run.progress import progress
from mcd.stages import TrainingStage
from mcd.training.checks import CollapseWatch
from mcd.training.launch import StepLauncher
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import ProfileWindow, StepTimer
from mcd.training.state import TrainState, learning_rate
from mcd.training.stop import InterruptedRun, StopSignal
from mcd.training.validation import Validation


def train(stage: TrainingStage, context: Context, stop: StopSignal, window: ProfileWindow) -> dict[str, Any]:
    """Train one stage to its end, or to a stop; returns facts for ``done.json``."""
    config, schedule, device = context.config, stage.schedule, context.device
    if schedule.steps == 0:
        stage.initialise()
        stage.save_weights(0, None)
        world.wait_for_all()
        return {"steps": 0, "seconds": 0.0}
    dataset = stage.dataset("train", config.augment)
    if len(dataset) < schedule.batch:
        kind = NothingToLearnError if stage.of_objects else StageError
        raise kind(
            f"stage {stage.name}: a batch of {schedule.batch} cannot be drawn from {len(dataset)} items: "
            "lower its 'batch'"
        )
    stage.steps_per_epoch = len(dataset) // schedule.batch
    steps = schedule.length(stage.steps_per_epoch)
    state = TrainState(stage)
    if stage.look_again(state.step):
        dataset = stage.dataset("train", config.augment)
    batches = training_batches(stage, dataset, state.step, steps)
    timer, guard, unread = StepTimer(device), NanGuard(config.on_nan, device), 0
    launch = StepLauncher(state, timer, guard, config.step)
    collapse = CollapseWatch(context.run.path, stage.name)
    with (
        closing(StageLog(context.run, stage.name, state.step)) as log,
        closing(Validation(stage, context)) as validation,
        progress(steps, stage.name, "step", state.step) as bar,
    ):
        while state.step < steps:
            window.step()
            if stage.look_again(state.step):
                batches = training_batches(stage, stage.dataset("train", config.augment), state.step, steps)
                validation.renew()
                stage.set_mode(state.step)
            with timer("data"):
                batch = next(batches)
            unread += len(batch["skipped"])
            terms, outputs, _ = launch(batch)
            state.step += 1
            timer.step()
            bar.update()
            step, at_end = state.step, state.step == steps
            if step % config.log_every == 0 or at_end:
                guard.report()
                scalars = read({**terms, **stage.watched(outputs)})
                collapse.look(step, scalars.get("depth_spread"))
                milliseconds = timer.report()
                rate = 1e3 * schedule.batch / max(sum(milliseconds.values()), 1e-9)
                log.scalars(step, scalars | {"lr": learning_rate(stage, step - 1), "images_per_s": rate} | milliseconds)
                bar.set_postfix_str(f"loss {scalars['total']:.4f}, {rate:.0f} images/s")
            if step % config.picture_every == 0 and world.is_first():
                for name, picture in stage.pictures(batch, outputs).items():
                    log.image(step, name, picture.detach())
            if (step % schedule.validate_every == 0 or at_end) and state.phase == stage.last_phase:
                score = validation.score(step - 1)
                log.scalars(step, {"validation": score})
                state.keep_if_best(score)
            stopping = world.any_of(stop())
            if step % schedule.checkpoint_every == 0 or at_end or stopping:
                guard.report()
                state.save()
                if stopping and not at_end:
                    raise InterruptedRun
    facts = {"steps": steps, "seconds": state.seconds, "best": state.best}
    return facts | {"skipped_steps": guard.skipped, "unreadable_items": sum(world.gather(unread))}


def training_batches(stage: TrainingStage, dataset: FrameDataset, start: int, steps: int) -> Iterator[Batch]:
    """The batches of the steps from ``start`` on; of each, the share of this process."""
    config, device, batch = stage.config, stage.context.device, stage.schedule.batch
    sampler = StepSampler(
        len(dataset), batch, config.seed, start, steps, first_epoch=stage.first_epoch, part=world.slice_of(batch)
    )
    return prefetch(build_loader(dataset, sampler, config.data.workers, device), device, config.channels_last)


def read(terms: dict[str, Tensor]) -> dict[str, float]:
    """The values of loss terms and of what is watched, of the whole batch; the device is waited for once."""
    values = torch.stack([term.detach() for term in terms.values()])
    return dict(zip(terms, (world.total(values) / world.size()).tolist(), strict=True))
