"""``mcd train --plan``: stages, steps, time, disk and memory of a run, before anything of it begins.

Times are those of this run's own log or of earlier runs with the same nets and images on this machine; where there are
none, a few steps of the stage are measured on noise of the right shape. Stages whose inputs others have yet to find are
taken to cost what the scene's nets cost an image, which is mostly too much.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcd.config import Config, Schedule
from mcd.data import Batch, open_reader
from mcd.run.context import Context
from mcd.run.folder import Run, run_folder
from mcd.run.networks import make_net
from mcd.run.progress import clock_text
from mcd.stages import STAGES, TrainingStage
from mcd.training.expect import amount, earlier_runs, expected_stages, logged_step, measured_stage
from mcd.training.state import make_optimizer

# Seconds that measuring a stage may take, and steps; the first is not counted.
_PATIENCE, _STEPS = 15.0, 3
# The store of predictions holds about a tenth of raw float32.
_STORE = 0.1
# Weights, and the state to go on from: weights and two moments of Adam, float32.
_COPIES = 4
_ROLES: Mapping[str, tuple[str, ...]] = {
    "scene": ("depth", "pose", "motion"),
    "ground": ("ground",),
    "slots": ("slots",),
    "detector": ("detector",),
    "object": ("depth", "pose"),
    "scale": ("scale",),
    "final": ("depth", "pose", "motion"),
    "control": ("depth", "pose", "motion"),
}
# Stages whose forward and loss take pictures, poses and masks alone: a step of theirs can be measured on noise.
_MEASURED = ("scene", "object", "final", "control")


@dataclass(frozen=True)
class Row:
    """A stage in the plan."""

    stage: str
    work: str
    seconds: float | None
    source: str
    disk: int
    memory: int | None


def plan(config: Config, device: torch.device) -> list[Row]:
    """The stages of a config as they will be.

    Raises:
        DataError: the data are not there.
    """
    frames = _frames(config)
    both = frames["train"] + frames["val"]
    rows: list[Row] = []
    probe, before = _Probe(config, device), list(earlier_runs(config))
    for expected in expected_stages(config, both, before):
        stage = expected.name
        earlier = None if expected.finished else measured_stage(config, stage, both, before)
        disk = _disk(config, stage, frames) if earlier is None else earlier.bytes
        memory = None if earlier is None else earlier.memory
        seconds, source = expected.seconds, expected.source
        logged = None if expected.finished else logged_step(run_folder(config), stage)
        steps = _steps(config, stage, frames["train"])
        if logged is not None and steps is not None:
            seconds, source = logged[1] * max(steps - logged[0], 0), f"its log, step {logged[0]}"
        elif seconds is None:
            seconds, source = probe.stage(stage, amount(config, stage, both if steps is None else frames["train"]))
            memory = probe.peak
        rows.append(Row(stage, _work(config, stage, steps, both), seconds, source, disk, memory))
    return rows


def show(config: Config, rows: list[Row]) -> None:
    """Print a plan, and what is short for it."""
    table = Table(box=box.SIMPLE, padding=0, title=f"plan of {run_folder(config)}; nothing has begun")
    for name in ("stage", "work", "time", "by", "disk", "memory"):
        table.add_column(name, justify="right" if name in ("time", "disk", "memory") else "left")
    for row in rows:
        known = "not known" if row.seconds is None else "done" if row.source == "finished" else clock_text(row.seconds)
        table.add_row(row.stage, row.work, known, row.source, _bytes(row.disk), _bytes(row.memory))
    Console().print(table)
    left = [row for row in rows if row.source != "finished"]
    unknown = [row.stage for row in left if row.seconds is None]
    total = sum(row.seconds or 0.0 for row in left)
    disk, memory = sum(row.disk for row in left), max((row.memory or 0 for row in left), default=0)
    place = config.runs.absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    more = f", and {', '.join(unknown)}, which is not known" if unknown else ""
    print(
        f"about {clock_text(total)}{more}; evaluation and report come on top\n"
        f"disk {_bytes(disk)} of {_bytes(free)} free, memory about {_bytes(memory or None) or 'not known'}"
    )
    if disk > free:
        print(f"warning: the disk of {config.runs} is too small", file=sys.stderr)


class _Probe:
    """Measures steps of stages whose time nothing says; each kind once."""

    def __init__(self, config: Config, device: torch.device):
        self._config, self._device = config, device
        self._image: dict[str, float] = {}
        self.peak: int | None = None

    def stage(self, stage: str, images: float) -> tuple[float | None, str]:
        """Seconds of a stage, and what was measured for it."""
        if stage in ("segment", "proposals"):
            return None, "not measured"
        kind = stage if stage in _MEASURED else "scene"
        if kind not in self._image:
            self._image[kind] = self._measure(kind)
        return images * self._image[kind], "measured now" if kind == stage else "as the scene, measured now"

    def _measure(self, name: str) -> float:
        """Seconds an image of the steps of a stage, every phase having its share of them."""
        config, device = self._config, self._device
        with tempfile.TemporaryDirectory(prefix="mcd-plan-") as place:
            quiet = config.model_copy(update={"nets": config.nets.model_copy(update={"pretrained": False})})
            context = Context(quiet, Run.at(Path(place), quiet), device)
            stage = STAGES[name](context)
            assert isinstance(stage, TrainingStage)
            frames = _frames(config)["train"]
            stage.steps_per_epoch = max(frames // stage.schedule.batch, 1)
            length = stage.schedule.length(stage.steps_per_epoch)
            batch = _noise(config, stage.schedule.batch, device)
            starts = [0] + [step for step in range(1, length) if stage.phase(step) != stage.phase(step - 1)]
            ends = [*starts[1:], length]
            seconds = sum(
                (end - start) / length * self._step(stage, batch, start, _PATIENCE / len(starts))
                for start, end in zip(starts, ends, strict=True)
            )
        self.peak = peak_bytes(device)
        return seconds / stage.schedule.batch

    def _step(self, stage: TrainingStage, batch: Batch, step: int, patience: float) -> float:
        optimizer = make_optimizer(stage, step)
        stage.set_mode(step)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) <= _STEPS and (len(times) < 2 or time.perf_counter() - begin < patience):
            start = time.perf_counter()
            stage.loss(batch, stage.forward(batch, step), step)["total"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: of the device, or without one of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _noise(config: Config, count: int, device: torch.device) -> Batch:
    height, width = config.data.size
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        values = torch.rand(*shape, height, width, generator=generator).to(device)
        if config.channels_last and values.ndim == 4:
            return values.contiguous(memory_format=torch.channels_last)
        return values

    K = torch.tensor([[width * 0.6, 0, width / 2], [0, width * 0.6, height / 2], [0, 0, 1]])
    return {
        "reference": noise(count, 3),
        "sources": noise(count, 2, 3),
        "K": K.expand(count, 3, 3).contiguous().to(device),
        "flipped": torch.zeros(count, dtype=torch.bool, device=device),
        "object_masks": noise(count, 3) > 0.5,
        "pseudo_depth": 1 + noise(count, 1),
        "dynamic_mask": noise(count, 1) > 0.5,
        "frame": ["noise"] * count,
    }


def _frames(config: Config) -> dict[str, int]:
    """Frames by split; those of synthetic scenes need not be there yet."""
    wanted = config.data.synthetic
    if wanted is not None and not config.data.root.exists():
        return {"train": wanted.frames, "val": wanted.val_frames}
    return {split: len(open_reader(config.data, split).frames) for split in ("train", "val")}


def _schedule(config: Config, stage: str) -> Schedule | None:
    section = getattr(config, "final" if stage == "control" else stage)
    return section if isinstance(section, Schedule) else None


def _steps(config: Config, stage: str, frames: int) -> int | None:
    """Steps of a stage; of one round of the detector. None for stages without training."""
    schedule = _schedule(config, stage)
    return None if schedule is None else schedule.length(max(frames // schedule.batch, 1))


def _work(config: Config, stage: str, steps: int | None, frames: int) -> str:
    schedule = _schedule(config, stage)
    if schedule is None or steps is None:
        return f"{frames} images"
    rounds = f"{len(config.detector.scores)} rounds of " if stage == "detector" else ""
    # Which objects there are to learn from is found by earlier stages.
    upto = "up to " if schedule.epochs is not None and stage in ("object", "scale", "detector") else ""
    return f"{rounds}{upto}{steps} steps of {schedule.batch}"


def _disk(config: Config, stage: str, frames: Mapping[str, int]) -> int:
    """Bytes that a stage leaves, from its parameters and frames."""
    pixels, both = config.data.size[0] * config.data.size[1], frames["train"] + frames["val"]
    if stage == "predictions":
        return round(_STORE * 4 * 5 * pixels * both)
    if stage == "pseudo":
        return 4 * pixels * both
    if stage in ("instances", "segment", "proposals"):
        # A bit a pixel, five objects a frame; of instances in three frames.
        return (3 if stage == "instances" else 1) * 5 * pixels // 8 * both
    schedule = _schedule(config, stage)
    motion = getattr(schedule, "motion_from", None) is not None
    with torch.device("meta"):
        parameters = sum(
            sum(value.numel() for value in make_net(config, role, pretrained=False).parameters())
            for role in _ROLES[stage]
            if role != "motion" or motion
        )
    rounds = len(config.detector.scores) - 1 if stage == "detector" else 0
    return 4 * parameters * (_COPIES + rounds)


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
