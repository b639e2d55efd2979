"""How long the stages of a run will take, and what they will leave, by what this and earlier runs have measured."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcd.config import Config, ConfigError, Detector, Schedule, load_config
from mcd.errors import McdError
from mcd.evaluation.figures import read_facts
from mcd.files import read_json
from mcd.run.folder import environment, run_folder
from mcd.run.progress import Expected
from mcd.training.profiling import GRAPH, PHASES

# Settings of a stage that do not change how long an image takes.
_NO_MATTER = frozenset(
    ("steps", "epochs", "batch", "lr", "warmup", "drops", "halve_every", "clip", "select", "motion_from", "joint_from")
)
_MACHINE = ("processor", "cores", "gpu")


@dataclass(frozen=True)
class Measured:
    """A stage of an earlier run with the same nets, images and machine, brought to the length of this one."""

    run: Path
    seconds: float
    bytes: int
    """On disk."""
    memory: int | None
    """Bytes at the most; None: not recorded."""


Earlier = Sequence[tuple[Path, Config]]
"""Runs and their configs."""


def amount(config: Config, stage: str, frames: int) -> float:
    """Images that a stage works through: those of its steps, or every frame."""
    schedule = getattr(config, "final" if stage == "control" else stage)
    if not isinstance(schedule, Schedule):
        return float(frames)
    rounds = len(schedule.scores) if isinstance(schedule, Detector) else 1
    images = schedule.steps * schedule.batch if schedule.steps is not None else (schedule.epochs or 0) * frames
    return float(rounds * images)


def expected_stages(
    config: Config, frames: int, earlier: Sequence[tuple[Path, Config]] | None = None
) -> list[Expected]:
    """Every stage of a config with the seconds it will take, as far as this run or an earlier one says.

    Args:
        frames: of training and validation together.
        earlier: of :func:`earlier_runs`.
    """
    own = run_folder(config)
    before = list(earlier_runs(config)) if earlier is None else earlier
    found = []
    for stage in config.stages:
        facts = _facts(own / stage / "done.json")
        if facts:
            found.append(Expected(stage, facts.get("seconds") or 0.0, "finished", finished=True))
            continue
        measured = measured_stage(config, stage, frames, before)
        known = None if measured is None else measured.seconds
        found.append(Expected(stage, known, "" if measured is None else f"as in {measured.run}"))
    return found


def measured_stage(config: Config, stage: str, frames: int, before: Earlier | None = None) -> Measured | None:
    """What an earlier run says of a stage; None where none with the same nets and images finished it here."""
    for run, other in earlier_runs(config) if before is None else before:
        facts = _facts(run / stage / "done.json")
        seconds = facts.get("seconds")
        if not seconds or "left_out" in facts or not _alike(config, other, stage):
            continue
        theirs = amount(other, stage, int(facts.get("frames") or frames))
        ours = amount(config, stage, frames)
        if theirs:
            share, size = ours / theirs, sum(f.stat().st_size for f in (run / stage).rglob("*") if f.is_file())
            # Files of a stage grow with the frames; its weights do not.
            grown = size if isinstance(getattr(config, stage, None), Schedule) else round(size * share)
            return Measured(run, float(seconds) * share, grown, facts.get("peak_bytes"))
    return None


def logged_step(run: Path, stage: str) -> tuple[int, float] | None:
    """The last step in the log of an unfinished stage, and the seconds that its steps take; None without a log."""
    path = run / "log" / f"{stage}.csv"
    if not path.is_file():
        return None
    try:
        rows = [row for row in csv.DictReader(path.read_text().rpartition("\n")[0].splitlines()) if row.get("forward")]
        times = [sum(float(row.get(phase) or 0) for phase in (*PHASES, GRAPH)) for row in rows]
        return (int(rows[-1]["step"]), sum(times) / len(times) / 1e3) if times else None
    except (OSError, LookupError, TypeError, ValueError, csv.Error):
        return None


def earlier_runs(config: Config) -> Iterator[tuple[Path, Config]]:
    """Runs in the same folder on this machine, the newest first."""
    here = environment()
    own = run_folder(config)
    folders = [path.parent for path in config.runs.glob("*/config.yaml")] if config.runs.is_dir() else []
    for run in sorted(folders, key=lambda path: (path == own, path.stat().st_mtime), reverse=True):
        try:
            there = read_json("environment", run / "env.json")
            other = load_config(run / "config.yaml")
        except (McdError, ConfigError):
            continue
        if all(there.get(name) == here[name] for name in _MACHINE):
            yield run, other


def _alike(config: Config, other: Config, stage: str) -> bool:
    """Whether an image costs the same in a stage of two configs."""
    same = ("nets", "precision", "channels_last", "backend", "threads", "step", "compile")
    if any(getattr(config, name) != getattr(other, name) for name in same) or config.data.size != other.data.size:
        return False
    if config.loss.scales != other.loss.scales or config.device.startswith("cuda") != other.device.startswith("cuda"):
        return False
    sections = [getattr(each, "final" if stage == "control" else stage).model_dump() for each in (config, other)]
    motion = [section.get("motion_from") is None for section in sections]
    kept = [{key: value for key, value in section.items() if key not in _NO_MATTER} for section in sections]
    return motion[0] == motion[1] and kept[0] == kept[1]


def _facts(path: Path) -> dict[str, Any]:
    """Facts of a stage; empty where they are missing or broken, which is said by whoever needs them."""
    try:
        return read_facts(path)
    except McdError:
        return {}
